"""Direct preference optimization from the files of a user: against trl, resumed, and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SUMS = [(1, 1), (2, 3), (5, 8), (13, 21), (34, 55), (89, 144), (7, 7), (10, 0)]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>{% endgeneration %}"
    "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
STEPS = 10


def texts() -> list[dict[str, str]]:
    return [
        {
            "prompt": f"What is {a}+{b}? ",
            "chosen": f"{a + b}, as {a} and {b} are {a + b}.",
            "rejected": "I do not know." if a % 2 else f"It is {a + b + 1}, or more.",
        }
        for a, b in SUMS
    ]


def conversations() -> list[dict[str, Any]]:
    return [
        {
            name: [{"role": "user" if name == "prompt" else "assistant", "content": content}]
            for name, content in pair.items()
        }
        for pair in texts()
    ]


def written(folder: Path, records: list[dict[str, Any]]) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def base(train: Callable, atom: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has been trained on text for a step, in Hugging Face's format."""
    place = tmp_path_factory.mktemp("base")
    train(place / "run", "training.steps=1", "training.seq_len=256")
    done = atom("export", str(place / "run"), "--to", "hf", "--out", str(place / "hf"))
    assert done.returncode == 0, done.stderr
    (place / "template.jinja").write_text(TEMPLATE)
    return place / "hf"


def overrides(base: Path, pairs: Path, *more: str) -> tuple[str, ...]:
    return (
        "objective=dpo",
        f"objective.template={base.parent / 'template.jinja'}",
        "dataset=local",
        f"dataset.path={pairs}",
        f"checkpoint.initial_load=hf:{base}",
        "checkpoint.interval=6",
        "training.seq_len=256",
        f"training.steps={STEPS}",
        "training.global_batch_size=8",
        "data.packing=none",
        *more,
    )


CASES: dict[str, tuple[Callable[[], list[dict[str, Any]]], tuple[str, ...], dict[str, Any]]] = {
    "sigmoid": (conversations, ("objective.beta=0.5",), {"loss_type": ["sigmoid"], "beta": 0.5}),
    "ipo": (texts, ("objective.loss=ipo",), {"loss_type": ["ipo"]}),
}


@pytest.fixture(scope="module")
def preferred(
    base: Path, train: Callable, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A run of each case, whose step is all pairs."""
    found = {}
    for name, (records, more, _) in CASES.items():
        place = tmp_path_factory.mktemp(name)
        train(place / "run", *overrides(base, written(place, records()), *more))
        found[name] = place / "run"
    return found


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_are_those_of_trl(
    name: str, preferred: dict[str, Path], base: Path, rows: Callable, tmp_path: Path
) -> None:
    """trl's DPOTrainer on the same pairs and weights: losses, rewards and gradients."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    records, _, settings = CASES[name]
    ours = rows(preferred[name])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: ours[min(step, STEPS - 1)]["lr"]
    )
    trainer = DPOTrainer(
        model,
        reference,
        args=DPOConfig(
            str(tmp_path),
            per_device_train_batch_size=8,
            max_steps=STEPS,
            max_length=None,
            logging_steps=1,
            max_grad_norm=1.0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **settings,
        ),
        processing_class=_bytes(),
        train_dataset=Dataset.from_list(records()),
        optimizers=(optimizer, schedule),
    )
    trainer.train()
    theirs = [row for row in trainer.state.log_history if "loss" in row]
    assert len(ours) == len(theirs) == STEPS
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4, rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        for mine, name_there in (
            ("chosen_reward", "rewards/chosen"),
            ("rejected_reward", "rewards/rejected"),
            ("margin", "rewards/margins"),
        ):
            assert one["objective"][mine] == pytest.approx(other[name_there], abs=1e-4)
    last = ours[-1]["objective"]["accuracy"]
    assert last == pytest.approx(theirs[-1]["rewards/accuracies"], abs=1e-6)
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], abs=1e-6)


