"""Fine-tuning from the files of a user: against a plain loop, packed and not, and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

CONVERSATIONS = [
    [(f"What is {a}+{b}?", f"{a + b}, as {a} and {b} are {a + b}."), ("Sure?", "Yes.")][: 1 + a % 2]
    for a, b in [(1, 1), (2, 3), (5, 8), (13, 21), (34, 55), (89, 144), (7, 7), (10, 0)]
]
SFT = ("objective=sft", "objective.template=chatml", "dataset=local", "training.seq_len=1024")
STEPS = 10


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    records = [
        {
            "messages": [
                {"role": role, "content": content}
                for turn in conversation
                for role, content in zip(("user", "assistant"), turn, strict=True)
            ]
        }
        for conversation in CONVERSATIONS
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def base(train: Callable, atom: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has been trained on text for a step, in Hugging Face's format."""
    place = tmp_path_factory.mktemp("base")
    train(place / "run", "training.steps=1", "training.seq_len=1024")
    done = atom("export", str(place / "run"), "--to", "hf", "--out", str(place / "hf"))
    assert done.returncode == 0, done.stderr
    return place / "hf"


@pytest.fixture(scope="module")
def packed(
    chat: Path, base: Path, train: Callable, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run whose step is all conversations, in two sequences."""
    place = tmp_path_factory.mktemp("packed") / "run"
    train(place, *_run(chat, base), "training.global_batch_size=2")
    return place


def _run(chat: Path, base: Path) -> tuple[str, ...]:
    weights = f"checkpoint.initial_load=hf:{base}"
    return (*SFT, f"dataset.path={chat}", weights, f"training.steps={STEPS}")


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_packed_step_is_an_unpacked_one(
    packed: Path, chat: Path, base: Path, train: Callable, tmp_path: Path
) -> None:
    """The loss is a mean over the answers' tokens of the global batch, accumulated or not."""
    unpacked = (*_run(chat, base), "data.packing=none", "training.global_batch_size=8")
    unpacked += ("training.seq_len=256", "training.steps=4")
    accumulated = ("training.local_batch_size=2", "parallelism=fsdp", "launch.ranks=2")
    reference = rows(packed)
    for name, more in {"unpacked": (), "accumulated": accumulated}.items():
        found = train(tmp_path / name, *unpacked, *more)
        assert [row["loss"] for row in found] == pytest.approx(
            [row["loss"] for row in reference[:4]], rel=1e-6
        )
        assert [row["grad_norm"] for row in found] == pytest.approx(
            [row["grad_norm"] for row in reference[:4]], rel=1e-4
        )


def test_ten_steps_are_those_of_a_plain_loop(packed: Path, base: Path) -> None:
    """transformers' model and torch's AdamW, one conversation at a time, without padding."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
    )
    examples = []
    for conversation in CONVERSATIONS:
        ids, labels = [], []
        for question, answer in conversation:
            for text, learnt in (
                (f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", False),
                (f"{answer}<|im_end|>", True),
                ("\n", False),
            ):
                new = list(text.encode())
                ids += new
                labels += new if learnt else [-100] * len(new)
        examples.append((torch.tensor([ids]), torch.tensor([labels])))
    count = sum(int((labels[:, 1:] != -100).sum()) for _, labels in examples)
    for row in rows(packed):
        total = 0.0
        for ids, labels in examples:
            logits = model(ids).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum")
            (loss / count).backward()
            total += loss.item() / count
        assert row["loss"] == pytest.approx(total, abs=1e-4)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        optimizer.param_groups[0]["lr"] = row["lr"]
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def exported(packed: Path, atom: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exported") / "hf"
    done = atom("export", str(packed), "--to", "hf", "--out", str(place))
    assert done.returncode == 0, done.stderr
    return place


def test_ten_steps_are_those_of_trl(
    packed: Path, base: Path, exported: Path, chat: Path, tmp_path: Path
) -> None:
    """SFTTrainer on the same weights: losses of all steps, and the weights after the last."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    losses = []

    class Recorded(SFTTrainer):
        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            found = super().compute_loss(*arguments, **options)
            losses.append(found.item())
            return found

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(exported)  # with the run's chat template
    tokenizer.pad_token = tokenizer.eos_token
    rates = [row["lr"] for row in rows(packed)]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rates[min(step, STEPS - 1)]
    )
    config = SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", save_strategy="no",
        per_device_train_batch_size=len(CONVERSATIONS), max_steps=STEPS, max_grad_norm=1.0,
        assistant_only_loss=True, max_length=None, disable_tqdm=True, gradient_checkpointing=False,
    )  # fmt: skip
    records = [json.loads(line) for line in chat.read_text().splitlines()]
    trainer = Recorded(
        model, args=config, train_dataset=Dataset.from_list(records), processing_class=tokenizer,
        optimizers=(optimizer, schedule),
    )  # fmt: skip
    trainer.train()
    assert losses == pytest.approx([row["loss"] for row in rows(packed)], abs=1e-4)
    ours = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).state_dict()
    for name, weight in model.state_dict().items():
        assert torch.allclose(weight, ours[name], atol=1e-4), name


