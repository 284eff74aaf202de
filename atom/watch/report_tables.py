"""Write the tables of a report: events, settings, and environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from atom.errors import shown
from atom.recipe import batches
from atom.recipe import settings as run_settings
from atom.recipe.resolved import Resolved
from atom.run_dir import events, profile
from atom.watch import mixture_rows
from atom.watch.markup import Child, element
from atom.watch.mesh_picture import DIMENSIONS
from atom.watch.record import Record
from atom.watch.screen import SPLITS

_MOST_EVENTS = 200
_MOST_RANKS = 16
_KEPT = ("time", "event", "host", "step", "restart")


def table(
    heads: Sequence[str], rows: Iterable[Sequence[Child]], numbers: Sequence[int] = ()
) -> Element:
    """Return a table that scrolls on a narrow screen; ``numbers`` are right-aligned columns."""

    def cells(tag: str, row: Sequence[Child], **more: str) -> Iterable[Element]:
        for column, cell in enumerate(row):
            kind = "number" if column in numbers else None
            yield element(tag, cell, class_=kind, **more)

    named = any(heads)
    head = element("thead", element("tr", *cells("th", heads, scope="col"))) if named else None
    body = element("tbody", *(element("tr", *cells("td", row)) for row in rows))
    return element("div", element("table", head, body), class_="scroll")


def happened(record: Record) -> list[Element]:
    """Return the events; saved checkpoints are only counted."""
    saved = [event for event in record.happened if event.get("event") == events.CHECKPOINT_SAVED]
    others = [event for event in record.happened if event not in saved]
    rows = [
        (
            str(event.get("time", ""))[:19].replace("T", " "),
            str(event.get("event", "")).replace("_", " "),
            shown(event.get("step", "")),
            _words(event),
        )
        for event in others[:_MOST_EVENTS]
    ]
    found = [table(("time (UTC)", "event", "step", ""), rows, numbers=(2,))]
    if len(others) > _MOST_EVENTS:
        left = f"{len(others) - _MOST_EVENTS:,} more are in {events.FILE_NAME}."
        found.append(element("p", left, class_="faint"))
    if saved:
        steps = [str(event.get("step")) for event in saved]
        listed = ", ".join(steps if len(steps) <= 12 else [*steps[:5], "…", *steps[-5:]])
        found.append(element("p", f"Checkpoints saved: {len(saved):,}, of steps {listed}."))
    return found


def degrees(record: Record, resolved: Resolved) -> Element:
    """Return the dimensions of the mesh."""
    rows: list[Sequence[Child]] = []
    stride = resolved.world_size
    for name, key in DIMENSIONS:
        degree = resolved.degrees.get(key, 1)
        stride //= max(degree, 1)
        apart = f"ranks {stride} apart" if degree > 1 else "not split"
        rows.append((element("code", name), str(degree), SPLITS[name] if degree > 1 else "", apart))
    experts = record.run.parallelism.expert_parallel_degree or 1
    if experts != 1:
        words = (SPLITS["ep"], "ranks of the dimensions above")
        rows.append((element("code", "ep"), shown(experts), *words))
    return table(("dimension", "degree", "splits", ""), rows, numbers=(1,))


def kernels(record: Record) -> list[Element]:
    """Return the kernel of each operation, and the setting that selected it."""
    if record.run.resolved is None:
        return []
    wished = record.run.kernels
    rows = []
    for operation, kernel in sorted(record.run.resolved.kernels.items()):
        key = operation if operation in wished else "default"
        wish = wished.get(key, "auto")
        words = ", ".join(wish) if isinstance(wish, list) else wish
        if part := record.run.resolved.kernels_partial.get(operation):
            operation = f"{operation} ({part})"
        rows.append((operation, element("code", kernel), element("code", f"kernels.{key}={words}")))
    why = (
        "For each operation, the first kernel in the order of preference that fits the device, "
        f"the layout and the packages, on {record.run.resolved.device}."
    )
    return [table(("operation", "kernel", "wished"), rows), element("p", why, class_="faint")]


def data(record: Record) -> list[Element]:
    """Return the dataset that was read."""
    run, rows = record.run, []
    for kind in ("dataset", "tokenizer"):
        component = getattr(run, kind)
        told = ", ".join(f"{name}={shown(value)}" for name, value in component.parameters.items())
        rows.append((kind, component.name, told))
    if run.resolved is not None and (mixed := run.resolved.mixture) is not None:
        most = len(mixed.sources)
        rows += [("source", name, words) for name, words in mixture_rows.sources(mixed, most)]
        rows += [("stage", begin, words) for begin, words in mixture_rows.stages(mixed, most)]
    read = run.resolved.data if run.resolved is not None else None
    if read is not None:
        for what, count in (("files", read.files), ("documents", read.documents)):
            if count is not None:
                rows.append((what, f"{count:,}", ""))
        for what, label in (("licence", read.licence), ("origin", read.origin)):
            if label is not None:
                rows.append((what, label, ""))
        rows += [("left out", phrase, "") for phrase in read.left_out]
    length = run.training.seq_len
    if run.resolved is not None:
        of = batches.batches(run, run.resolved.global_batch_size)
        rows.append(("vocabulary", f"{run.resolved.vocab_size:,} ids", ""))
        sizes = dict.fromkeys(of.size(step) for step in (1, run.training.steps))
        tokens, sequences = (" to ".join(f"{n * by:,}" for n in sizes) for by in (length, 1))
        rows.append(("batch of a step", f"{tokens} tokens", f"{sequences} sequences of {length:,}"))
    found = record.status
    if found.tokens_seen is not None:
        rows.append(("seen", f"{found.tokens_seen:,} tokens", f"{found.step:,} steps"))
    return [table(("", "", ""), [*rows, *_packed(record), *_left_out(record)])]


def _packed(record: Record) -> Iterator[tuple[str, str, str]]:
    """Yield a row on how documents became sequences."""
    told = [event for event in record.happened if event.get("event") == events.PACKED]
    parts, cut = (sum(event.get(key) or 0 for event in told) for key in ("parts", "cut"))
    sequences = sum(event.get("sequences") or 0 for event in told)
    if sequences:
        padding = sum((event.get("sequences") or 0) * event["padding"] for event in told)
        words = f"{padding / sequences:.2%} padding, {cut:,} of {parts:,} documents cut"
        yield "packing", words, f"{record.run.data.packing}; the {sequences:,} sequences of rank 0"


def _left_out(record: Record) -> Iterator[tuple[str, str, str]]:
    """Yield rows on the documents that ranks left out."""
    bad = [event for event in record.happened if event.get("event") == events.BAD_DOCUMENT]
    if bad:
        # A document recurs in every epoch, and after a rollback.
        number = len({event.get("document") for event in bad})
        of_a_rank = Counter(event.get("rank") for event in bad)
        more = max(of_a_rank.values()) >= events.MOST_BAD_DOCUMENTS
        words = f"{'at least ' * more}{number:,} bad document{'s' * (number != 1)}"
        yield "left out", words, str(bad[-1].get("reason", ""))
    empty = [event for event in record.happened if event.get("event") == events.WITHOUT_TEXT]
    kinds = {
        "documents": "without text",
        "short": "of a single token",
        "long": "of which nothing fits a sequence",
    }
    for key, what in kinds.items():
        if number := sum(event.get(key, 0) for event in empty):
            yield "left out", f"{number:,} documents {what}", "counted in each pass"


def profiled(record: Record) -> list[Element]:
    """Return how the time of the profiled steps was spent, as fractions of a step."""
    if not any(record.profile.values()):
        return []
    ranks = {rank: profile.mean(steps) for rank, steps in record.profile.items() if steps}
    steps = sorted({one.step for found in record.profile.values() for one in found})
    dimensions = sorted({name for one in ranks.values() for name in one.communication})

    def row(name: str, one: profile.Shares) -> list[str]:
        exposed = [one.communication.get(dimension, 0.0) for dimension in dimensions]
        parts = [one.compute, *exposed, one.bubble, one.data, one.other]
        whole = one.seconds or 1.0
        return [name, f"{one.seconds:.3f}", *(f"{part / whole:.1%}" for part in parts)]

    shown = list(ranks.items())[:_MOST_RANKS]
    rows = [row("mean", profile.mean(list(ranks.values())))] if len(ranks) > 1 else []
    rows += [row(f"rank {rank}", one) for rank, one in shown]
    exposed = [f"{name} exposed" for name in dimensions]
    heads = ["", "s/step", "compute", *exposed, "bubble", "data", "other"]
    words = (
        f"Steps {steps[0]} to {steps[-1]}, slowed down by the profiler. Exposed: a rank "
        "communicates over this dimension of the mesh, and computes nothing meanwhile (unknown: "
        "the trace does not name the dimension). Bubble: it waits for a neighbouring pipeline "
        "stage. Other: Python between operators on a CPU, an idle device on a GPU."
    )
    if len(ranks) > len(shown):
        words += f" The first {len(shown)} of {len(ranks):,} ranks are shown."
    found = table(heads, rows, numbers=range(1, len(heads)))
    return [found, element("p", words, class_="faint")]


def settings(record: Record) -> list[Element]:
    """Return the settings with their origins: chosen settings first, defaults folded."""
    values = run_settings.flat(record.run)
    origins = record.origins
    if origins is None:
        rows = [(element("code", key), element("code", shown(v))) for key, v in values.items()]
        words = (
            "The origins of the settings are unknown: this run was composed before ATOM wrote "
            "origins.json, or not by atom train. Resuming the run writes the file."
        )
        return [element("p", words, class_="faint"), table(("setting", "value"), rows)]
    rank = {"command line": 0, "default": 2}
    groups: dict[int, list[Sequence[Child]]] = {0: [], 1: [], 2: []}
    for key, value in values.items():
        origin = str(origins.get(key, "default"))
        row = (element("code", key), element("code", shown(value)), _place(origin))
        groups[rank.get(origin, 1)].append(row)
    heads = ("setting", "value", "from")
    found = [table(heads, groups[0])] if groups[0] else []
    for title, of_kind in (
        ("from configuration files", groups[1]),
        ("left at their defaults", groups[2]),
    ):
        if of_kind:
            summary = element("summary", f"{len(of_kind)} settings {title}")
            found.append(element("details", summary, table(heads, of_kind)))
    return found


def environment(record: Record) -> list[Element]:
    """Return the content of ``lock.json``."""
    lock = record.lock
    if not lock:
        return []
    rows: list[Sequence[Child]] = [
        (name, shown(lock[name]), "")
        for name in ("platform", "python", "device", "seed")
        if name in lock
    ]
    for name, git in _repositories(lock):
        changed = "with changes" if git.get("dirty") else "without changes"
        rows.append((f"git commit{name}", element("code", str(git.get("commit"))), changed))
    packages = lock.get("packages")
    if isinstance(packages, dict):
        rows += [(str(name), shown(version), "") for name, version in packages.items()]
    for plugin in lock.get("plugins", []):
        if isinstance(plugin, dict):
            digest = element("code", str(plugin.get("sha256"))[:16])
            rows.append((str(plugin.get("package")), str(plugin.get("version")), digest))
    return [table(("", "", "sha256 of files"), rows)]


def _repositories(lock: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the repositories of a lock; one that an older ATOM wrote has at most one."""
    found = lock.get("repositories")
    listed = found if isinstance(found, dict) else {"": lock.get("git")}
    return [
        (f" of {name}" if name else "", each)
        for name, each in listed.items()
        if isinstance(each, dict)
    ]


def _words(event: dict[str, Any]) -> str:
    """Return the fields of an event other than time, name and step."""
    reason = [str(event["reason"])] if event.get("reason") else []
    others = [
        _told({name: value})
        for name, value in event.items()
        if name not in (*_KEPT, "reason", "documents") and value is not None
    ]
    again = ["ranks restarted"] if event.get("restart") else []
    return "; ".join([*reason, *again, *others])


def _told(value: object) -> str:
    """Return a value of an event in words; a dictionary lists each value with its name."""
    if isinstance(value, dict):
        pairs = (f"{name.replace('_', ' ')} {_told(each)}" for name, each in value.items())
        return ", ".join(pairs)
    return shown(value)


def _place(origin: str) -> str:
    """Return a path relative to its package, which shows the owner of the file."""
    path = Path(origin)
    if not path.is_absolute():
        return origin
    parts = path.parts
    if "conf" in parts:
        at = len(parts) - 1 - parts[::-1].index("conf")
        return str(Path(*parts[max(at - 1, 1) :]))
    return origin