def _bytes() -> Any:
    """The byte tokenizer, as a tokenizer of transformers."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    made = Tokenizer(models.BPE(vocab=letters, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<BOS>", special=True), AddedToken("<EOS>", special=True)])
    made.post_processor = processors.TemplateProcessing("<BOS> $A", None, [("<BOS>", 256)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<BOS>",
        eos_token="<EOS>",
        pad_token="<EOS>",
        chat_template=TEMPLATE,
    )


def test_a_packed_step_of_two_ranks_is_that_of_one(
    preferred: dict[str, Path], base: Path, train: Callable, rows: Callable, tmp_path: Path
) -> None:
    """Accumulated, sharded and in chunks: the mean is over the pairs of the global batch."""
    pairs = preferred["sigmoid"].parent / "pairs.jsonl"
    more = ("parallelism=fsdp", "launch.ranks=2", "training.local_batch_size=2")
    found = train(
        tmp_path / "run",
        *overrides(base, pairs, "objective.beta=0.5", *more, "loss.num_chunks=4"),
        "training.steps=4",
        f"validation.sets.same={{name: local, path: {pairs}}}",
        "validation.interval=2",
    )
    reference = rows(preferred["sigmoid"])[:4]
    for one, other in zip(found, reference, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
        for value in ("margin", "chosen_reward", "rejected_reward"):
            assert one["objective"][value] == pytest.approx(other["objective"][value], abs=1e-5)
    # Two validated steps; the weights after step 2 are those that step 3 begins with.
    validated = found[1]["validation"]["same"]
    assert validated["loss"] == pytest.approx(reference[2]["loss"], rel=1e-5)
    assert validated["margin"] == pytest.approx(reference[2]["objective"]["margin"], abs=1e-5)
    assert validated["examples"] == len(SUMS)


def test_a_resumed_run_has_the_same_bits(
    preferred: dict[str, Path],
    base: Path,
    train: Callable,
    atom: Callable,
    small: tuple[str, ...],
    rows: Callable,
    tmp_path: Path,
) -> None:
    """Its references are kept, though its initial weights are gone; others are refused."""
    from safetensors.torch import load_file, save_file

    run = tmp_path / "run"
    shutil.copytree(preferred["sigmoid"], run)
    before = rows(run)
    shutil.rmtree(run / f"checkpoint/step-{STEPS}")
    pairs = preferred["sigmoid"].parent / "pairs.jsonl"
    settings = overrides(base, pairs, "objective.beta=0.5")
    gone = base.with_name("gone")
    base.rename(gone)
    try:
        after = train(run, *settings)
        assert [row["loss"] for row in after] == [row["loss"] for row in before]
        assert [row["grad_norm"] for row in after] == [row["grad_norm"] for row in before]
        assert (run / "events.jsonl").read_text().count('"references"') == 1, "computed again"

        shutil.copytree(gone, base)
        weights = load_file(base / "model.safetensors")
        weights["model.norm.weight"] += 1e-6
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
        shutil.rmtree(run / f"checkpoint/step-{STEPS}")
        result = atom("train", *small, f"run.dir={run}", *settings)
        assert result.returncode != 0
        assert "are not those that the run began with" in result.stderr
    finally:
        shutil.rmtree(base, ignore_errors=True)
        gone.rename(base)


def test_a_teachers_predictions_are_distilled(
    base: Path, train: Callable, atom: Callable, tmp_path: Path
) -> None:
    """From its own weights there is nothing to learn; CP and chunks are as one rank."""
    chats = tmp_path / "chats.jsonl"
    chats.write_text(
        "".join(
            json.dumps({"messages": pair["prompt"] + pair["chosen"]}) + "\n"
            for pair in conversations()
        )
    )
    settings = (
        "objective=distill",
        f"objective.teacher={base}",
        "objective.top_k=8",
        f"objective.template={base.parent / 'template.jinja'}",
        "dataset=local",
        f"dataset.path={chats}",
        "training.seq_len=128",
        "training.steps=3",
        "training.global_batch_size=4",
    )
    itself = train(tmp_path / "itself", *settings, f"checkpoint.initial_load=hf:{base}")
    assert itself[0]["loss"] == pytest.approx(0, abs=1e-5)
    mixed = (*settings, "objective.temperature=2", "objective.hard_weight=0.3")
    reference = train(tmp_path / "one", *mixed)
    assert reference[0]["loss"] > 0.01
    shared = ("parallelism=cp", "launch.ranks=2", "training.local_batch_size=2")
    found = train(tmp_path / "cp", *mixed, *shared, "loss.num_chunks=2")
    for one, other in zip(found, reference, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
    result = atom(
        *(
            "train",
            *settings,
            "architecture=llama3_tiny",
            "tokenizer=bytes",
            "tokenizer.pad_to=512",
        ),
        f"run.dir={tmp_path / 'other'}",
    )
    assert result.returncode == 2
    assert "is of another vocabulary" in result.stderr


BAD = {
    "chosen is rejected": (
        {"prompt": "x", "chosen": "y", "rejected": "y"},
        [],
        ["bad.jsonl:1", "its chosen and its rejected answer are the same"],
    ),
    "preferences in objective=sft": (
        {"prompt": "x", "chosen": "y", "rejected": "z"},
        ["objective=sft"],
        ["bad.jsonl:1", "cannot be trained on"],
    ),
    "a pair that does not fit": (
        {"prompt": "x", "chosen": "y" * 30, "rejected": "z" * 30},
        ["training.seq_len=32"],
        ["training.seq_len=32", "nothing of the first 1 documents of dataset fits"],
    ),
    "smoothing of IPO": (
        {"prompt": "x", "chosen": "y", "rejected": "z"},
        ["objective.loss=ipo", "objective.label_smoothing=0.1"],
        ["objective.label_smoothing=0.1", "has no effect"],
    ),
    "a kernel of another loss": (
        {"prompt": "x", "chosen": "y", "rejected": "z"},
        ["kernels.cross_entropy=reference"],
        ["kernels.cross_entropy", "no such operation"],
    ),
    "a reference of another vocabulary": (
        {"prompt": "x", "chosen": "y", "rejected": "z"},
        ["tokenizer.pad_to=512", "checkpoint.initial_load=hf:BASE"],
        ["checkpoint.initial_load", "is of another model"],
    ),
}


@pytest.mark.parametrize(("record", "more", "said"), BAD.values(), ids=BAD.keys())
def test_bad_input(
    record: dict[str, Any],
    more: list[str],
    said: list[str],
    base: Path,
    small: tuple[str, ...],
    atom: Callable,
    tmp_path: Path,
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(record) + "\n")
    more = [each.replace("BASE", str(base)) for each in more]
    objective = () if "objective=sft" in more else ("objective=dpo",)
    result = atom(
        *("train", *small, *objective, "objective.template=chatml", "dataset=local"),
        *(f"dataset.path={path}", *more, f"run.dir={tmp_path / 'run'}"),
    )
    assert result.returncode == 2, result.stdout + result.stderr
    for part in said:
        assert part in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
