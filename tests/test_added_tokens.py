"""Tokens added to a tokenizer: the rows that weights get for them, under layouts, and exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from atom.recipe.run import parse
from atom.registry.host import Host
from atom.registry.select import select
from atom.testing import partners, runs
from atom.titan import saved_model, translate
from atom.titan.checkpoint import new_rows
from atom.titan.trainer_config import model_parts

pytestmark = pytest.mark.slow

TOKENS = ["<|im_start|>", "<|im_end|>"]
WORDS, ROWS = 300, 304
"""Ids of the base tokenizer, and rows of the base model."""


@pytest.fixture(scope="module")
def place(train: Callable, atom: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model whose vocabulary is padded, native and exported, and a file of conversations."""
    place = tmp_path_factory.mktemp("added")
    records = [
        {"messages": [{"role": "user", "content": f"{n}+1?"}, {"role": "assistant", "content": s}]}
        for n, s in enumerate(["one", "two", "three", "four"])
    ]
    (place / "chat.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    train(
        place / "base", "tokenizer=bpe", f"tokenizer.vocab_size={WORDS}", "training.steps=1",
        f"architecture.vocab_size={ROWS}",
    )  # fmt: skip
    done = atom("export", str(place / "base"), "--to", "hf", "--out", str(place / "hf"))
    assert done.returncode == 0, done.stderr
    tokenizer = Tokenizer.from_file(str(place / "base/tokenizer/tokenizer.json"))
    tokenizer.add_special_tokens([f"<{n}>" for n in range(100)])
    shutil.copytree(place / "base/tokenizer", place / "long")
    tokenizer.save(str(place / "long/tokenizer.json"))
    return place


