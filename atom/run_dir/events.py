"""``events.jsonl``: what happened to a run, beside the steps it took.

A line is a JSON object with ``time`` (ISO 8601, UTC), ``event``, ``host`` and fields of its own.
One rank or the launcher writes each event, in one write, so that processes may share the file.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from atom.errors import UserError
from atom.io import json_data
from atom.io.files import append, appending, is_full
from atom.io.json_data import dumps

FILE_NAME = "events.jsonl"

STARTED = "started"
"""Ranks were started. ``ranks``, ``step`` (the checkpoint's, null for none), ``attempt``."""
UNDER_WAY = "under_way"
"""The first step of ranks that were started is done. ``step``; ``seconds`` of each phase of rank
0's start, and ``slowest``, those of the slowest rank in each: :mod:`atom.titan.train.startup`."""
CHECKPOINT_SAVED = "checkpoint_saved"
"""A checkpoint is whole. ``step``, ``seconds`` from the step's end until it was."""
CHECKPOINT_FAILED = "checkpoint_failed"
"""A checkpoint could not be written; the run goes on. ``step``, ``reason``."""
CHECKPOINT_DAMAGED = "checkpoint_damaged"
"""A checkpoint does not verify and was set aside. ``step``, ``reason``, ``place``."""
RESUMED = "resumed"
"""Training goes on from a checkpoint. ``step``."""
CHANGED = "changed"
"""A start goes on with something else than the start before. ``step`` (of the checkpoint that it is
to go on from, 0 for none), ``kept`` (the folder that holds what the start before was), ``settings``
and ``versions`` (key -> before, after), ``contents`` (component -> how what it reads differs, which
``resume.force`` put up with)."""
WARNED = "warned"
"""A plugin warned of something on rank 0. ``text``, which begins with the plugin's name."""
STOP_ASKED = "stop_asked"
"""A signal asked the launcher to have the ranks stop. ``signal``, its name."""
STOPPED = "stopped"
"""Ranks ended before the last step, as a signal asked them to. ``step``, ``tokens_seen``,
``reason`` (the signal's name), ``saved`` (whether there is a checkpoint of that step)."""
FAILED = "failed"
"""A rank failed and the others were ended. ``reason``, ``rank`` (null where it is not one, or not
known), ``step`` (the last one that these ranks did, null if they began none), ``restart`` (whether
they are started again); ``host`` is where the rank was. On several machines also ``raised``,
``final`` and ``saved`` (the checkpoint's step), which the next such decision is made by."""
INTERRUPTED = "interrupted"
"""Training goes on where a process ended that was not asked to. ``step`` (the last it did),
``from_step`` (of the checkpoint, 0 for none), ``reached`` (the last step that any process did),
``since`` (when that was), ``cause``, ``rank``, ``failed_host``."""
RECOVERED = "recovered"
"""The step that had been reached before an interruption is done again. ``step``, ``seconds`` since
it was first done, which are the time lost; ``cause``, ``rank``, ``failed_host``."""
NODE_FAILED = "node_failed"
"""The ranks of one of several machines failed, before it is known of what. ``node``, ``reason``,
``rank``, ``raised`` (an exception of their own), ``final`` (another try is useless)."""
NUMERICAL_FAULT = "numerical_fault"
"""The loss or the gradient norm of a step is not to be trusted. ``step``, ``fault`` (non_finite or
spike), ``reason``, ``loss``, ``grad_norm`` (null if not finite), ``decision`` (skip, rollback or
stop), ``to_step`` and ``done`` (of a rollback: the checkpoint's, and the last that was done),
``documents`` (of that step, on the lanes of rank 0)."""
BAD_DOCUMENT = "bad_document"
"""A document could not be read and was left out, as the dataset puts up with some. ``rank``,
``step`` that it was met in, ``document``, ``reason``. Of each process of a rank there are
:data:`MOST_BAD_DOCUMENTS` at most; the rank's log has all."""
MOST_BAD_DOCUMENTS = 100
WITHOUT_TEXT = "without_text"
"""Documents with nothing to train on were left out. ``rank``; how many its process has met until it
ended, in all passes: ``documents`` without text, and ``short``, of a single token."""
REPLICAS_DIFFER = "replicas_differ"
"""Parameters that should be alike are not; the run ends. ``step``, ``reason``."""
REPLAY_DIFFERS = "replay_differs"
"""Computing a step's gradients again gave other bits; the run ends. ``step``, ``reason``."""
FINISHED = "finished"
"""The last step is done. ``step``, ``tokens_seen``."""


def record(run: Path, event: str, **fields: Any) -> None:
    """Append an event to the file in the run folder ``run``; on a full disk it is lost, as a run
    outlives that."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = dumps({"time": time, "event": event, "host": socket.gethostname(), **fields})
    file = appending(run / FILE_NAME)
    try:
        append(file, f"{line}\n".encode())
    except OSError as error:
        if not is_full(error):
            raise
    finally:
        os.close(file)


def read(run: Path) -> list[dict[str, Any]]:
    """Return the events of a run, in the order they happened; a last half line is left out.

    Raises:
        UserError: a line is no event, or the file cannot be read.
    """
    found: list[dict[str, Any]] = []
    try:
        for line in json_data.lines(run / FILE_NAME):
            found.append(parsed(line))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{run / FILE_NAME} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(
            f"line {len(found) + 1} of {run / FILE_NAME} is no event ({error}); valid: a file that "
            "ATOM wrote"
        ) from None
    return found


_KEPT = re.compile(r"history/[0-9]{1,9}")

_NEEDED = {
    UNDER_WAY: ("step",),
    CHECKPOINT_FAILED: ("step", "reason"),
    CHECKPOINT_DAMAGED: ("step", "reason", "place"),
    CHANGED: ("kept",),
    STOP_ASKED: ("signal",),
    STOPPED: ("step", "reason"),
    FAILED: ("restart",),
    INTERRUPTED: ("step", "from_step"),
    RECOVERED: ("seconds",),
    NUMERICAL_FAULT: ("step", "decision"),
}
"""What the readers of an event rely on."""

_STEPS = ("step", "from_step", "to_step", "reached", "done", "short")
_WORDS = ("reason", "place", "signal", "kept", "decision", "cause", "fault")


def parsed(line: bytes) -> dict[str, Any]:
    """Return the event that a line of the file holds.

    Raises:
        ValueError: it is none.
    """
    event = json_data.loads(line)
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        raise ValueError("it says of no event")
    if (problem := next(_problems(event), None)) is not None:
        raise ValueError(f"its {problem} is {json.dumps(event.get(problem))[:80]}")
    return event


def _problems(event: dict[str, Any]) -> Iterator[str]:
    """Yield the fields of an event that are missing or have another type."""
    kind = event["event"]
    if not _is_time(event.get("time")):
        yield "time"
    yield from (name for name in _NEEDED.get(kind, ()) if event.get(name) is None)
    for name in _STEPS:
        value = event.get(name)
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if value is not None and not whole:
            yield name
    yield from (name for name in _WORDS if not isinstance(event.get(name), str | None))
    if kind in (RECOVERED, CHECKPOINT_SAVED) and not _is_length(event.get("seconds")):
        yield "seconds"
    if kind == FAILED and not isinstance(event.get("restart"), bool):
        yield "restart"
    if kind == CHANGED and not _KEPT.fullmatch(event["kept"]):
        yield "kept"
    if kind == NUMERICAL_FAULT and event["decision"] == "rollback" and event.get("to_step") is None:
        yield "to_step"
    if kind == WITHOUT_TEXT and not isinstance(event.get("documents", 0), int):
        yield "documents"
    if kind == BAD_DOCUMENT:
        yield from (
            n for n in ("document", "rank") if not isinstance(event.get(n), str | int | None)
        )


def _is_time(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _is_length(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def asked_by(happened: list[dict[str, Any]]) -> str | None:
    """Return the name of the signal that a launcher has had last, for an end that is yet to come;
    None if it has had none."""
    for event in reversed(happened):
        if event["event"] == STOP_ASKED:
            return str(event["signal"])
        if event["event"] in (STOPPED, FINISHED):
            return None
    return None


def ask(run: Path, signal: str) -> None:
    """Record that a signal has asked the ranks to stop, unless another node has told so."""
    for event in reversed(read(run)):
        if event["event"] == STOP_ASKED:
            return
        if event["event"] == STARTED:
            break
    record(run, STOP_ASKED, signal=signal)


def stopped(run: Path) -> str | None:
    """Return how the ranks of a run have just ended early, in words; None if they have not."""
    ends = (STARTED, STOPPED, FAILED, FINISHED)
    last = next((event for event in reversed(read(run)) if event["event"] in ends), None)
    if last is None or last["event"] != STOPPED:
        return None
    how = "with a checkpoint" if last.get("saved", True) else "without a checkpoint"
    return f"stopped by {last['reason']} after step {last['step']}, {how}"
