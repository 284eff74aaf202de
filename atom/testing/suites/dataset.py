"""The suite of a dataset: every document once, in an order that depends only on the seed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from atom.errors import UserError
from atom.plugin import Contents, Document, LaneSource
from atom.registry.configured import configured
from atom.registry.host import Component
from atom.testing import isolated, reading
from atom.testing.options import Options
from atom.testing.reading import LANES, Key, Ranks
from atom.testing.suites.component import ComponentSuite

FEWEST = 2 * LANES
"""Minimum documents of the sample; fewer cannot test their order."""

STEPS = 12
"""About 33 documents per lane: a small sample is read for several epochs."""

STOPS = (1, 5)
"""Steps after which a run is stopped and resumed."""

Pass = Callable[..., list[list[Key]]]


class DatasetSuite(Options, ComponentSuite):
    """The contract of a dataset.

    The whole dataset is read several times, so the conformance line or ``sample`` should name
    something small: between 16 documents and a few thousand, in several files if it is read by
    file.

    Options, given by ``conformance(…).having(…)``:

    Attributes:
        sample: writes data into a given folder, and returns the parameters to read it with.
        change: changes the data of ``sample`` in a folder, and returns the parameters to read it
            with. The digest must then differ. If the sample cannot be changed, return parameters
            that read other documents.
        bad_sample: writes records into a folder, one of them invalid, and returns the parameters
            to read them with, the name of the invalid record's file, and its line.
        weighted: whether an epoch can contain a document several times or not at all, as in a
            weighted mixture. Otherwise each document occurs once per epoch.
    """

    kind = "dataset"
    options = ("sample", "change", "bad_sample", "weighted")
    weighted: ClassVar[bool] = False

    change: ClassVar[Callable[[Path], Mapping[str, Any]] | None] = None
    bad_sample: ClassVar[Callable[[Path], tuple[Mapping[str, Any], str, int]] | None] = None

    @pytest.fixture(scope="class")
    @classmethod
    def source(cls, component: Component, config: BaseModel | None) -> LaneSource:
        """The source, checked."""
        source = reading.source(component, config)
        try:
            source.check()
        except UserError as error:
            pytest.fail(error.sentence(), pytrace=False)
        documents = len(list(islice(source.lane(0, 1, seed=0, epoch=0), FEWEST)))
        if documents < FEWEST:
            pytest.fail(
                f"{documents} documents are too few to see an order in; give the suite a sample of "
                f"at least {FEWEST}",
                pytrace=False,
            )
        return source

    @pytest.fixture(scope="class")
    @classmethod
    def elsewhere(
        cls, component: Component, config: BaseModel | None
    ) -> Iterator[Callable[[], tuple[str, list[list[list[Key]]], bool]]]:
        """The result of another process, which runs in parallel with the tests."""
        process = reading.start(component, config, [(LANES, 0, 0), (LANES, 7, 2)])
        results: list[Any] = []

        def result() -> Any:
            if not results:
                results.append(isolated.result(process))
            return results[0]

        yield result
        if process.poll() is None:
            process.kill()
            process.communicate()

    @pytest.fixture(scope="class")
    @classmethod
    def lanes(cls, source: LaneSource) -> Pass:
        """Return the documents of each lane of an epoch, read once for the whole suite."""
        read: dict[tuple[int, int, int], list[list[Key]]] = {}

        def lanes(count: int = LANES, *, seed: int = 0, epoch: int = 0) -> list[list[Key]]:
            if (count, seed, epoch) not in read:
                read[count, seed, epoch] = reading.lanes(source, count, seed=seed, epoch=epoch)
            return read[count, seed, epoch]

        return lanes

    @pytest.fixture(scope="class")
    @classmethod
    def uninterrupted(cls, component: Component, config: BaseModel | None) -> list[reading.Rows]:
        """The training data of one rank without interruption."""
        return Ranks(component, config, 1).steps(STEPS)

    # ------------------------------------------------------------------------ documents

    def test_documents_are_text(self, source: LaneSource) -> None:
        for document in islice(source.lane(0, 1, seed=0, epoch=0), 1000):
            assert isinstance(document, Document)
            assert isinstance(document.text, str)
            assert document.id, "a document without an id cannot be named to a person"

    def test_contents_are_what_is_read(self, source: LaneSource, lanes: Pass) -> None:
        """A source that reports its number of documents reports that of an epoch."""
        contents = getattr(source, "contents", None)
        if contents is None:
            return
        told = contents()
        assert isinstance(told, Contents)
        read = len(lanes(1)[0])
        words = f"contents() says {told.documents} documents, and a pass has {read}"
        assert told.documents in (None, read), words

    @pytest.mark.parametrize("count", [1, 3, 7, LANES])
    def test_lanes_share_the_documents_out(self, count: int, lanes: Pass) -> None:
        """Each document is in exactly one lane, for any number of lanes; in a weighted epoch, all
        lanes together have it as often as a single lane does."""
        dealt = lanes(count)
        found = Counter(chain.from_iterable(dealt))
        if not self.weighted:
            twice = [name for (name, _), times in found.items() if times > 1]
            assert not twice[:8], "documents that come twice in a pass (a shard read by two lanes?)"
        assert all(dealt), "lanes with nothing to read"
        other = Counter(chain.from_iterable(lanes(3 if count == 1 else 1)))
        assert not _names(other - found), f"documents that are in none of {count} lanes"
        assert not _names(found - other), f"documents that only {count} lanes have"

    def test_lanes_share_out_every_pass(self, lanes: Pass) -> None:
        """The second epoch has the documents of the first; a weighted epoch is split over the lanes
        too.
        """
        one, several = lanes(1, epoch=1) if self.weighted else lanes(), lanes(epoch=1)
        first, second = (Counter(chain.from_iterable(dealt)) for dealt in (one, several))
        assert not _names(first - second), "documents that the second pass leaves out"
        assert not _names(second - first), "documents that only the second pass has"

    def test_a_lane_starts_anywhere(self, source: LaneSource, lanes: Pass) -> None:
        """``start`` counts the documents of the lane, so that a run can resume at its position."""
        for lane, whole in enumerate(lanes()):
            for start in {0, 1, 2, len(whole) // 2, len(whole) - 1, len(whole)}:
                rest = source.lane(lane, LANES, seed=0, epoch=0, start=start)
                read = [reading.key(document) for document in islice(rest, 3)]
                assert read == whole[start : start + 3], f"lane {lane} from document {start}"

    # ------------------------------------------------------------------------ order

    def test_same_order_for_the_same_seed(
        self, component: Component, config: BaseModel | None, lanes: Pass
    ) -> None:
        """A new source with lanes read in another order yields the same documents."""
        again = reading.source(component, config)
        again.check()
        read = [
            [reading.key(document) for document in again.lane(lane, LANES, seed=0, epoch=0)]
            for lane in reversed(range(LANES))
        ]
        _check_same(read[::-1], lanes())

    def test_same_order_in_another_process(self, lanes: Pass, elsewhere: Callable[[], Any]) -> None:
        """The order does not depend on rank or hash seed."""
        _, theirs, _ = elsewhere()
        for read, expected in zip(theirs, [lanes(), lanes(seed=7, epoch=2)], strict=True):
            _check_same([[(name, text) for name, text in lane] for lane in read], expected)

    def test_making_the_source_imports_no_torch(self, elsewhere: Callable[[], Any]) -> None:
        """It is created before the ranks start, by a process that must stay small."""
        *_, torch = elsewhere()
        assert not torch, "import torch where it is used"

    def test_other_order_for_another_seed(self, lanes: Pass) -> None:
        same = lanes(seed=1) == lanes(seed=0)
        assert not same, "the seed changes nothing"

    def test_other_order_in_another_pass(self, lanes: Pass) -> None:
        same = lanes(epoch=1) == lanes(epoch=0)
        assert not same, "every pass has the same order"

    # ------------------------------------------------------------------------ layouts

    @pytest.mark.parametrize("dp", [2, 4])
    def test_layouts_read_the_same(
        self,
        dp: int,
        component: Component,
        config: BaseModel | None,
        source: LaneSource,  # noqa: ARG002 (checked)
        uninterrupted: list[reading.Rows],
    ) -> None:
        """Data-parallel ranks together train on the same data as one rank, step by step."""
        read = Ranks(component, config, dp).steps(STEPS)
        assert not _differing(read, uninterrupted), "steps that train on other sequences"

    @pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 4), (4, 2), (2, 1)])
    def test_a_run_goes_on_where_it_stopped(
        self,
        before: int,
        after: int,
        component: Component,
        config: BaseModel | None,
        source: LaneSource,  # noqa: ARG002 (checked)
        uninterrupted: list[reading.Rows],
    ) -> None:
        """A run that stops within an epoch and resumes, even on another number of data-parallel
        ranks, neither loses nor repeats a document."""
        for stop in STOPS:
            stopped = Ranks(component, config, before)
            stopped.steps(stop)
            resumed = Ranks(component, config, after)
            state = stopped.state()
            try:
                resumed.load(state)
            except KeyError as error:
                pytest.fail(f"the state of {before} ranks has no {error} for {after}")
            other = _differing(resumed.steps(STEPS - stop), uninterrupted[stop:], stop + 1)
            assert not other, f"steps that differ in a run that was stopped after {stop}"

    # ------------------------------------------------------------------------ digest, mistakes

    def test_digest_is_the_same_for_the_same_documents(
        self, component: Component, config: BaseModel | None, elsewhere: Callable[[], Any]
    ) -> None:
        digest = reading.source(component, config).check()
        assert isinstance(digest, str)
        assert digest, "check() returns no digest"
        again = reading.source(component, config).check()
        assert again == digest, "another digest of the same documents"
        theirs, *_ = elsewhere()
        assert theirs == digest, "another digest in another process"

    def test_digest_does_not_tell_where_or_when(self, component: Component, tmp_path: Path) -> None:
        """The digest covers content, so a run can resume with data that was moved or touched."""
        cls = type(self)
        if cls.sample is None:
            pytest.skip("the conformance line has no `sample`, which writes what is to be read")
        found: list[tuple[str, list[str]]] = []
        for name in ("one", "other"):
            folder = tmp_path / name
            folder.mkdir()
            config = configured(component, cls.parameters | dict(cls.sample(folder)))
            for path in folder.rglob("*"):
                os.utime(path, ns=(len(found), len(found)))
            source = reading.source(component, config)
            digest = source.check()
            texts = [text for _, text in chain.from_iterable(reading.lanes(source, 1))]
            found.append((digest, texts))
        (one, texts), (other, same) = found
        if texts != same:
            pytest.skip("`sample` does not write the same twice")
        assert one == other, "the digest is of where the documents are, or when they were written"

    def test_digest_changes_with_the_documents(
        self, component: Component, config: BaseModel | None, tmp_path: Path
    ) -> None:
        """A tokenizer trained on other documents is not reused for these."""
        cls = type(self)
        if cls.change is None:
            pytest.skip("the conformance line has no `change`, which changes the documents")
        folder = tmp_path / "sample"
        folder.mkdir()
        if cls.sample is not None:
            config = configured(component, cls.parameters | dict(cls.sample(folder)))
        before = reading.source(component, config)
        digest, (documents,) = before.check(), reading.lanes(before, 1)
        changed = configured(component, cls.parameters | dict(cls.change(folder)))
        # A separate process, like a separate run, because a source can cache what it has read.
        other, ((theirs,),), _ = isolated.result(reading.start(component, changed, [(1, 0, 0)]))
        same = Counter(map(tuple, theirs)) == Counter(documents)
        assert not same, "`change` changes no document"
        assert other != digest, "the digest is that of other documents"

    def test_a_bad_record_is_named(self, component: Component, tmp_path: Path) -> None:
        """An unreadable record is reported in one sentence, with file and line."""
        cls = type(self)
        if cls.bad_sample is None:
            pytest.skip("the conformance line has no `bad_sample`, which writes a bad record")
        folder = tmp_path / "sample"
        folder.mkdir()
        parameters, file, line = cls.bad_sample(folder)
        config = configured(component, cls.parameters | dict(parameters))
        with pytest.raises(UserError) as refused:
            _read_whole(component, config)
        sentence = refused.value.sentence()
        assert "\n" not in sentence
        assert Path(file).name in sentence, "the sentence does not name the file"
        words = sentence.replace(str(folder), "").replace(":", " ").replace(",", " ").split()
        assert str(line) in words, "the sentence does not name the line"


def _read_whole(component: Component, config: BaseModel | None) -> None:
    source = reading.source(component, config)
    source.check()
    for _ in source.lane(0, 1, seed=0, epoch=0):
        pass


def _check_same(read: list[list[Key]], expected: list[list[Key]]) -> None:
    """Assert that the lanes are equal, and report the first difference; pytest would print them
    whole.
    """
    for lane, (found, wanted) in enumerate(zip(read, expected, strict=True)):
        for place, (one, other) in enumerate(zip_longest(found, wanted)):
            assert one == other, f"document {place} of lane {lane} is another"


def _differing(read: list[reading.Rows], expected: list[reading.Rows], first: int = 1) -> list[int]:
    """Return the numbers of the steps that differ."""
    pairs = zip(read, expected, strict=True)
    return [step for step, (rows, wanted) in enumerate(pairs, first) if rows != wanted]


def _names(keys: Counter[Key]) -> list[str]:
    return sorted(name for name, _ in keys)[:8]


CONFORMANCE = DatasetSuite