def overrides(place: Path, *more: str, load: str = "base", added: list[str] = TOKENS) -> list[str]:
    named = ",".join(f'"{token}"' for token in added)
    return [
        "objective=sft", "objective.template=chatml", "dataset=local",
        f"dataset.path={place / 'chat.jsonl'}", "training.seq_len=64",
        "training.global_batch_size=4", "training.steps=2", "tokenizer=hf",
        f"tokenizer.path={place / 'base/tokenizer'}", f"tokenizer.added_tokens=[{named}]",
        f"architecture.vocab_size={ROWS}",
        f"checkpoint.initial_load={'hf:' if load == 'hf' else ''}{place / load}", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def tuned(place: Path, train: Callable) -> list[dict]:
    """A run on one rank: two added tokens, of which the weights have rows that nothing trained."""
    return train(place / "sft", *overrides(place, "training.steps=3"))


def expected(place: Path, rows: int) -> torch.nn.Module:
    """The base model, grown by plain arithmetic, with the mean of what its tokenizer knows."""
    model = AutoModelForCausalLM.from_pretrained(place / "hf", dtype=torch.float32)
    before = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    before = [weight.detach().clone() for weight in before]
    model.resize_token_embeddings(rows, mean_resizing=False)
    after = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    with torch.no_grad():
        for old, new in zip(before, after, strict=True):
            kept = min(len(old), rows)
            new[:kept] = old[:kept]
            for row in [*range(WORDS, WORDS + len(TOKENS)), *range(len(old), rows)]:
                new[row] = old[:WORDS].mean(0)
    return model


def first_loss(model: torch.nn.Module, tokenizer: Tokenizer, place: Path) -> float:
    """The loss of answers of all conversations, one at a time."""
    total, count = 0.0, 0
    for line in (place / "chat.jsonl").read_text().splitlines():
        question, answer = (each["content"] for each in json.loads(line)["messages"])
        head = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer.encode(f"{head}{answer}<|im_end|>\n", add_special_tokens=False).ids
        begin = len(tokenizer.encode(head, add_special_tokens=False).ids)
        assert ids[0] == WORDS
        assert ids[-2] == WORDS + 1
        logits = model(torch.tensor([ids])).logits[0]
        losses = torch.nn.functional.cross_entropy(
            logits[begin - 1 : -2], torch.tensor(ids[begin:-1]), reduction="sum"
        )
        total, count = total + losses.item(), count + len(ids) - 1 - begin
    return total / count


def test_new_rows_are_the_mean(place: Path, tuned: list[dict], train: Callable) -> None:
    """Rows of added tokens change, in a padded vocabulary too, and so do those that are lacking."""
    layout = ("parallelism=tp", "parallelism.data_parallel_shard_degree=2", "launch.ranks=4")
    wide = overrides(place, "architecture.vocab_size=320", *layout, load="hf")
    found = {ROWS: tuned, 320: train(place / "wide", *wide)}
    tokenizer = Tokenizer.from_file(str(place / "sft/tokenizer/tokenizer.json"))
    for rows, run in found.items():
        loss = first_loss(expected(place, rows), tokenizer, place)
        assert run[0]["loss"] == pytest.approx(loss, abs=1e-5)


def test_stages_of_a_pipeline_grow_alike(
    place: Path, tuned: list[dict], train: Callable, tmp_path: Path
) -> None:
    layout = ("parallelism=pp", "launch.ranks=2")
    found = train(tmp_path / "run", *overrides(place, *layout))
    for row, other in zip(found, tuned, strict=False):
        for key in ("loss", "grad_norm"):
            assert row[key] == pytest.approx(other[key], abs=2e-5)


@pytest.mark.usefixtures("tuned")
def test_the_export_loads_and_the_next_run_adds_nothing(
    place: Path, train: Callable, atom: Callable, tmp_path: Path
) -> None:
    done = atom("export", str(place / "sft"), "--to", "hf", "--out", str(tmp_path / "hf"))
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert model.get_input_embeddings().weight.shape[0] == ROWS
    assert tokenizer.convert_tokens_to_ids(TOKENS) == [WORDS, WORDS + 1]
    messages = [{"role": "user", "content": "1+1?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids.count(WORDS) == 2
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, WORDS + 1]
    # A resumed run, and one that begins from the tuned weights, take the rows as they are.
    before = load_file(tmp_path / "hf/model.safetensors")["model.embed_tokens.weight"]
    resumed = train(place / "sft", *overrides(place, "training.steps=4"))
    assert [row["step"] for row in resumed] == [1, 2, 3, 4]
    after = train(
        tmp_path / "next",
        *overrides(place, f"tokenizer.path={tmp_path / 'hf'}", "optimizer.lr=1e-9"),
        f"checkpoint.initial_load=hf:{tmp_path / 'hf'}",
    )
    assert after[0]["loss"] == pytest.approx(resumed[3]["loss"], abs=1e-5)
    assert not torch.equal(before[WORDS], before[WORDS + 1])


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_every_family_names_its_vocabulary_alike(family: dict, host: Host) -> None:
    """Rows are added to all weights with a row for each id, in both formats."""
    run = parse(runs.sections(family))
    parts = model_parts(select(run, partners.with_partners(host), training=False), 500, 64)
    saved_model.on_one_rank(parts, translate.training(run.training, "cpu"))
    weights = saved_model.on_meta(parts.model).state_dict()
    of_ids = {name for name, weight in weights.items() if weight.shape[:1] == (500,)}
    assert of_ids == set(new_rows.VOCABULARY)
    adapter = saved_model.adapter(parts, family["name"])
    theirs = adapter.to_hf({name: weights[name] for name in of_ids})
    assert "model.embed_tokens.weight" in theirs


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.load()


REFUSED = {
    "fewer rows than weights": (
        ["architecture.vocab_size=302"],
        ["architecture.vocab_size=302", "has embeddings of 304 ids; valid: 304"],
    ),
    "a longer vocabulary without the key": (
        ["tokenizer.added_tokens=[]", "architecture.vocab_size=null"],
        ["checkpoint.initial_load=", "tok_embeddings.weight is [304, 64] there and [300, 64] here"],
    ),
    "weights of a shorter vocabulary": (
        ["tokenizer.added_tokens=[]", "architecture.vocab_size=320"],
        ["checkpoint.initial_load=", "tok_embeddings.weight is [304, 64] there and [320, 64] here"],
    ),
    "a piece of text": (
        ["tokenizer.added_tokens=[e]"],
        ["tokenizer.added_tokens", "'e' is a piece of text in this vocabulary"],
    ),
    "a token twice": (
        ["tokenizer.added_tokens=[x,x]"],
        ["tokenizer.added_tokens", "x is named twice"],
    ),
    "a tokenizer of more ids than weights": (
        ["tokenizer.path=PLACE/long", "architecture.vocab_size=512"],
        ["has embeddings of 304 ids, and the tokenizer 400 without tokenizer.added_tokens"],
    ),
}


@pytest.mark.parametrize(("changed", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_rows_are_neither_cut_nor_made_up(
    changed: list[str], said: list[str], place: Path, atom: Callable, tmp_path: Path
) -> None:
    result = atom(
        *("train", "architecture=llama3_tiny", "architecture.n_layers=4", "architecture.dim=64"),
        *("device=cpu", "metrics=none", f"run.dir={tmp_path / 'run'}"),
        *overrides(place, *(each.replace("PLACE", str(place)) for each in changed)),
    )
    assert result.returncode == 2, result.stdout + result.stderr
    for part in said:
        assert part in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
