"""``hf``: tokenizers made elsewhere, as their makers ship them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from atom.errors import UserError
from atom.plugin import TokenizerContext
from atom_tokenizers import hf
from atom_tokenizers.config import HuggingFace
from atom_tokenizers.ranks import PlainTextTokenizer

BOS, EOS = "<|bos|>", "<|eos|>"
NAMED = {"bos_token": BOS, "eos_token": {"content": EOS, "lstrip": False}}


def byte_level() -> Tokenizer:
    """As Llama 3's: byte-level, specials after the vocabulary, BOS by the post-processor."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a##b the cat sat on the mat <|bos|> <|eos|>"] * 3, trainer)
    tokenizer.add_special_tokens([BOS, EOS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def unigram() -> Tokenizer:
    """As T5's: the specials are pieces of the vocabulary, and NFKC makes more of them."""
    pieces = ["<unk>", "</s>", "▁", "the", "<", "/", "s", ">"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


def words(vocabulary: dict[str, int], unknown: str = "[UNK]") -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def saved(folder: Path, tokenizer: Tokenizer, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def load(built: Any, tmp_path: Path) -> Any:
    """Save a tokenizer, then prepare and build it."""

    def loaded(tokenizer: Tokenizer, config: dict[str, Any] | None = None) -> PlainTextTokenizer:
        return built(HuggingFace(path=saved(tmp_path / "made", tokenizer, config)))

    return loaded


# -- bytes


def pieces() -> Tokenizer:
    """As Llama 2's: a space before the text, and bytes for unknown letters."""
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["▁", "t", "h", "e", "é", "th", "the", "▁the"]
    vocabulary = {piece: n for n, piece in enumerate(["<unk>", "<s>", *byte_pieces, *letters])}
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    model = models.BPE(
        vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


@pytest.mark.parametrize("text", ["the the", "thé日本 the\n", "a<tool>b", "<s>", "<0x0A>"])
def test_bytes_of_pieces_are_those_of_the_text(load: Any, text: str) -> None:
    """And one for the space before it; an id of text that is unknown has none."""
    tokenizer = load(pieces(), {"bos_token": "<s>", "unk_token": "<unk>"})
    lengths = tokenizer.byte_lengths()
    assert lengths[0] is None
    assert lengths[tokenizer.bos_id] == 0
    ids = tokenizer.encode(text, add_bos=False, add_eos=False)
    assert sum(lengths[number] for number in ids) == len(text.encode()) + 1


def test_words_do_not_tell_their_bytes(load: Any) -> None:
    assert load(words({"[UNK]": 0, "the": 1})).byte_lengths() is None


# -- ids


@pytest.fixture
def llama(load: Any) -> PlainTextTokenizer:
    return load(byte_level(), NAMED)


def test_left_out_bos_and_eos_are_as_the_files_have_them(load: Any) -> None:
    tokenizer = load(byte_level(), NAMED)
    assert tokenizer.encode("") == [tokenizer.bos_id]
    tokenizer = load(byte_level(), NAMED | {"add_eos_token": True})
    assert tokenizer.encode("") == [tokenizer.bos_id, tokenizer.eos_id]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("the</s>the", ["▁", "the", "<", "/", "s", ">", "the"]),
        ("\uff1c/s\uff1e", ["▁", "<", "/", "s", ">"]),
        ("the \N{SNOWMAN}", ["▁", "the", "▁", "<unk>"]),
    ],
)
def test_specials_in_the_vocabulary_are_not_text(load: Any, text: str, pieces: list[str]) -> None:
    tokenizer = load(unigram(), {"eos_token": "</s>", "unk_token": "<unk>"})
    assert [tokenizer.id_to_token(i) for i in tokenizer.encode(text)] == pieces
    assert tokenizer.encode("the", add_eos=True)[-1] == tokenizer.eos_id == 1


def test_a_word_that_is_a_special_token_is_not_text(load: Any) -> None:
    vocabulary = {"[UNK]": 0, "[EOS]": 1, "the": 2}
    tokenizer = load(words(vocabulary), {"eos_token": "[EOS]", "unk_token": "[UNK]"})
    assert tokenizer.encode("the the") == [2, 2]
    assert set(tokenizer.encode("[EOS]")) == {0}


def test_tokens_that_are_not_special_stay_text(load: Any) -> None:
    made = byte_level()
    made.add_tokens([AddedToken("<tool>", special=False)])
    token_id = made.token_to_id("<tool>")
    listed = {str(token_id): {"content": "<tool>", "special": False}}
    tokenizer = load(made, NAMED | {"added_tokens_decoder": listed})
    expected = made.encode("a <tool>b", add_special_tokens=False).ids
    assert token_id in expected
    assert tokenizer.encode("a <tool>b", add_bos=False) == expected


def test_eos_is_special_even_if_its_file_says_otherwise(load: Any) -> None:
    made = byte_level()
    made.add_tokens([AddedToken("<end>", special=False)])
    tokenizer = load(made, {"eos_token": "<end>"})
    assert tokenizer.eos_id == made.token_to_id("<end>")
    assert tokenizer.eos_id not in tokenizer.encode("a <end> b <end>")


def test_a_token_that_only_the_config_lists_is_found_in_text(load: Any) -> None:
    made = byte_level()
    listed = {str(made.get_vocab_size()): {"content": "<tool>", "special": False}}
    tokenizer = load(made, NAMED | {"added_tokens_decoder": listed})
    assert tokenizer.encode("<tool>", add_bos=False) == [made.get_vocab_size()]
    assert tokenizer.get_vocab_size() == made.get_vocab_size() + 1


def test_unknown_text_does_not_end_a_document(load: Any) -> None:
    tokenizer = load(words({"[EOS]": 0, "the": 1}, unknown="[EOS]"), {"eos_token": "[EOS]"})
    assert tokenizer.encode("the unknown the", add_eos=True) == [1, 1, 0]


def test_text_is_never_cut_or_padded(load: Any) -> None:
    made = byte_level()
    made.enable_truncation(4)
    made.enable_padding(length=8)
    text = "the cat sat on the mat"
    tokenizer = load(made, NAMED)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_half_a_surrogate_pair_is_marked(llama: PlainTextTokenizer) -> None:
    assert llama.decode(llama.encode("a\udfffb")) == "a\ufffdb"


# -- sizes


def test_the_size_counts_tokens_that_the_config_adds(load: Any) -> None:
    made = byte_level()
    size = made.get_vocab_size()
    listed = {str(size): {"content": "<extra>"}, "0": {"content": "!"}}
    tokenizer = load(made, NAMED | {"pad_token": "<pad>", "added_tokens_decoder": listed})
    assert tokenizer.get_vocab_size() == size + 2
    assert tokenizer.token_to_id("<extra>") == size
    assert tokenizer.token_to_id("<pad>") == size + 1


def test_the_size_counts_gaps(load: Any) -> None:
    tokenizer = load(words({"[UNK]": 0, "the": 9}), {"eos_token": "[UNK]"})
    assert tokenizer.encode("the") == [9]
    assert tokenizer.get_vocab_size() == tokenizer.vocab_size == 10


# -- files


def test_all_files_of_a_folder_go_into_the_run(tmp_path: Path, context: TokenizerContext) -> None:
    folder = saved(tmp_path / "made", byte_level(), NAMED)
    (folder / "special_tokens_map.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("hello")
    (folder / "modeling.py").write_text("raise SystemExit")
    expected = {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    }
    for path in (folder, folder / "tokenizer.json"):
        files = hf.prepare(HuggingFace(path=path), context).files
        assert files == {name: folder / name for name in expected}


def test_a_file_under_another_name_is_taken(built: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "made", byte_level(), NAMED)
    file = (folder / "tokenizer.json").rename(folder / "mine.json")
    tokenizer = built(HuggingFace(path=file))
    assert tokenizer.encode("", add_eos=True) == [tokenizer.bos_id, tokenizer.eos_id]


def test_a_path_from_home(
    tmp_path: Path, context: TokenizerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "made", byte_level(), NAMED)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hf.prepare(HuggingFace(path=Path("~/made")), context).files["tokenizer.json"] == (
        folder / "tokenizer.json"
    )


def test_vocabulary_and_merges_are_read_whole(built: Any, tmp_path: Path) -> None:
    made = byte_level()
    made.encode_special_tokens = True
    made.model.save(str(tmp_path))
    named = NAMED | {"tokenizer_class": "GPT2Tokenizer", "unk_token": EOS}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    assert "\n# #\n" in (tmp_path / "merges.txt").read_text()
    tokenizer = built(HuggingFace(path=tmp_path))
    text = f"## the cat {BOS}"
    assert tokenizer.encode(text) == made.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("", add_eos=True) == [made.token_to_id(EOS)]


def test_a_chat_template_is_compiled_when_applied(load: Any) -> None:
    tokenizer = load(byte_level(), NAMED | {"chat_template": "{{ messages[0]['content'] }}!"})
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}]) == "hi!"
    tokenizer.set_chat_template("{{ messages[0]['role'] }}")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}]) == "user"


