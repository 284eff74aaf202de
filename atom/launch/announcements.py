"""Show events of a run on the screen."""

from __future__ import annotations

from pathlib import Path

from atom.io.numbers import decimal
from atom.io.tail import Tail
from atom.run_dir import events
from atom.watch.screen import Screen


class News:
    """A reader that shows events appended to a run's event file from now on."""

    def __init__(self, run: Path, screen: Screen) -> None:
        self._screen = screen
        self._tail = Tail(run / events.FILE_NAME)
        self._tail.lines()

    def tell(self) -> None:
        """Show the events since the last call."""
        for line in self._tail.lines():
            try:
                words = told(events.parsed(line))
            except ValueError:
                continue  # the reader of the whole file reports it
            if words is not None:
                self._screen.note(words)

    def close(self) -> None:
        """Close the file."""
        self._tail.close()


def told(event: dict) -> str | None:
    """Return one line about an event, or None if the event is not shown."""
    match event["event"]:
        case events.FAILED if event["restart"]:
            return f"{event['reason']}; restarting the ranks"
        case events.CHECKPOINT_DAMAGED:
            return (
                f"checkpoint of step {event['step']} is damaged ({event['reason']}) and set aside "
                f"as {event['place']}"
            )
        case events.CHECKPOINT_FAILED:
            return f"checkpoint of step {event['step']} could not be written ({event['reason']})"
        case events.EVALUATED:
            numbers = (
                f"{name} {'–' if value is None else decimal(value, 4)}"
                for name, value in event["numbers"].items()
            )
            return f"evaluated step {event['step']:,}: {', '.join(numbers)}"
        case events.EVALUATION_SUBMITTED:
            return f"step {event['step']:,} is evaluated by a job of its own: {event['job']}"
        case events.EVALUATION_FAILED:
            return f"step {event['step']:,} was not evaluated ({event['reason']}); the run goes on"
        case events.WARNED:
            return str(event["text"])
        case events.ALERT:
            return f"{event['callback']}: {event['reason']}"
        case events.BAD_DOCUMENT:
            return f"skipped a document: {event['reason']}"
        case events.VALIDATION_SET:
            size = event.get("bytes")
            told = "its bytes are unknown: no bits per byte" if size is None else f"{size:,} bytes"
            return (
                f"validation set {event['set']}: {event['sequences']:,} sequences, "
                f"{event['tokens']:,} tokens of text, {told}"
            )
        case events.NUMERICAL_FAULT if event["decision"] == "skip":
            return f"{event['reason']}; the step is skipped"
        case events.NUMERICAL_FAULT if event["decision"] == "rollback":
            return (
                f"{event['reason']}; rolling back to step {event['to_step']}, without the data "
                "since"
            )
    return None
