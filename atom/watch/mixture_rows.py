"""Describe the data of a run in rows of text, for the header, the report and a dry run."""

from __future__ import annotations

from atom.recipe.resolved import Mixed, MixedSource, Read, Resolved

_MOST = 12
"""Sources, and shares of a stage, that the header lists."""


def data(dataset: str, resolved: Resolved) -> list[tuple[str, str]]:
    """Return rows of a label and a text: the dataset, and the sources and stages of a mixture."""
    found = [("data", ", ".join(filter(None, (dataset, contents(resolved.data)))))]
    if (mixed := resolved.mixture) is None:
        return found
    read, later = sources(mixed), stages(mixed)
    for label, rows in (("", read), ("stages", later)):
        width = max((len(name) for name, _ in rows), default=0)
        texts = [f"{name:{width}}  {words}" for name, words in rows]
        found += zip([label, *[""] * len(texts)], texts, strict=False)
    return found


def contents(data: Read | None) -> str:
    """Return the size of a dataset in words, as far as the dataset reports it."""
    counts = ((data.documents, "document"), (data.files, "file")) if data else ()
    return " in ".join(f"{n:,} {what}{'s' * (n != 1)}" for n, what in counts if n is not None)


def sources(mixed: Mixed, most: int = _MOST) -> list[tuple[str, str]]:
    """Return a row for each source: its name, and its share, tokens and repetitions in the run."""
    total = sum(source.tokens for source in mixed.sources) or 1
    rows = [(source.name, _source(source, total)) for source in mixed.sources[:most]]
    return [*rows, *_more(len(mixed.sources), most)]


def stages(mixed: Mixed, most: int = _MOST) -> list[tuple[str, str]]:
    """Return a row for each stage, if there are several: its begin, and its shares."""
    if len(mixed.stages) == 1:
        return []
    rows = []
    for stage in mixed.stages:
        largest = sorted(stage.shares.items(), key=lambda share: -share[1])
        words = [f"{name} {_percent(share)}" for name, share in largest[:most]]
        words += [f"{count} {what}" for count, what in _more(len(largest), most)]
        rows.append((f"from step {stage.first_step:,}", f"{stage.name}: {', '.join(words)}"))
    return rows


def _source(source: MixedSource, total: int) -> str:
    words = [_percent(source.tokens / total), f"{source.tokens:,} tokens"]
    if source.repetitions is not None:
        words.append(f"read {source.repetitions:.3g} times")
    if source.documents is not None:
        words.append(f"{source.documents:,} document{'s' * (source.documents != 1)}")
    return ", ".join(words)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _more(count: int, most: int) -> list[tuple[str, str]]:
    return [(f"+{count - most}", "others")] if count > most else []