@pytest.mark.parametrize("template", ["{% generation %}", [{"name": "default", "template": ""}]])
def test_a_strange_chat_template_does_not_stop_training(load: Any, template: object) -> None:
    load(byte_level(), NAMED | {"chat_template": template})


def test_no_end_of_document_is_warned_of(load: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="atom_tokenizers"):
        tokenizer = load(byte_level())
    assert tokenizer.eos_id is None
    assert "no eos_token" in caplog.text


# -- mistakes


def refusal(path: Path, context: TokenizerContext) -> str:
    with pytest.raises(UserError) as refused:
        hf.prepare(HuggingFace(path=path), context)
    assert (refused.value.key, refused.value.value) == ("tokenizer.path", path)
    assert "\n" not in refused.value.told
    return refused.value.told


def test_a_path_to_nothing(tmp_path: Path, context: TokenizerContext) -> None:
    assert refusal(tmp_path / "none", context).startswith("there is no such folder or file; valid")
    assert refusal(tmp_path, context).startswith("holds no tokenizer; valid")


def test_words_alone_are_no_tokenizer(tmp_path: Path, context: TokenizerContext) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\nthe\n")
    (tmp_path / "vocab.json").write_text('{"[UNK]": 0}')
    assert "merges.txt" in refusal(tmp_path, context)


