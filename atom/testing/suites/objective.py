"""The suite of an objective: documents become tokens, and every layout trains alike."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from pydantic import BaseModel

from atom.errors import UserError
from atom.io.chat_files import TEMPLATE
from atom.plugin import (
    Document,
    DocumentEncoder,
    Example,
    Objective,
    ObjectiveContext,
    TemplateContext,
)
from atom.registry.host import Component
from atom.testing import partners, runs
from atom.testing.applicable import where
from atom.testing.opened import opened
from atom.testing.options import Options
from atom.testing.partners import data, tokenizer
from atom.testing.suites.component import ComponentSuite

LAYOUTS = ("fsdp", "tp", "pp", "cp")


class ObjectiveSuite(Options, ComponentSuite):
    """The contract of an objective. Its runs have sequences of :data:`atom.testing.runs.SEQ_LEN`
    tokens, of one character each.

    Options, given by ``conformance(…).having(…)``:

    Attributes:
        records: for an objective that reads records: some of them, of which each fits a sequence.
        bad_record: a record that is refused, because it has not what the objective needs.
        answers: for each record, the texts that are trained on, with what ends them. A conversation
            is then shortened between two of them only.
        architecture: the section of a run that it is tested on; by default a small dense decoder.
    """

    kind = "objective"
    options = ("records", "bad_record", "answers", "architecture")
    records: ClassVar[Sequence[Mapping[str, Any]]] = ()
    bad_record: ClassVar[Mapping[str, Any] | None] = None
    answers: ClassVar[Sequence[Sequence[str]]] = ()
    architecture: ClassVar[Mapping[str, Any]] = {
        "name": f"{partners.PACKAGE}:{partners.ARCHITECTURES[0]}"
    }

    def test_documents_become_tokens(
        self, component: Component, config: BaseModel | None, tmp_path: Path
    ) -> None:
        """Each document has ids of the vocabulary, and at least one to predict that is not the
        first; it has as many sequences as are declared, each with one to predict."""
        for document, example in self._examples(component, config, tmp_path):
            tokens = np.asarray(example.tokens)
            assert tokens.ndim == 1, f"{document.id}: tokens are no list of ids"
            assert ((tokens >= 0) & (tokens < partners.VOCAB_SIZE)).all(), document.id
            _check_sequences(example, _declared(component), document.id)
            if example.trained is None:
                continue
            trained = np.asarray(example.trained)
            assert trained.shape == tokens.shape, f"{document.id}: trained has another length"
            assert trained.dtype == np.bool_, f"{document.id}: trained is no array of bool"
            assert trained[1:].any(), f"{document.id}: nothing is trained on"

    @where(lambda suite, _: bool(suite.answers))
    def test_trains_on_the_answers(
        self, component: Component, config: BaseModel | None, tmp_path: Path
    ) -> None:
        """The tokens that are trained on are those of the given answers, ends included."""
        examples = self._examples(component, config, tmp_path)
        for (document, example), answers in zip(examples, self.answers, strict=True):
            assert _trained_texts(example) == list(answers), f"{document.id}: other texts"

    def test_is_the_same_again(
        self, component: Component, config: BaseModel | None, tmp_path: Path
    ) -> None:
        """A second encoder, and a second call, return the same tokens."""
        first = self._examples(component, config, tmp_path)
        second = self._examples(component, config, tmp_path)
        for (document, one), (_, other) in zip(first, second, strict=True):
            assert np.array_equal(one.tokens, other.tokens), document.id
            assert _equal(one.trained, other.trained), document.id

    @where(lambda _, component: component.declaration.packings[0] == "best_fit")
    def test_fits_a_sequence(
        self, component: Component, config: BaseModel | None, tmp_path: Path
    ) -> None:
        """A document that would be cut is shortened, or counted as one that does not fit."""
        whole = self._examples(component, config, tmp_path)
        longest = max(len(example.tokens) for _, example in whole)
        for seq_len in (longest // 2, longest - 2):
            made = self._encoder(component, config, tmp_path, seq_len)
            for document, _ in whole:
                example = made.encode(document)
                if example is not None:
                    assert len(example.tokens) <= seq_len + 1, document.id
                    assert example.trained is None or example.trained[1:].any(), document.id
            for (document, _), answers in zip(whole, self.answers, strict=bool(self.answers)):
                if (example := made.encode(document)) is not None:
                    kept = _trained_texts(example)
                    assert kept == list(answers[: len(kept)]), f"{document.id}: an answer is cut"

    @where(lambda _, component: component.declaration.reads == "records")
    def test_bad_documents_are_named(
        self, component: Component, config: BaseModel | None, tmp_path: Path
    ) -> None:
        """Text, and a bad record, are refused by a ``UserError`` that names the document."""
        made = self._encoder(component, config, tmp_path)
        bad = [Document("text", "data:1")]
        if self.bad_record is not None:
            bad.append(Document("{}", "data:1", record=self.bad_record))
        for document in bad:
            with pytest.raises(UserError) as refused:
                made.encode(document)
            assert "data:1" in refused.value.sentence()

    @pytest.mark.slow
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts_train_alike(
        self, component: Component, config: BaseModel | None, layout: str
    ) -> None:
        """Losses and gradients of a layout are those of one rank."""
        changed = self._sections(component, config)
        rows = runs.train(runs.sections(dict(self.architecture), runs.LAYOUTS[layout], **changed))
        runs.assert_same(rows, runs.train(runs.sections(dict(self.architecture), **changed)))

    # ------------------------------------------------------------------------ what tests share

    def _sections(self, component: Component, config: BaseModel | None) -> dict[str, Any]:
        parameters = config.model_dump(mode="json") if config is not None else {}
        changed: dict[str, Any] = {
            "objective": {"name": component.address} | parameters,
            "data": {"packing": _declared(component).packings[0]},
        }
        if _declared(component).reads == "records":
            dataset = {"name": f"{partners.PACKAGE}:records", "records": list(self.records)}
            sets = {"sets": {"more": dataset}, "interval": runs.STEPS, "tokens": 180}
            changed |= {"dataset": dataset, "validation": sets}
        return changed

    def _documents(self, component: Component) -> list[Document]:
        if _declared(component).reads == "text":
            return list(data.Sentences().lane(0, 64, seed=0, epoch=0))
        assert self.records, "this objective reads records: conformance(…).having(records=[…])"
        return [data.document(number, record) for number, record in enumerate(self.records)]

    def _encoder(
        self,
        component: Component,
        config: BaseModel | None,
        folder: Path,
        seq_len: int = runs.SEQ_LEN,
    ) -> DocumentEncoder:
        chosen = opened(component, config)
        if _declared(component).template is not None:
            template = chosen.call("template", TemplateContext(files={}))
            if template is not None:
                (folder / TEMPLATE).write_text(template)
        context = ObjectiveContext(
            tokenizer=tokenizer.build(None).build(tokenizer_path=str(folder)),
            files=folder,
            seq_len=seq_len,
        )
        made: DocumentEncoder = chosen.call("encoder", context)
        return made

    def _examples(
        self, component: Component, config: BaseModel | None, folder: Path
    ) -> list[tuple[Document, Example]]:
        made = self._encoder(component, config, folder)
        found = []
        for document in self._documents(component):
            example = made.encode(document)
            assert example is not None, f"{document.id} does not fit {runs.SEQ_LEN} tokens"
            found.append((document, example))
        return found


def _declared(component: Component) -> Objective:
    return component.declaration  # type: ignore[return-value]


def _check_sequences(example: Example, declared: Objective, name: str) -> None:
    """Check that an example has its sequences, and each at least one token to predict."""
    bounds = [0, *example.begins, len(example.tokens)]
    assert len(bounds) - 1 == declared.sequences, f"{name}: {len(bounds) - 1} sequences"
    for begin, end in itertools.pairwise(bounds):
        assert end - begin > 1, f"{name}: a sequence has fewer than two tokens"
        if example.trained is not None:
            predicted = example.trained[begin + 1 : end]
            assert predicted.any(), f"{name}: nothing of a sequence is trained on"


def _trained_texts(example: Example) -> list[str]:
    """Return the text of each run of trained tokens."""
    trained = np.ones(len(example.tokens), bool) if example.trained is None else example.trained
    text = tokenizer.build(None).build(tokenizer_path="")
    runs_of = itertools.groupby(zip(example.tokens.tolist(), trained, strict=True), lambda p: p[1])
    return [text.decode([token for token, _ in run]) for learnt, run in runs_of if learnt]


def _equal(one: Any, other: Any) -> bool:
    return (one is None) == (other is None) and (one is None or np.array_equal(one, other))


CONFORMANCE = ObjectiveSuite
