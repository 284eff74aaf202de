"""Compute how the time of a step is spent, from a trace of ``torch.profiler``.

A profiled rank writes ``profile/rank_N.json``; this module also reads these files.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from atom.io import json_data
from atom.io.files import open_regular, write_json

FOLDER = "profile"

DATA = "atom::data"
"""Annotation around the wait for the next batch."""

UNKNOWN = "unknown"
"""Dimension of communication if the trace does not name the process group."""

Spans = list[tuple[float, float]]
"""Sorted, disjoint time intervals in microseconds."""

_POINT_TO_POINT = ("c10d::send", "c10d::recv", "gloo:send", "gloo:recv")
_COLLECTIVE = ("c10d::", "_c10d_functional::", "gloo:")
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True)
class Shares:
    """Seconds of one step of one rank; the parts add up to the whole step.

    Attributes:
        step: its number.
        compute: time in operators; on a GPU, in kernels.
        communication: by mesh dimension, not overlapped with compute.
        bubble: waiting for a neighbouring pipeline stage.
        data: waiting for the next batch.
        other: on a CPU, Python between operators; on a GPU, an idle device.
    """

    step: int
    compute: float
    communication: dict[str, float] = field(default_factory=dict)
    bubble: float = 0.0
    data: float = 0.0
    other: float = 0.0

    @property
    def seconds(self) -> float:
        """Duration of the whole step."""
        exposed = sum(self.communication.values())
        return self.compute + exposed + self.bubble + self.data + self.other


def shares(trace: Mapping[str, Any], groups: Mapping[int, str]) -> list[Shares]:
    """Return how the time of each step in a trace was spent.

    Args:
        trace: as written by ``export_chrome_trace``.
        groups: thread -> its process group, for process groups on a CPU.
    """
    done = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    steps = sorted(
        (event for event in done if str(event["name"]).startswith("ProfilerStep#")
         and event.get("cat") == "user_annotation"),
        key=lambda event: event["ts"],
    )  # fmt: skip
    if not steps:
        return []
    kinds = _kinds(done, steps[0]["tid"], groups)
    # torch counts finished steps, ATOM the current step.
    return [
        _of_step(int(str(s["name"]).partition("#")[2]) + 1, s["ts"], s["ts"] + s["dur"], *kinds)
        for s in steps
    ]


def write(trace: Path, target: Path, groups: Mapping[int, str]) -> None:
    """Write the shares of each step in the trace file to ``target``."""
    with open_regular(trace) as raw, gzip.GzipFile(fileobj=raw) as unpacked:
        found = json.load(unpacked if trace.suffix == ".gz" else raw)
    rank = found.get("distributedInfo", {}).get("rank", 0)
    write_json(target, {"rank": rank, "steps": [asdict(one) for one in shares(found, groups)]})


def read(run: Path, problems: list[str] | None = None) -> dict[int, list[Shares]]:
    """Return the shares of each profiled rank of a run.

    Args:
        run: the run folder.
        problems: if given, receives the unreadable files and the reasons.
    """
    found = {}
    for path in (run / FOLDER).glob("rank_*.json"):
        try:
            content = json_data.read(path, most=64 << 20, below=run)
            found[int(content["rank"])] = [_shares(one) for one in content["steps"]]
        except (OSError, ValueError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())
            if problems is not None:
                problems.append(f"{FOLDER}/{path.name} cannot be read ({reason})")
    return dict(sorted(found.items()))


def _shares(one: dict[str, Any]) -> Shares:
    shares = Shares(**one)
    values = [value for name, value in one.items() if name != "communication"]
    named = dict(shares.communication)
    if not all(_is_number(value) for value in (*values, *named.values())):
        raise ValueError("a share is no number")
    return shares


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def mean(steps: list[Shares]) -> Shares:
    """Return the mean of steps."""
    count = len(steps)
    names = dict.fromkeys(name for one in steps for name in one.communication)
    return Shares(
        step=steps[-1].step,
        compute=sum(one.compute for one in steps) / count,
        communication={
            name: sum(one.communication.get(name, 0.0) for one in steps) / count for name in names
        },
        bubble=sum(one.bubble for one in steps) / count,
        data=sum(one.data for one in steps) / count,
        other=sum(one.other for one in steps) / count,
    )


# ---------------------------------------------------------------------------- from events to spans


def _kinds(
    events: list[dict[str, Any]], main: int, groups: Mapping[int, str]
) -> tuple[Spans, Spans, Spans, dict[str, Spans]]:
    """Return the spans of compute, data, point-to-point, and communication by dimension."""
    here: dict[str, list[tuple[float, float]]] = {"compute": [], "data": [], "p2p": [], "comm": []}
    for begin, end, kind in _innermost([event for event in events if event.get("tid") == main]):
        if kind in here:
            here[kind].append((begin, end))
    by_dimension: dict[str, list[tuple[float, float]]] = {}
    device = [event for event in events if event.get("cat") in _ON_DEVICE]
    if device:
        here["compute"], here["p2p"], here["comm"] = [], [], []
        for event in device:
            span = (event["ts"], event["ts"] + event["dur"])
            if not str(event["name"]).startswith("nccl"):
                here["compute"].append(span)
            elif "SendRecv" in event["name"] and _group(event) in ("pp", UNKNOWN):
                here["p2p"].append(span)
            else:
                by_dimension.setdefault(_group(event), []).append(span)
    for event in events:
        if event.get("tid") != main and str(event["name"]).startswith("gloo:"):
            name = _dimension(groups.get(event["tid"], UNKNOWN))
            by_dimension.setdefault(name, []).append((event["ts"], event["ts"] + event["dur"]))
    unknown = [*by_dimension.pop(UNKNOWN, []), *here["comm"]]
    spans = {name: _union(found) for name, found in sorted(by_dimension.items())}
    # Last, because a wait of this thread is often a wait for one of the others.
    spans[UNKNOWN] = _union(unknown)
    return _union(here["compute"]), _union(here["data"]), _union(here["p2p"]), spans


def _innermost(events: list[dict[str, Any]]) -> Iterator[tuple[float, float, str]]:
    """Yield the times when each event of a thread was the innermost active one, and its kind."""
    stack: list[tuple[float, str]] = []
    now = 0.0
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        begin = event["ts"]
        while stack and stack[-1][0] <= begin:
            end, kind = stack.pop()
            yield now, end, kind
            now = max(now, end)
        if stack:
            yield now, begin, stack[-1][1]
        now = begin
        above = stack[-1][1] if stack else ""
        stack.append((begin + event["dur"], "data" if above == "data" else _kind(event, above)))
    while stack:
        end, kind = stack.pop()
        yield now, end, kind
        now = max(now, end)


def _kind(event: dict[str, Any], above: str) -> str:
    name = str(event["name"])
    if name == DATA:
        return "data"
    if name.startswith(_POINT_TO_POINT):
        return "p2p"
    if above in ("comm", "p2p"):
        return above
    if name.startswith(_COLLECTIVE):
        return "comm"
    return "compute" if event.get("cat") == "cpu_op" else "between"


def _of_step(
    step: int, begin: float, end: float, compute: Spans, data: Spans, p2p: Spans,
    communication: dict[str, Spans],
) -> Shares:  # fmt: skip
    left: Spans = [(begin, end)]

    def take(spans: Spans) -> float:
        nonlocal left
        before = _length(left)
        left = _without(left, spans)
        return (before - _length(left)) / 1e6

    computed, waited, bubble = take(compute), take(data), take(p2p)
    exposed = {name: take(spans) for name, spans in communication.items()}
    exposed = {name: seconds for name, seconds in exposed.items() if seconds > 0}
    return Shares(step, computed, exposed, bubble, waited, _length(left) / 1e6)


def _group(event: dict[str, Any]) -> str:
    return _dimension(str(event.get("args", {}).get("Process Group Description", UNKNOWN)))


def _dimension(group: str) -> str:
    """Return the dimension in torch's description of a process group: ``mesh_tp`` is ``tp``."""
    named = {"default_pg": "world", "mesh_loss_mesh": "loss", "undefined": UNKNOWN, "": UNKNOWN}
    return named.get(group, group.removeprefix("mesh_"))


def _union(spans: Iterable[tuple[float, float]]) -> Spans:
    found: Spans = []
    for begin, end in sorted(spans):
        if end <= begin:
            continue
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found


def _without(spans: Spans, taken: Spans) -> Spans:
    found: Spans = []
    at = 0
    for begin, end in spans:
        while at < len(taken) and taken[at][1] <= begin:
            at += 1
        look = at
        while look < len(taken) and taken[look][0] < end:
            if taken[look][0] > begin:
                found.append((begin, taken[look][0]))
            begin = max(begin, taken[look][1])
            look += 1
        if begin < end:
            found.append((begin, end))
    return found


def _length(spans: Spans) -> float:
    return sum(end - begin for begin, end in spans)
