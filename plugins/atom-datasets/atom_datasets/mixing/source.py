"""``mixture``: the source that holds the sources of other datasets."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import islice

from atom.data.dealing import told
from atom.errors import UserError
from atom.plugin import (
    Contents,
    Dataset,
    Document,
    LaneSource,
    Mixture,
    SourceContext,
)
from atom_datasets.labels import joined
from atom_datasets.mixing.config import MixtureConfig
from atom_datasets.mixing.stages import fitting, stages


def source(config: MixtureConfig, context: SourceContext) -> MixtureSource:
    """Open the sources of a mixture, in the order of their names."""
    opened: dict[str, LaneSource] = {}
    for name in sorted(config.sources):
        key = f"{context.key}.sources.{name}"
        chosen = context.open(Dataset, config.sources[name], key=key)
        if chosen.declaration.build is not None:
            raise UserError(
                "loads its data itself, and cannot be mixed",
                valid="a dataset of text",
                key=f"{key}.name",
                value=chosen.declaration.name,
            )
        opened[name] = chosen.call("source")
        most = config.sources[name].max_repetitions
        if most is not None and callable(getattr(opened[name], "mixture", None)):
            raise UserError(
                "a mixture has no repetitions of its own",
                valid=f"null, and {key}.sources.NAME.max_repetitions",
                key=f"{key}.max_repetitions",
                value=most,
            )
        if isinstance(chosen.config, MixtureConfig) and chosen.config.stages:
            raise UserError(
                "the mixture is part of another one",
                valid="dataset.stages, of the outermost mixture",
                key=f"{key}.stages",
            )
    return MixtureSource(config, opened)


@dataclass(frozen=True)
class MixtureSource:
    """The sources of a mixture by name."""

    config: MixtureConfig
    sources: Mapping[str, LaneSource]
    _digests: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def check(self) -> str:
        """Check all sources; return a digest of their digests."""
        self._digests.update((name, source.check()) for name, source in self.sources.items())
        return _digest(self._digests)

    def digests(self) -> dict[str, str]:
        """Return the digest of each source."""
        found: dict[str, str] = {}
        for name, source in self.sources.items():
            inner: Mapping[str, str] = told(source, "digests", {})
            found |= {f"{name}.{each}": digest for each, digest in inner.items()} or {
                name: self._digests[name]
            }
        return found

    def contents(self) -> Contents:
        """Return the sum of the sources' contents, and the contents of each."""
        each = {name: told(source, "contents", Contents()) for name, source in self.sources.items()}
        flat: dict[str, Contents] = {}
        for name, one in each.items():
            inner = {f"{name}.{source}": of for source, of in one.sources.items()}
            flat |= inner or {name: one}
        return Contents(
            files=_sum([one.files for one in each.values()]),
            documents=_sum([one.documents for one in each.values()]),
            tokens=_sum([one.tokens for one in each.values()]),
            left_out=tuple(
                f"{name}: {phrase}" for name, one in each.items() for phrase in one.left_out
            ),
            sources=flat,
            licence=joined({name: of.licence for name, of in flat.items()}),
            origin=joined({name: of.origin for name, of in flat.items()}),
        )

    def parts(self) -> dict[str, str]:
        """Return the digests of all files: those of source NAME begin with ``NAME/``."""
        found: dict[str, str] = {}
        for name, source in self.sources.items():
            between = "." if hasattr(source, "digests") else "/"
            parts: Mapping[str, str] = told(source, "parts", {})
            found |= {f"{name}{between}{part}": digest for part, digest in parts.items()}
        return found

    def tokenizer(self) -> str | None:
        """Return the digest of the tokenizer of the sources that are stored as tokens.

        Raises:
            UserError: there are several.
        """
        made: dict[str, str] = {}
        for name, source in self.sources.items():
            digest: str | None = told(source, "tokenizer", None)
            if digest is not None:
                made[name] = digest
        if len(set(made.values())) > 1:
            names = ", ".join(f"{name}: {digest[:12]}" for name, digest in made.items())
            raise UserError(
                f"the sources are tokens of different tokenizers ({names})",
                valid="sources that one tokenizer has made",
                key="dataset.sources",
            )
        return next(iter(made.values()), None)

    def mixture(self, *, tokens_per_step: int, steps: int, begin: int) -> Mixture:
        """Return the mixture of a run of ``steps``, of which ``begin`` have read other data.

        Raises:
            UserError: its stages or budgets do not fit the run.
        """
        most = {name: of.max_repetitions for name, of in self.config.sources.items()}
        return Mixture(
            sources=self.sources,
            stages=tuple(fitting(self.config, tokens_per_step, steps, begin)),
            max_epochs={name: times for name, times in most.items() if times is not None},
        )

    def ordered(self, digest: str) -> str:  # noqa: ARG002 (of all sources)
        """Return a digest of the documents that :meth:`lane` yields, and of their weights."""
        digests = {
            name: told(self.sources[name], "ordered", self._digests[name], self._digests[name])
            for name in self._first
        }
        return _digest(digests | {"weights": {n: str(w) for n, w in self._first.items()}})

    def lane(
        self, lane: int, lanes: int, *, seed: int, epoch: int, start: int = 0
    ) -> Iterator[Document]:
        """Yield documents of the first stage's sources, by their weights in characters.

        A tokenizer is trained on them; later stages can change while a run resumes, and its
        tokenizer cannot. Each lane reads all documents.
        """
        return islice(self._mixed(seed, epoch), lane + start * lanes, None, lanes)

    def _mixed(self, seed: int, epoch: int) -> Iterator[Document]:
        """Yield the next document of the source that is furthest behind its weight."""
        behind: list[tuple[Fraction, str, Iterator[Document]]] = []
        for name in self._first:
            documents = self.sources[name].lane(0, 1, seed=seed, epoch=epoch)
            behind.append((Fraction(0), name, documents))
        while behind:
            read, name, documents = behind[0]
            document = next(documents, None)
            if document is None:
                heapq.heappop(behind)
                continue
            yield replace(document, id=f"{name}: {document.id}")
            size = len(document.text) if document.tokens is None else len(document.tokens)
            heapq.heapreplace(behind, (read + size / self._first[name], name, documents))

    @property
    def _first(self) -> dict[str, Fraction]:
        """The weights of the first stage."""
        weights = stages(self.config, 1)[0].weights
        return {name: Fraction(weights[name]) for name in self.sources if weights[name]}


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _digest(recipe: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
