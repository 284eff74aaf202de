"""Write and read ``events.jsonl``: the events of a run other than its steps.

A line is a JSON object with ``time`` (ISO 8601, UTC), ``event``, ``host`` and the event's fields.
One rank or the launcher writes each event in a single write, so that processes can share the file.
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
"""Ranks were started. ``ranks``, ``step`` (of the checkpoint, null for none), ``attempt``."""
UNDER_WAY = "under_way"
"""The first step after a start is done. ``step``; ``seconds``, the duration of each startup phase
on rank 0; ``slowest``, the longest duration of each phase over all ranks:
:mod:`atom.titan.train.startup`."""
CHECKPOINT_SAVED = "checkpoint_saved"
"""A checkpoint is complete. ``step``, ``seconds`` from the end of the step until then; ``tensors``,
the digest of its tensors, the same on every layout (none without
``provenance.tensor_digest``)."""
CHECKPOINT_FAILED = "checkpoint_failed"
"""A checkpoint could not be written; the run continues. ``step``, ``reason``."""
CHECKPOINT_DAMAGED = "checkpoint_damaged"
"""A checkpoint failed verification and was set aside. ``step``, ``reason``, ``place``."""
RESUMED = "resumed"
"""Training resumes from a checkpoint. ``step``."""
BRANCHED = "branched"
"""The run begins from a checkpoint of another run. ``origin`` (its folder), ``step``, ``settings``
(key -> before, after), ``data`` (the reasons why its data begins anew, empty if it continues),
``gone_back`` (if it continues: pairs of a checkpoint that the other run has gone back to, and the
global batches that it left out)."""
CHANGED = "changed"
"""A start differs from the start before. ``step`` (of the checkpoint to resume from, 0 for none),
``kept`` (the folder with the files of the start before), ``settings`` and ``versions`` (key ->
before, after), ``contents`` (component -> how its input data differs, as tolerated by
``resume.force``), ``forced`` (changes of the data that ``resume.force`` has allowed, in words: what
the run has read before the step is not what it declares now)."""
WARNED = "warned"
"""A plugin issued a warning on rank 0. ``text``, which begins with the plugin's name."""
ALERT = "alert"
"""A callback found a value that needs attention; the run continues. ``callback`` (its name in the
run), ``step``, ``reason``."""
STOP_ASKED = "stop_asked"
"""A signal asked the launcher to stop the ranks. ``signal``, its name."""
STOPPED = "stopped"
"""Ranks ended before the last step on request. ``step``, ``tokens_seen``, ``reason`` (the signal's
name), ``saved`` (whether a checkpoint of that step exists)."""
FAILED = "failed"
"""A rank failed and the others were ended. ``reason``, ``rank`` (null if unknown or not a single
rank), ``step`` (the last step of these ranks, null if they trained none), ``restart`` (whether they
are restarted); ``host`` is the host of the rank. With several machines also ``raised``, ``final``
and ``saved`` (the checkpoint's step), which the next restart decision uses."""
INTERRUPTED = "interrupted"
"""Training resumes after a process ended unexpectedly. ``step`` (the last one it trained),
``from_step`` (of the checkpoint, 0 for none), ``reached`` (the last step that any process trained),
``since`` (when that was), ``cause``, ``rank``, ``failed_host``."""
RECOVERED = "recovered"
"""The run has trained again up to the step reached before an interruption. ``step``, ``seconds``
since that step was first done, which is the time lost; ``cause``, ``rank``, ``failed_host``."""
NODE_FAILED = "node_failed"
"""The ranks of one of several machines failed; the root cause is not known yet. ``node``,
``reason``, ``rank``, ``raised`` (an exception of their own), ``final`` (a restart cannot help)."""
NUMERICAL_FAULT = "numerical_fault"
"""The loss or the gradient norm of a step failed validation. ``step``, ``fault`` (non_finite or
spike), ``reason``, ``loss``, ``grad_norm`` (null if not finite), ``decision`` (skip, rollback or
stop); for a rollback ``to_step`` (of the checkpoint), ``done`` (the last step done) and
``left_out`` (global batches read since the checkpoint, which are not read again); ``documents`` (of
that step, on the lanes of rank 0)."""
BAD_DOCUMENT = "bad_document"
"""An unreadable document was left out, within the number that the dataset tolerates. ``rank``,
``step``, ``document``, ``reason``. Each process of a rank records at most
:data:`MOST_BAD_DOCUMENTS`; the rank's log has all."""
MOST_BAD_DOCUMENTS = 100
WITHOUT_TEXT = "without_text"
"""Documents with nothing to train on were left out. ``rank``; the counts of its process over all
epochs: ``documents`` without text, ``short``, with a single token, and ``long``, of which nothing
fits a sequence."""
PACKED = "packed"
"""What rank 0 has packed into its sequences when its process ends: ``sequences``, ``parts`` of
documents in them, ``cut`` (those that continue in another sequence), and ``padding``, as a
fraction of the training pairs."""
VALIDATION_SET = "validation_set"
"""A validation set was read. ``set`` (its name), ``sequences``, ``tokens`` (that are predicted),
``bytes`` (of these; null if the tokenizer does not tell), ``data`` (a digest of the sequences)."""
REFERENCES = "references"
"""The log-probabilities of examples under the initial weights are complete. ``computed`` (number of
sequences), ``sequences`` (those that were kept before included), ``folder`` (in the run folder),
``seconds``."""
EVALUATED = "evaluated"
"""A checkpoint was evaluated while training went on. ``step``, ``seconds``, ``numbers`` (task and
metric -> value)."""
EVALUATION_SUBMITTED = "evaluation_submitted"
"""The evaluation of a checkpoint is a job of a scheduler. ``step``, ``job`` (what the scheduler
said)."""
EVALUATION_FAILED = "evaluation_failed"
"""A checkpoint could not be evaluated; the run continues. ``step``, ``reason``."""
REPLICAS_DIFFER = "replicas_differ"
"""Parameters that must be equal across replicas differ; the run ends. ``step``, ``reason``."""
REPLAY_DIFFERS = "replay_differs"
"""Recomputing a step's gradients gave different bits; the run ends. ``step``, ``reason``."""
FINISHED = "finished"
"""The last step is done. ``step``, ``tokens_seen``."""


