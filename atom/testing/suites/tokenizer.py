"""The suite of a tokenizer: every text round-trips, and no text yields a special token."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from atom.errors import UserError
from atom.plugin import PreparedTokenizer
from atom.registry.host import Component
from atom.testing import isolated, texts, tokenizing
from atom.testing.options import Options
from atom.testing.suites.component import ComponentSuite
from atom.testing.texts import examples
from atom.testing.tokenizing import Specials, encode

AT_ONCE = 3
"""Number of runs that prepare the same tokenizer at the same time."""


class Elsewhere:
    """The result of another process, which runs in parallel with the tests."""

    def __init__(self, process: Any) -> None:
        self._process = process
        self._results: list[Any] = []

    def result(self) -> Any:
        if not self._results:
            self._results.append(isolated.result(self._process))
        return self._results[0]

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


class TokenizerSuite(Options, ComponentSuite):
    """The contract of a tokenizer. It is prepared on a few hundred documents of the kit.

    Options, given by ``conformance(…).having(…)``:

    Attributes:
        lossy: why some texts do not round-trip, if that is declared. The tests that require it are
            skipped with the reason.
        special_tokens: spelling -> id of special tokens other than BOS, EOS and those that Hugging
            Face's library marks. No text may yield their ids.
        sample: see :class:`atom.testing.suites.component.ComponentSuite`.
    """

    kind = "tokenizer"
    options = ("lossy", "special_tokens", "sample")

    lossy: ClassVar[str | None] = None
    special_tokens: ClassVar[Mapping[str, int]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def prepared(
        cls,
        component: Component,
        config: BaseModel | None,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> PreparedTokenizer:
        """The prepared tokenizer, with its files where ``prepare`` left them."""
        try:
            return tokenizing.prepare(component, config, tmp_path_factory.mktemp("cache"))
        except UserError as error:
            pytest.fail(error.sentence(), pytrace=False)

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, prepared: PreparedTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The folder of a run with the prepared files in it."""
        return tokenizing.copied(prepared, tmp_path_factory.mktemp("run") / "tokenizer")

    @pytest.fixture(scope="class")
    @classmethod
    def encoded_elsewhere(
        cls, component: Component, config: BaseModel | None, folder: Path
    ) -> Iterator[Elsewhere]:
        found = Elsewhere(tokenizing.start_encoding(component, config, folder, cls.sample_texts()))
        yield found
        found.end()

    @pytest.fixture(scope="class")
    @classmethod
    def prepared_elsewhere(
        cls,
        component: Component,
        config: BaseModel | None,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Iterator[Elsewhere]:
        cache = tmp_path_factory.mktemp("cache")
        found = Elsewhere(tokenizing.start_preparing(component, config, cache, count=AT_ONCE))
        yield found
        found.end()

    @pytest.fixture(scope="class")
    @classmethod
    def tokenizer(
        cls,
        component: Component,
        config: BaseModel | None,
        folder: Path,
        request: pytest.FixtureRequest,
    ) -> Any:
        """torchtitan's tokenizer."""
        tests = [item for item in request.session.items if getattr(item, "cls", None) is cls]
        for name in ("encoded_elsewhere", "prepared_elsewhere"):
            if any(name in getattr(test, "fixturenames", ()) for test in tests):
                request.getfixturevalue(name)  # as early as possible, because it is slow
        return tokenizing.build(component, config, folder)

    @pytest.fixture(scope="class")
    @classmethod
    def specials(cls, tokenizer: Any) -> Specials:
        return Specials.of(tokenizer, dict(cls.special_tokens))

    @classmethod
    def sample_texts(cls) -> list[str]:
        """Return the texts on which two tokenizers are compared."""
        return texts.samples([*texts.SPELLINGS, *cls.special_tokens])

    def lossless(self) -> None:
        """Skip the test if texts need not round-trip."""
        if self.lossy is not None:
            pytest.skip(f"{self.name} does not give every text back: {self.lossy}")

    # ------------------------------------------------------------------------ text and back

    def test_any_text_comes_back(self, tokenizer: Any, specials: Specials) -> None:
        """Encoding and decoding a text returns it unchanged: all planes, marks, control
        characters.
        """
        self.lossless()

        @examples
        @given(texts.any_text([*texts.SPELLINGS, *specials.spellings]))
        def comes_back(text: str) -> None:
            back = tokenizer.decode(encode(tokenizer, text))
            assert back == text

        comes_back()

    def test_every_character_comes_back(self, tokenizer: Any) -> None:
        self.lossless()
        for text in texts.every_character():
            back = tokenizer.decode(encode(tokenizer, text))
            if back != text:
                lost = [c for c in text if tokenizer.decode(encode(tokenizer, f"a{c}")) != f"a{c}"]
                points = ", ".join(f"U+{ord(character):04X}" for character in lost[:8])
                pytest.fail(f"characters that do not come back: {points or repr(text)}")

    def test_no_text_has_no_ids(self, tokenizer: Any) -> None:
        assert encode(tokenizer, "") == []
        assert tokenizer.decode([]) == ""

    @pytest.mark.parametrize("what", ["documents", "one word", "four bytes a character"])
    def test_a_megabyte_is_a_text_like_any_other(self, what: str, tokenizer: Any) -> None:
        text = texts.megabytes()[what]
        ids = encode(tokenizer, text)
        _check_ids(tokenizer, ids)
        # Not in one assert: pytest would print both.
        if self.lossy is None and tokenizer.decode(ids) != text:
            pytest.fail(f"a megabyte of {what} does not come back")

    def test_half_a_surrogate_pair_is_no_failure(self, tokenizer: Any) -> None:
        """JSON can spell a lone surrogate, so documents can contain one. The tokenizer chooses its
        result.
        """
        for text in ("\ud800", "a\udfffb", "\ude00\ud83d"):
            _check_ids(tokenizer, encode(tokenizer, text))

    def test_any_ids_can_be_decoded(self, tokenizer: Any) -> None:
        """A model can generate any ids, also those that no text encodes to."""

        @examples
        @given(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=20))
        def is_text(ids: list[int]) -> None:
            assert isinstance(tokenizer.decode(ids), str)

        is_text()

    # ------------------------------------------------------------------------ ids

    def test_ids_are_in_range(self, tokenizer: Any) -> None:
        """Every id has a row in the embedding."""

        @examples
        @given(texts.any_text(texts.SPELLINGS))
        def in_range(text: str) -> None:
            _check_ids(tokenizer, encode(tokenizer, text))

        in_range()
        for text in texts.every_character():
            _check_ids(tokenizer, encode(tokenizer, text))

    def test_vocabulary_size_is_the_prepared_one(
        self, tokenizer: Any, prepared: PreparedTokenizer, specials: Specials
    ) -> None:
        """The architecture is built with the size that ``prepare`` returns."""
        assert tokenizer.get_vocab_size() == prepared.vocab_size
        assert all(0 <= number < prepared.vocab_size for number in specials.ids)

    def test_a_tokenizer_json_makes_the_same_ids(self, folder: Path, tokenizer: Any) -> None:
        """``atom export`` passes it on with a model trained on the run's ids."""
        from atom.titan.hugging_face.tokenizer import TOKENIZER_JSON, differing

        if not (folder / TOKENIZER_JSON).is_file():
            pytest.skip(f"{self.name} has no {TOKENIZER_JSON}")
        text = differing(folder / TOKENIZER_JSON, tokenizer)
        assert text is None, f"{TOKENIZER_JSON} makes other ids of {text!r}"

    def test_plain_text_yields_no_special_token(self, tokenizer: Any, specials: Specials) -> None:
        """A document cannot end itself: text that is spelled like a special token stays text."""
        if not specials.ids:
            pytest.skip(f"{self.name} has no special tokens")
        spellings = [*texts.SPELLINGS, *specials.spellings]

        def check(text: str) -> None:
            found = set(encode(tokenizer, text)) & set(specials.ids)
            assert not found, f"{text!r} yields the id of a special token"

        for spelling in spellings:
            for text in (spelling, f"a{spelling}b", f" {spelling} ", spelling * 2, f"{spelling}\n"):
                check(text)
        examples(given(texts.any_text(spellings))(check))()
        for text in texts.every_character():
            check(text)

    def test_bos_and_eos_stand_where_asked_for(self, tokenizer: Any) -> None:
        """And nowhere else: the second part of a long document does not begin one."""
        bos = [i for i in [getattr(tokenizer, "bos_id", None)] if i is not None]
        eos = [i for i in [tokenizer.eos_id] if i is not None]
        for text in ("", "a", "two words", " é\n", *texts.SPELLINGS):
            body = encode(tokenizer, text)
            for add_bos in (False, True):
                for add_eos in (False, True):
                    ids = tokenizer.encode(text, add_bos=add_bos, add_eos=add_eos)
                    assert ids == bos * add_bos + body + eos * add_eos

    def test_batch_equals_single(self, tokenizer: Any) -> None:
        if not hasattr(tokenizer, "encode_batch"):
            pytest.skip(f"{self.name} has no encode_batch")
        sample = self.sample_texts()
        together = tokenizer.encode_batch(sample, add_bos=False, add_eos=False)
        _compare(sample, [list(ids) for ids in together], tokenizer)

    def test_bytes_of_ids_add_up(self, tokenizer: Any, specials: Specials) -> None:
        """The bytes that ids stand for are those of the text, apart from a space that the tokenizer
        puts before each text; special ids stand for none.
        """
        tell = getattr(tokenizer, "byte_lengths", None)
        lengths = tell() if callable(tell) else None
        if lengths is None:
            pytest.skip(f"{self.name} does not tell the bytes of its ids")
        assert len(lengths) <= tokenizer.get_vocab_size()
        assert all(size is None or (type(size) is int and size >= 0) for size in lengths)
        spelled = [n for n in specials.ids if n < len(lengths) and lengths[n] != 0]
        assert not spelled, "special ids that stand for text"
        self.lossless()

        def excess(text: str) -> int:
            return sum(lengths[number] for number in encode(tokenizer, text)) - len(text.encode())

        before = {0, excess("a")}
        assert before <= {0, 1}

        def add_up(text: str) -> None:
            assert excess(text) in before

        examples(given(texts.any_text(texts.SPELLINGS))(add_up))()
        for text in texts.every_character():
            add_up(text)

    # ------------------------------------------------------------------------ state

    def test_state_survives_save_and_load(
        self,
        tokenizer: Any,
        component: Component,
        config: BaseModel | None,
        folder: Path,
        tmp_path: Path,
    ) -> None:
        """The prepared files are the complete state: a copy elsewhere makes the same tokenizer,
        even after the cache that prepared it is removed."""
        cache, place = tmp_path / "cache", tmp_path / "elsewhere"
        prepared = tokenizing.prepare(component, config, cache)
        wrong = [name for name in prepared.files if Path(name).name != name]
        assert not wrong, "the names of prepared files are names, not paths"
        tokenizing.copied(prepared, place)
        shutil.rmtree(cache, ignore_errors=True)
        first, second = _contents(folder), _contents(place)
        other = [name for name in first | second if first.get(name) != second.get(name)]
        assert not other, "files that are others when they are prepared again"
        # A tokenizer that reads the cache, or the path where it was prepared, fails here.
        again = tokenizing.build(component, config, place)
        sample = self.sample_texts()
        _compare(sample, [encode(again, text) for text in sample], tokenizer)

    def test_same_ids_in_another_process(
        self, tokenizer: Any, encoded_elsewhere: Elsewhere
    ) -> None:
        """A process with only the files, another hash seed, and the environment of another rank."""
        ids, _ = encoded_elsewhere.result()
        _compare(self.sample_texts(), ids, tokenizer)

    def test_same_ids_under_fork(self, tokenizer: Any, encoded_elsewhere: Elsewhere) -> None:
        """In the child of a process that has already encoded."""
        _, ids = encoded_elsewhere.result()
        assert ids is not None, "a forked process that encodes dies, or hangs for a minute"
        _compare(self.sample_texts(), ids, tokenizer)

    def test_preparing_is_the_same_everywhere(
        self, prepared: PreparedTokenizer, prepared_elsewhere: Elsewhere
    ) -> None:
        """Runs that start simultaneously with an empty cache get the same files, without torch."""
        answers = prepared_elsewhere.result()
        assert None not in answers, "preparing fails where several do it at once"
        for vocab_size, hashes, torch in answers:
            assert not torch, "preparing imports torch; import it in what `build` points to"
            assert vocab_size == prepared.vocab_size
            assert hashes == {
                name: hashlib.sha256(path.read_bytes()).hexdigest()
                for name, path in prepared.files.items()
            }, "other files than this process has prepared"


def _check_ids(tokenizer: Any, ids: Any) -> None:
    assert isinstance(ids, list)
    size = tokenizer.get_vocab_size()
    wrong = [number for number in ids if type(number) is not int or not 0 <= number < size]
    assert not wrong[:8], f"ids that are no int from 0 to {size - 1}"


def _compare(sample: list[str], theirs: list[list[int]], tokenizer: Any) -> None:
    for text, ids in zip(sample, theirs, strict=True):
        ours = encode(tokenizer, text)
        # Shortened: pytest takes minutes to show how two long lists differ.
        assert ids[:40] == ours[:40], f"other ids of {text[:80]!r}"
        assert len(ids) == len(ours), f"more or fewer ids of {text[:80]!r}"
        same = ids == ours
        assert same, f"other ids at the end of {text[:80]!r}…"


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


CONFORMANCE = TokenizerSuite
