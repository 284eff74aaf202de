"""``bpe``: trained once, the same everywhere, and lossless."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer

from atom.errors import UserError
from atom.plugin import Document, TokenizerContext
from atom_tokenizers import bpe
from atom_tokenizers.config import Bpe
from atom_tokenizers.ranks import PlainTextTokenizer, from_files

CONFIG = Bpe(vocab_size=320)

SCRIPT = """
import sys
from pathlib import Path
from atom.plugin import Document, TokenizerContext
from atom_tokenizers.bpe import prepare
from atom_tokenizers.config import Bpe

def documents():
    with Path(sys.argv[2]).open("a") as log:
        log.write("trained\\n")
    return (Document(f"{i * i:x} {i ** 3:x}", str(i)) for i in range(9000))

context = TokenizerContext(documents=documents, digest="", cache=Path(sys.argv[1]))
print(prepare(Bpe(vocab_size=512), context).files["tokenizer.json"])
"""


def started(cache: Path, log: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(cache), str(log)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> Path:
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    return Path(out.strip())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> PlainTextTokenizer:
    context = TokenizerContext(
        documents=lambda: (Document(text, "") for text in [*texts, *["end_of_text"] * 9]),
        digest="",
        cache=tmp_path_factory.mktemp("cache"),
    )
    folder = bpe.prepare(CONFIG, context).files["tokenizer.json"].parent
    return from_files(CONFIG).build(tokenizer_path=str(folder))


# -- text and ids


@pytest.mark.parametrize(
    ("text", "decoded"), [("a\ud800b", "a\ufffdb"), ("\ud83d\ude00", "\ufffd\ufffd")]
)
def test_half_a_surrogate_pair_is_marked(
    tokenizer: PlainTextTokenizer, text: str, decoded: str
) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == decoded


def test_bos_and_eos_are_named_and_left_out_by_default(tokenizer: PlainTextTokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    assert tokenizer.encode("") == []


def test_merges_shorten_text_like_the_training_text(
    tokenizer: PlainTextTokenizer, texts: list[str]
) -> None:
    assert len(tokenizer.encode(texts[0])) < len(texts[0].encode()) / 2


def test_a_forked_process_encodes_the_same(
    tokenizer: PlainTextTokenizer, texts: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    text = texts[0] * 20
    ids = tokenizer.encode(text)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(tokenizer.encode(text)))
    child.start()
    assert receiver.poll(20)
    assert receiver.recv() == ids
    child.join(20)
    assert child.exitcode == 0
    assert capfd.readouterr().err == ""


# -- training


def test_the_vocabulary_is_exactly_as_large_as_asked(context: TokenizerContext) -> None:
    for size in (258, 259, 300, 320):
        prepared = bpe.prepare(Bpe(vocab_size=size), context)
        vocabulary = Tokenizer.from_file(str(prepared.files["tokenizer.json"])).get_vocab()
        assert sorted(vocabulary.values()) == list(range(size))
        assert prepared.vocab_size == size


def test_text_too_small_is_refused_with_what_it_reaches(context: TokenizerContext) -> None:
    with pytest.raises(UserError) as refused:
        bpe.prepare(Bpe(vocab_size=100_000), context)
    assert refused.value.key == "tokenizer.vocab_size"
    assert refused.value.value == 100_000
    reached = int(refused.value.told.partition("no more than ")[2].partition(" ")[0])
    assert bpe.prepare(Bpe(vocab_size=reached), context).vocab_size == reached
    with pytest.raises(UserError, match=f"no more than {reached} "):
        bpe.prepare(Bpe(vocab_size=reached + 1), context)


def test_training_reads_no_more_than_asked() -> None:
    def documents() -> Iterator[Document]:
        yield Document("ab ab ab é", "0")  # the tenth byte is the first half of é
        pytest.fail("read on after train_bytes")

    config = Bpe(vocab_size=259, train_bytes=10)
    tokenizer = bpe.train(config, documents())
    assert tokenizer.id_to_token(258) == "ab"


def test_training_takes_half_a_surrogate_pair() -> None:
    tokenizer = bpe.train(Bpe(vocab_size=259), [Document("ab\ud800 ab", "0")])
    assert tokenizer.id_to_token(258) == "ab"


def test_a_mistake_in_the_dataset_is_told_as_it_is(context: TokenizerContext) -> None:
    def documents() -> Iterator[Document]:
        yield Document("ab", "0")
        raise UserError("not text", key="dataset.path")

    with pytest.raises(UserError, match="not text"):
        bpe.prepare(CONFIG, replace(context, documents=documents))


@pytest.mark.parametrize(
    "parameters",
    [
        {"vocab_size": 257},
        {"vocab_size": 1 << 40},
        {"train_bytes": 0},
        {"min_frequency": 0},
        {"vocab": 9},
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Bpe(**parameters)


# -- the cache


@pytest.mark.slow
def test_the_same_file_from_any_process(tmp_path: Path) -> None:
    processes = [
        started(
            tmp_path / f"cache{i}",
            tmp_path / "log",
            PYTHONHASHSEED=str(i),
            RAYON_NUM_THREADS=str(i),
        )
        for i in (1, 2, 5)
    ]
    files = [finished(process) for process in processes]
    assert len({file.parent.name for file in files}) == 1
    assert len({file.read_bytes() for file in files}) == 1
    assert (tmp_path / "log").read_text() == "trained\n" * 3


@pytest.mark.slow
def test_runs_that_start_at_once_train_once(tmp_path: Path) -> None:
    processes = [started(tmp_path / "cache", tmp_path / "log") for _ in range(4)]
    (file,) = {finished(process) for process in processes}
    assert Tokenizer.from_file(str(file)).get_vocab_size() == 512
    assert sorted(path.name for path in file.parent.iterdir()) == [
        ".lock",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (tmp_path / "log").read_text() == "trained\n"


def test_a_file_system_without_locks_will_do(
    context: TokenizerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert bpe.prepare(CONFIG, context).vocab_size == 320


def test_a_hit_does_not_read_the_dataset(context: TokenizerContext) -> None:
    first = bpe.prepare(CONFIG, context)
    unread = replace(context, documents=lambda: pytest.fail("trained again"))
    assert bpe.prepare(CONFIG, unread) == first


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("damage", [None, b"", b"\x80\x00", b'{"version": "1.0"'])
def test_a_damaged_entry_is_made_anew(
    context: TokenizerContext, name: str, damage: bytes | None
) -> None:
    files = bpe.prepare(CONFIG, context).files
    whole = {key: path.read_bytes() for key, path in files.items()}
    if damage is None:
        files[name].unlink()
    else:
        files[name].write_bytes(damage)
    again = bpe.prepare(CONFIG, context).files
    assert {key: path.read_bytes() for key, path in again.items()} == whole


def test_whatever_training_depends_on_has_its_own_entry(context: TokenizerContext) -> None:
    configs = [
        CONFIG,
        Bpe(vocab_size=321),
        Bpe(vocab_size=320, train_bytes=9000),
        Bpe(vocab_size=320, min_frequency=3),
    ]
    contexts = [context] * len(configs) + [replace(context, digest="other")]
    folders = {
        bpe.prepare(config, each).files["tokenizer.json"].parent
        for config, each in zip([*configs, CONFIG], contexts, strict=True)
    }
    assert len(folders) == 5


def test_a_cache_that_cannot_be_written_is_a_users_mistake(
    context: TokenizerContext, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="ATOM_CACHE"):
        bpe.prepare(CONFIG, replace(context, cache=tmp_path / "file"))


def test_the_files_name_bos_and_eos(context: TokenizerContext) -> None:
    files = bpe.prepare(CONFIG, context).files
    named = json.loads(files["tokenizer_config.json"].read_text())
    assert (named["bos_token"], named["eos_token"]) == (bpe.BOS, bpe.EOS)