def record(run: Path, event: str, **fields: Any) -> None:
    """Append an event to the file in the run folder ``run``.

    On a full disk the event is lost and the run continues."""
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
    """Return the events of a run in order; ignore an incomplete last line.

    Raises:
        UserError: a line is no event, or the file is unreadable.
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
            f"line {len(found) + 1} of {run / FILE_NAME} is no event ({error})",
            valid="a file that ATOM wrote",
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
    ALERT: ("step", "reason", "callback"),
    EVALUATED: ("step", "numbers"),
    EVALUATION_SUBMITTED: ("step", "job"),
    EVALUATION_FAILED: ("step", "reason"),
    VALIDATION_SET: ("set", "sequences", "tokens"),
}
"""Fields that readers of an event require."""

_STEPS = (
    *("step", "from_step", "to_step", "reached", "done", "left_out"),
    *("short", "long", "sequences", "parts", "cut"),
    *("tokens", "bytes"),
)
_WORDS = ("reason", "place", "signal", "kept", "decision", "cause", "fault", "callback", "set")


def parsed(line: bytes) -> dict[str, Any]:
    """Return the event in a line of the file.

    Raises:
        ValueError: the line is no event.
    """
    event = json_data.loads(line)
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        raise ValueError("it says of no event")
    if (problem := next(_problems(event), None)) is not None:
        raise ValueError(f"its {problem} is {json.dumps(event.get(problem))[:80]}")
    return event


def _are_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(
        number is None or (isinstance(number, int | float) and not isinstance(number, bool))
        for number in value.values()
    )


def _problems(event: dict[str, Any]) -> Iterator[str]:
    """Yield the fields of an event that are missing or have the wrong type."""
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
    if kind == EVALUATED and not _are_numbers(event["numbers"]):
        yield "numbers"
    if kind in (RECOVERED, CHECKPOINT_SAVED, EVALUATED) and not _is_length(event.get("seconds")):
        yield "seconds"
    if kind == PACKED and not _is_length(event.get("padding")):
        yield "padding"
    if kind == FAILED and not isinstance(event.get("restart"), bool):
        yield "restart"
    if kind == CHANGED and not isinstance(event.get("forced", []), list):
        yield "forced"
    if kind == CHANGED and not _KEPT.fullmatch(event["kept"]):
        yield "kept"
    if kind == NUMERICAL_FAULT and event["decision"] == "rollback" and event.get("to_step") is None:
        yield "to_step"
    if kind == BRANCHED and not _are_pairs(event.get("gone_back", [])):
        yield "gone_back"
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


def _are_pairs(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and [type(number) for number in pair] == [int, int] for pair in value
    )


def asked_by(happened: list[dict[str, Any]]) -> str | None:
    """Return the name of the last stop signal that a launcher received and has not yet completed;
    None if there is none."""
    for event in reversed(happened):
        if event["event"] == STOP_ASKED:
            return str(event["signal"])
        if event["event"] in (STOPPED, FINISHED):
            return None
    return None


def ask(run: Path, signal: str) -> None:
    """Record that a signal asked the ranks to stop, unless another node has recorded it."""
    for event in reversed(read(run)):
        if event["event"] == STOP_ASKED:
            return
        if event["event"] == STARTED:
            break
    record(run, STOP_ASKED, signal=signal)


def stopped(run: Path) -> str | None:
    """Return why the ranks of a run stopped early, in words; None if they did not."""
    ends = (STARTED, STOPPED, FAILED, FINISHED)
    last = next((event for event in reversed(read(run)) if event["event"] in ends), None)
    if last is None or last["event"] != STOPPED:
        return None
    how = "with a checkpoint" if last.get("saved", True) else "without a checkpoint"
    return f"stopped by {last['reason']} after step {last['step']}, {how}"