def test_the_template_goes_with_the_model(exported: Path) -> None:
    assert "<|im_start|>" in (exported / "chat_template.jinja").read_text()


def test_a_dry_run_reads_the_tokenizers_files(base: Path, atom: Callable, tmp_path: Path) -> None:
    shutil.copytree(base.parent / "run/tokenizer", tmp_path / "tokenizer")
    chat = ("objective=sft", "objective.template=chatml", "dataset=stdlib_chat")
    for command in (("train", "dry_run=true"), ("plan",)):
        result = atom(
            *command, *chat, "tokenizer=hf", f"tokenizer.path={tmp_path / 'tokenizer'}",
            "architecture=llama3_tiny", "architecture.dim=64", "device=h100", "world_size=1",
        )  # fmt: skip
        assert result.returncode == 0, result.stderr


BAD = {
    "no template": (
        ["objective=sft", "objective.template=null"],
        '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}',
        ["objective.template", "the tokenizer has no chat template", "chatml"],
    ),
    "an unknown template": (
        ["objective.template=chatnl"],
        '{"prompt": "x", "completion": "y"}',
        ["objective.template=chatnl", "there is no such template"],
    ),
    "an empty answer": (
        [],
        '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]}',
        ["bad.jsonl:1", "empty answer"],
    ),
    "no conversation": ([], '{"text": "hello"}', ["bad.jsonl:1", "fields: text"]),
    "a packing that cuts": (
        ["data.packing=concat"],
        '{"prompt": "x", "completion": "y"}',
        ["data.packing=concat", "best_fit or none"],
    ),
    "a short sequence": (
        ["training.seq_len=16"],
        '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}',
        ["training.seq_len=16", "nothing of the first 1 documents of dataset fits"],
    ),
    "text": (["dataset=stdlib", "~dataset.path"], "", ["is text", "records with messages"]),
    "a validation set of text": (
        ["validation.sets.web=stdlib"],
        '{"prompt": "x", "completion": "y"}',
        ["validation.sets.web (command line)", "is text", "records with messages"],
    ),
    "a tokenizer that is trained on the data": (
        ["tokenizer=bpe"],
        '{"prompt": "x", "completion": "y"}',
        ["tokenizer.name=bpe", "the dataset is of records; valid: bytes or hf"],
    ),
    "a field of text": (
        ["dataset.text_field=messages"],
        '{"prompt": "x", "completion": "y"}',
        ["dataset.text_field=messages", "has no effect on records"],
    ),
}


@pytest.mark.parametrize(("overrides", "text", "said"), BAD.values(), ids=BAD.keys())
def test_bad_input(
    overrides: list[str], text: str, said: list[str], atom: Callable, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text + "\n")
    data = () if "dataset=stdlib" in overrides else (f"dataset.path={path}",)
    overrides = [each for each in overrides if not each.startswith("~")]
    result = atom(
        *("train", "tokenizer=bytes", "device=cpu", *SFT, *data, *overrides),
        f"run.dir={tmp_path / 'run'}",
    )
    assert result.returncode == 2, result.stdout + result.stderr
    for part in said:
        assert part in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
