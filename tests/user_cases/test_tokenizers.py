"""Tokenizers made elsewhere: the ids of ``transformers``' ``AutoTokenizer``, or a refusal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_tokenizers import (
    CORPUS,
    END,
    FAST,
    Make,
    byte_bpe,
    digits,
    files,
    gemma,
    listed,
    metaspace,
    neox,
    pair,
    split_bpe,
    unigram,
    word_piece,
)
from tokenizers import (
    AddedToken,
    Tokenizer,
    normalizers,
    processors,
)

from atom.errors import UserError
from atom.plugin import Document, TokenizerContext
from atom_tokenizers import hf, ranks, which_class
from atom_tokenizers.classes import CLASSES, QWEN3_5
from atom_tokenizers.config import HuggingFace

TEXTS = [
    *CORPUS, "", " ", "   leading", "trailing  \n", "a\n\n\nb", "e\u0301 ﬁ Å", "x1234567890y",
    "it's we'LL", "日本 中文　!?", "<tool> x <tool>y", "unseen ☃ ɸ",
]  # fmt: skip


BARE = byte_bpe()
SIZE = BARE.get_vocab_size()
QWEN = byte_bpe(qwen=True)
QWEN_ENDS = byte_bpe("<begin>", "<end>", qwen=True)
GPT2 = {"tokenizer_class": "GPT2Tokenizer"}
QWEN2_CLASS = {"tokenizer_class": "Qwen2Tokenizer"}


def llama3() -> Tokenizer:
    tokenizer = byte_bpe("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    return tokenizer


def lowercase() -> Tokenizer:
    tokenizer = byte_bpe(END)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    return tokenizer


def with_tool() -> Tokenizer:
    tokenizer = byte_bpe(END)
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    return tokenizer


LLAMA2 = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
          "unk_token": "<unk>", "add_bos_token": True, "legacy": False, "pad_token": None,
          "model_max_length": 10**30, "sp_model_kwargs": {}}  # fmt: skip
NEOX = {"tokenizer_class": "GPTNeoXTokenizer", "bos_token": None, "eos_token": END}
DEEPSEEK = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<begin>", "eos_token": "<end>",
            "unk_token": None}  # fmt: skip

SAME: dict[str, Make] = {
    # A class that builds its tokenizer takes no more than the vocabulary from the file.
    "llama 2": files(metaspace(), LLAMA2, config={"model_type": "llama"}),
    "llama 2, legacy": files(metaspace(), LLAMA2 | {"legacy": True}),
    "llama 2: the class alone": files(metaspace(), {"tokenizer_class": "LlamaTokenizer"}),
    "olmo: neox": files(neox(), NEOX, config={"model_type": "olmo"}),
    "gemma": files(gemma(), {"tokenizer_class": "GemmaTokenizer", "bos_token": "<s>",
                             "eos_token": "</s>"}, config={"model_type": "gemma"}),
    "phi: codegen": files(byte_bpe(END), {"tokenizer_class": "CodeGenTokenizer"}),
    "qwen3.5": files(split_bpe(END, pattern=QWEN3_5, compose=True), QWEN2_CLASS,
                     config={"model_type": "qwen3_5"}),
    # The model has the file obeyed, whatever class is named.
    "olmo 2": files(split_bpe(END), {"tokenizer_class": "GPT2Tokenizer", "eos_token": END},
                    config={"model_type": "olmo2"}),
    "mistral": files(metaspace(), LLAMA2, config={"model_type": "mistral"}),
    "deepseek": files(split_bpe("<begin>", "<end>"), DEEPSEEK,
                      config={"model_type": "deepseek_v3"}),
    # The model has its own class, whatever is named.
    "deepseek-r1 of qwen": files(QWEN_ENDS, DEEPSEEK, config={"model_type": "qwen2"}),
    "smollm, as it says itself": files(digits(), FAST | {"eos_token": END},
                                       config={"model_type": "llama"}),
    "gpt2: two files": pair(byte_bpe(END), GPT2 | {"added_tokens_decoder": listed(
        **{f"id{SIZE}": {"content": END}})}),
    "gpt2: by its config.json": pair(BARE, {}, config={"model_type": "gpt2"}),
    "gpt2: with a space in front": pair(BARE, GPT2 | {"add_prefix_space": True}),
    "gpt2: tokenizer.json": files(byte_bpe(END), GPT2),
    "qwen2: two files": pair(QWEN, QWEN2_CLASS | {"eos_token": END, "added_tokens_decoder": listed(
        **{f"id{SIZE}": {"content": END}, f"id{SIZE + 1}": {"content": "<|im_start|>"},
           f"id{SIZE + 2}": {"content": "<|im_end|>"}})}),
    "qwen2: ids listed out of order": pair(QWEN, QWEN2_CLASS | {
        "eos_token": "<|im_end|>", "pad_token": END, "added_tokens_decoder": listed(
            **{f"id{SIZE + 2}": {"content": "<|im_end|>"}, f"id{SIZE}": {"content": END},
               f"id{SIZE + 1}": {"content": "<|im_start|>"}})}),
    "qwen2: tokenizer.json": files(QWEN, QWEN2_CLASS),
    "llama 3": files(llama3(), FAST | {
        "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
    "sentencepiece, bytes for the unknown": files(metaspace(), FAST | {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "sentencepiece, without bytes": files(metaspace(fallback=False), FAST | {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "unigram": files(unigram(), FAST | {"eos_token": "</s>", "unk_token": "<unk>"}),
    "word pieces": files(word_piece(), FAST | {
        "unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]"}),
    "no special tokens": files(BARE, FAST),
    "tokenizer.json alone": files(byte_bpe(END)),
    "special_tokens_map.json alone": files(byte_bpe(END, "<pad>"), None, special_tokens_map={
        "bos_token": END, "eos_token": {"content": END, "lstrip": False}, "pad_token": "<pad>"}),
    "special_tokens_map.json over the config": files(
        byte_bpe(END, "<s>"), FAST | {"eos_token": "<s>"}, special_tokens_map={"eos_token": END}),
    "special_tokens_map.json under a list": files(
        byte_bpe(END, "<s>"), FAST | {"eos_token": "<s>", "added_tokens_decoder": listed(
            **{f"id{SIZE}": {"content": END}, f"id{SIZE + 1}": {"content": "<s>"}})},
        special_tokens_map={"eos_token": END}),
    "special tokens that no tokenizer.json has": files(
        BARE, FAST | {"eos_token": "</s>", "pad_token": "<pad>", "bos_token": "<s>"}),
    "additional special tokens": files(
        BARE, FAST | {"eos_token": END, "additional_special_tokens": ["<|user|>", "<|tool|>"]}),
    "added_tokens.json": pair(
        QWEN, QWEN2_CLASS | {"eos_token": END},
        added_tokens={END: SIZE, "<|im_start|>": SIZE + 1, "<tool>": SIZE + 2}),
    "a token that is text": files(with_tool(), FAST | {"eos_token": END}),
    "an extra token in the list": files(byte_bpe(END), FAST | {
        "eos_token": END, "added_tokens_decoder": listed(
            **{f"id{SIZE}": {"content": END},
               f"id{SIZE + 1}": {"content": "<tool>", "special": False, "normalized": False}})}),
    "lower case and NFC": files(lowercase(), FAST | {"eos_token": END}),
    "flags to add both": files(llama3(), FAST | {
        "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "add_bos_token": True,
        "add_eos_token": True}),
    "a template with its own special tokens": files(
        byte_bpe(END, "<|user|>"), FAST | {
            "eos_token": END, "chat_template": "{{ '<|user|>' + messages[0]['content'] }}"}),
}  # fmt: skip

REFUSED: dict[str, tuple[Make, tuple[str, ...]]] = {
    "two files of nobody": (pair(BARE), ("vocab.json and merges.txt", "tokenizer.json")),
    "two files of another class": (
        pair(BARE, {"tokenizer_class": "RobertaTokenizer"}), ("RobertaTokenizer",)),
    "a gap before a listed id": (
        files(BARE, FAST | {"eos_token": END, "added_tokens_decoder": listed(
            **{f"id{SIZE + 7}": {"content": END}})}), (END, str(SIZE + 7), str(SIZE))),
    "an id of another token": (
        files(byte_bpe(END), FAST | {"eos_token": END, "added_tokens_decoder": listed(
            **{"id5": {"content": END}})}), (END, "5", str(SIZE))),
    "a class that cuts text otherwise": (
        files(BARE, QWEN2_CLASS | {"eos_token": END}),
        ("Qwen2Tokenizer", "PreTrainedTokenizerFast")),
    "digits that the class does not cut": (
        files(digits(), {"tokenizer_class": "GPT2Tokenizer"}),
        ("GPT2Tokenizer", "PreTrainedTokenizerFast")),
    "a class that composes letters": (files(neox(compose=False), NEOX), ("GPTNeoXTokenizer",)),
    "a class that has bytes for the unknown": (
        files(metaspace(fallback=False), LLAMA2), ("LlamaTokenizer",)),
    "a class that puts no space in front": (
        files(metaspace(), LLAMA2 | {"add_prefix_space": False}), ("LlamaTokenizer",)),
    "a class that is made of no words": (files(unigram(), LLAMA2), ("LlamaTokenizer",)),
    "a class that nobody here knows": (
        files(word_piece(), {"tokenizer_class": "BertTokenizer", "do_lower_case": False}),
        ("BertTokenizer", "PreTrainedTokenizerFast")),
    "a model that overrules the class": (
        files(split_bpe(END), FAST | {"eos_token": END}, config={"model_type": "qwen2"}),
        ("Qwen2Tokenizer", "without config.json")),
    "sentencepiece's own file alone": (
        lambda folder: (folder / "tokenizer.model").write_bytes(b"\n\x0b") and None,
        ("holds no tokenizer", "tokenizer.json")),
    "words alone": (
        lambda folder: (folder / "vocab.txt").write_text("[UNK]\nthe\n") and None,
        ("holds no tokenizer",)),
    "special tokens that are no object": (
        files(BARE, FAST, special_tokens_map="[1]"), ("special_tokens_map.json", "no object")),
}  # fmt: skip


def built(folder: Path, place: Path) -> Any:
    """Return the tokenizer as a rank has it: prepared, copied into a run, built from the copy."""

    def documents() -> Iterator[Document]:
        return iter([Document(text="a", id="0")])

    context = TokenizerContext(documents=documents, digest="d", cache=place / "cache")
    prepared = hf.prepare(HuggingFace(path=folder), context)
    run = place / "run"
    run.mkdir()
    for name, path in prepared.files.items():
        shutil.copyfile(path, run / name)
    tokenizer = ranks.from_files(HuggingFace(path=folder)).build(tokenizer_path=str(run))
    assert tokenizer.get_vocab_size() == prepared.vocab_size
    return tokenizer


@pytest.mark.parametrize("shape", SAME)
def test_ids_are_those_of_auto_tokenizer(shape: str, tmp_path: Path) -> None:
    """Read from the folder, and again from what a run (and so an export) holds of it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "made"
    folder.mkdir()
    SAME[shape](folder)
    ours = built(folder, tmp_path)
    for place in (folder, tmp_path / "run"):
        theirs = transformers.AutoTokenizer.from_pretrained(place)
        assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id), place
        assert ours.get_vocab_size() == max(theirs.get_vocab().values()) + 1
        known = {token_id for token, token_id in theirs.get_vocab().items()}
        assert {ours.token_to_id(token) for token in theirs.all_special_tokens} <= known
        for token in theirs.all_special_tokens:
            assert ours.token_to_id(token) == theirs.convert_tokens_to_ids(token), token
        for text in TEXTS:
            ids = ours.encode(text, add_bos=False, add_eos=False)
            assert ids == theirs.encode(text, add_special_tokens=False), text
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text