@pytest.mark.parametrize("content", ["", "{", "{}", "[1]", "version https://git-lfs", "\x00"])
def test_a_file_that_is_no_tokenizer(
    tmp_path: Path, context: TokenizerContext, content: str
) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    assert "tokenizer.json cannot be read" in refusal(tmp_path, context)


def test_a_panic_of_the_library_is_a_sentence(
    tmp_path: Path, context: TokenizerContext, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rust writes a trace to the file descriptor: nothing for a user."""
    described = json.loads(byte_level().to_str())
    first = {"SpecialToken": {"id": "[NONE]", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    described["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    assert "cannot read every text" in refusal(tmp_path, context)
    assert capfd.readouterr().err == ""


def test_merges_that_do_not_fit(tmp_path: Path, context: TokenizerContext) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("b c\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    assert "vocab.json and merges.txt cannot be read" in refusal(tmp_path, context)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "double quotes"),
        ("[]", "object"),
        ('{"eos_token": 5}', "eos_token"),
        ('{"bos_token": {"text": "x"}}', "bos_token"),
        ('{"added_tokens_decoder": {"x": {"content": "y"}}}', "added_tokens_decoder"),
    ],
)
def test_a_config_that_torchtitan_could_not_read(
    tmp_path: Path, context: TokenizerContext, content: str, named: str
) -> None:
    saved(tmp_path, byte_level())
    (tmp_path / "tokenizer_config.json").write_text(content)
    assert named in refusal(tmp_path, context)


def test_a_tokenizer_that_fails_on_unknown_text(tmp_path: Path, context: TokenizerContext) -> None:
    saved(tmp_path, words({"the": 0}), NAMED)
    assert "cannot read every text" in refusal(tmp_path, context)


def test_a_tokenizer_that_knows_nothing(tmp_path: Path, context: TokenizerContext) -> None:
    saved(tmp_path, Tokenizer(models.BPE()))
    assert "vocabulary is empty" in refusal(tmp_path, context)


def test_a_tokenizer_that_makes_the_library_panic(
    tmp_path: Path, context: TokenizerContext
) -> None:
    made = json.loads(byte_level().to_str())
    made["post_processor"]["special_tokens"] = {}
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    assert "cannot read every text" in refusal(tmp_path, context)


@pytest.mark.parametrize("parts", [(True, True), (True, False), (False, True), (False, False)])
def test_several_texts_are_encoded_as_one_by_one(
    llama: PlainTextTokenizer,
    texts: list[str],
    parts: tuple[bool, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    more = [*texts, "", " ", "</s> <s>", "\ud800", "日本語 🙂", "a" * 5000]
    found = llama.encode_batch(more, add_bos=parts[0], add_eos=parts[1])
    one_by_one = [llama.encode(text, add_bos=parts[0], add_eos=parts[1]) for text in more]
    assert found == one_by_one


def test_special_tokens_found_in_text_are_spelled_in_a_batch_too(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    tokenizer = load(unigram())
    text = "a </s> b"
    assert tokenizer.encode_batch([text], add_bos=True, add_eos=True) == [
        tokenizer.encode(text, add_bos=True, add_eos=True)
    ]