@pytest.mark.parametrize("shape", REFUSED)
def test_other_folders_are_refused(shape: str, tmp_path: Path) -> None:
    make, says = REFUSED[shape]
    folder = tmp_path / "made"
    folder.mkdir()
    make(folder)
    with pytest.raises(UserError) as refused:
        built(folder, tmp_path)
    sentence = str(refused.value)
    assert sentence.startswith("tokenizer.path=")
    assert "\n" not in sentence
    assert all(words in sentence for words in says), sentence
    assert not (tmp_path / "run").exists()


def test_the_tables_of_classes_are_those_of_transformers() -> None:
    auto = pytest.importorskip("transformers.models.auto.tokenization_auto")
    obedient = ("TokenizersBackend", "MistralCommonBackend", "PreTrainedTokenizerFast")
    theirs = {
        model: which_class.OBEDIENT if (name := given.removesuffix("Fast")) in obedient else name
        for model, given in auto.TOKENIZER_MAPPING_NAMES.items()
        if given
    }
    known = {which_class.OBEDIENT, *CLASSES}
    assert {m: name for m, name in theirs.items() if name in known} == which_class.OF_MODELS
    wrong = auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    assert {m for m in wrong if theirs.get(m) in CLASSES} == which_class.OVERRULED

    def builds(name: str) -> bool:
        found = auto.tokenizer_class_from_name(name)
        backend = auto.TokenizersBackend
        return issubclass(found or object, backend) and "__init__" in found.__dict__

    assert {name for name in CLASSES if not builds(name)} == set()
    others = {name for name in {*theirs.values(), "CodeLlamaTokenizer"} if builds(name)}
    assert others - known == which_class.BUILDERS
