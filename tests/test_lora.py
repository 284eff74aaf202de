"""Low-rank adapters: against PEFT, under every layout, resumed, exported, refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from families import FAMILIES, adapted, saver

from atom.errors import UserError
from atom.titan.saved_model import Checkpoint
from atom.titan.weights import adapter
from atom.titan.weights import export as whole

pytestmark = pytest.mark.slow

STEPS = 10
PAIRS = [(f"{a}+{b}=", f"{a + b}.") for a, b in [(1, 1), (2, 3), (5, 8), (13, 21)]]
SHAPE = ("architecture.n_layers=2", "architecture.n_kv_heads=2")
LORA = ("lora.rank=4", "lora.alpha=8", "lora.rslora=true", "lora.targets=[wq,wv,feed_forward.*]")
ADAPTED = {"q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def base(train: Callable, export: Callable, folder: Path) -> Path:
    """A run of two steps, and its export as ``base-hf``."""
    train(folder / "base", *SHAPE, "training.steps=2", "checkpoint.enable=true")
    export(folder / "base", "base-hf")
    return folder / "base"


@pytest.fixture(scope="module")
def export(atom: Callable, folder: Path) -> Callable[..., Path]:
    def run(place: Path, name: str, *options: str) -> Path:
        how = options or ("--to", "hf")
        done = atom("export", str(place), "--out", str(folder / name), *how)
        assert done.returncode == 0, done.stderr
        return folder / name

    return run


@pytest.fixture(scope="module")
def settings(base: Path, folder: Path) -> tuple[str, ...]:
    """Adapters of the base that learn answers, four sequences a step."""
    records = [{"prompt": prompt, "completion": answer} for prompt, answer in PAIRS]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = (
        "objective=sft",
        "objective.template=chatml",
        "dataset=local",
        f"dataset.path={path}",
        "data.packing=none",
    )
    schedule = ("optimizer.lr=3e-2", "lr_scheduler.warmup_steps=0", "training.global_batch_size=4")
    saves = ("checkpoint.enable=true", f"checkpoint.initial_load={base}")
    return (*SHAPE, *LORA, *data, *schedule, *saves, f"training.steps={STEPS}")


@pytest.fixture(scope="module")
def run(settings: tuple[str, ...], train: Callable, folder: Path) -> Path:
    """Ten steps on one rank, with a checkpoint after five, an average and a validation set."""
    held_out = f"{{name: local, path: {folder / 'pairs.jsonl'}}}"
    train(
        folder / "run", *settings, "checkpoint.interval=5", "callbacks=ema",
        f"validation.sets.pairs={held_out}", "validation.tokens=64", "validation.interval=10",
    )  # fmt: skip
    return folder / "run"


@pytest.fixture(scope="module")
def begun(settings: tuple[str, ...], train: Callable, export: Callable, folder: Path) -> Path:
    """The adapters before the first step, in PEFT's format: one step at a rate of nothing."""
    train(folder / "begun", *settings, "training.steps=1", "optimizer.lr=1e-30")
    return export(folder / "begun", "begun-peft", "--adapter")


def losses(place: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (place / "metrics.jsonl").read_text().splitlines()]


def logits(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(3, 67)[None]).logits
    return found


def tensors(place: Path) -> dict[str, Any]:
    return dict(Checkpoint(place).tensors)


def test_ten_steps_are_those_of_peft(run: Path, begun: Path, folder: Path) -> None:
    """PEFT's layers and torch's AdamW, with the same initial adapters, an answer at a time."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(folder / "base-hf", dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, begun, is_trainable=True)
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    bos, eos = (
        yaml.safe_load((folder / "base-hf/generation_config.json").read_text())[f"{n}_token_id"]
        for n in ("bos", "eos")
    )
    examples = [
        ([bos, *prompt.encode(), *answer.encode(), eos], 1 + len(prompt))
        for prompt, answer in PAIRS
    ]
    count = sum(len(ids) - learnt for ids, learnt in examples)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == STEPS
    for row in rows:
        total = 0.0
        for ids, learnt in examples:
            output = model(torch.tensor([ids])).logits[0, :-1]
            wanted = torch.tensor([*[-100] * (learnt - 1), *ids[learnt:]])
            loss = torch.nn.functional.cross_entropy(output, wanted, reduction="sum") / count
            loss.backward()
            total += loss.item()
        assert row["loss"] == pytest.approx(total, abs=1e-4)
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        optimizer.param_groups[0]["lr"] = row["lr"]
        optimizer.step()
        optimizer.zero_grad()


def test_the_first_loss_is_the_bases(
    settings: tuple[str, ...], run: Path, train: Callable, folder: Path
) -> None:
    """B is zero, and the frozen layers compute the same bits."""
    whole = [word for word in settings if not word.startswith("lora.")]
    train(folder / "whole", *whole, "training.steps=1")
    assert losses(folder / "whole") == losses(run)[:1]


def test_a_checkpoint_has_the_adapters_alone(run: Path) -> None:
    """Neither weights of the base, nor state or averages of them."""
    found = tensors(run / "checkpoint/step-10")
    mine = {name for name in found if not name.startswith(("optimizer.", "callbacks."))}
    weights = {name for name in mine if name.endswith(".weight")}
    assert len(weights) == 2 * 2 * len(ADAPTED)
    assert all(".lora_a." in name or ".lora_b." in name for name in weights)
    states = {
        name.removeprefix("optimizer.state.").rpartition(".")[0]
        for name in found
        if name.startswith("optimizer.state")
    }
    averages = {
        name.removeprefix("callbacks.ema.average.") for name in found if ".average." in name
    }
    assert states == averages == weights


def test_the_base_is_not_trained(run: Path, export: Callable, folder: Path) -> None:
    """The export is the base and what PEFT adds to it; layers without an adapter are the base's."""
    from safetensors.torch import load_file

    adapter, merged = export(run, "peft", "--adapter"), export(run, "merged")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == ADAPTED
    before, after = (load_file(each / "model.safetensors") for each in (folder / "base-hf", merged))
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {name.split(".")[-2] for name in changed} == ADAPTED
    assert len(changed) == 2 * len(ADAPTED)
    plain, whole = logits(folder / "base-hf"), logits(merged)
    assert float((whole - plain).abs().max()) > 0.1
    assert torch.allclose(logits(folder / "base-hf", adapter), whole, atol=1e-5)


@pytest.mark.parametrize(
    "layout",
    [
        ("parallelism=fsdp", "debug.seed=7", "lora.adapter={begun}"),
        ("parallelism.tensor_parallel_degree=2", "resume.from={run}@5"),
        ("parallelism.pipeline_parallel_degree=2",),
    ],
    ids=["fsdp", "tp", "pp"],
)
def test_layouts_agree(
    layout: tuple[str, ...],
    run: Path,
    begun: Path,
    settings: tuple[str, ...],
    train: Callable,
    folder: Path,
) -> None:
    """The same losses to 1e-5, from the same initial adapters, and every shard is saved.

    The adapters are drawn from the seed, those that were exported for PEFT, or those of the run
    after five steps, with the optimizer's state.
    """
    place = folder / layout[0].partition("=")[0]
    words = [word.format(begun=begun, run=run) for word in layout]
    last = STEPS if "resume.from" in words[-1] else 5
    train(place, *settings, *words, "launch.ranks=2", f"training.steps={last}")
    assert losses(place)[-5:] == pytest.approx(losses(run)[last - 5 : last], abs=1e-5)
    mine, theirs = (Checkpoint(each / f"checkpoint/step-{last}") for each in (place, run))
    names = [name for name in theirs.tensors if name.startswith("layers.")]
    assert len(names) == 4 * len(ADAPTED)
    for name in names:
        torch.testing.assert_close(mine.read(name), theirs.read(name), atol=1e-4, rtol=1e-3)


def test_resuming_is_bitwise_and_of_the_same_adapters(
    run: Path,
    settings: tuple[str, ...],
    atom: Callable,
    forked: Callable,
    folder: Path,
    small: tuple[str, ...],
) -> None:
    place, base = folder / "again", folder / "base-copy"
    shutil.copytree(run, place)
    shutil.rmtree(place / "checkpoint/step-10")
    words = ("train", *small, *settings, f"run.dir={place}", "checkpoint.interval=5")
    words += (
        "callbacks=ema",
        f"validation.sets.pairs={{name: local, path: {folder / 'pairs.jsonl'}}}",
    )
    words += ("validation.tokens=64", "validation.interval=10")
    for change in ("lora.rank=8", "lora.alpha=16", "lora.targets=[wq]", "lora.rslora=false"):
        refused = forked(*words, change)
        key = change.partition("=")[0]
        assert refused.returncode == 2
        assert f"holds checkpoints of a run with {key}" in refused.stderr
    # The base may lie elsewhere, with the same content.
    shutil.copytree(folder / "base", base)
    moved = f"checkpoint.initial_load={base}"
    weights = base / "checkpoint/step-2/__0_0.distcp"
    content = weights.read_bytes()
    weights.write_bytes(content[:-9] + b"x" + content[-8:])
    refused = atom(*words, moved)
    assert refused.returncode == 2, refused.stdout
    assert "damaged" in refused.stderr
    weights.write_bytes(content)
    shutil.copytree(folder / "whole/checkpoint/step-1", base / "checkpoint/step-3")
    refused = atom(*words, moved)
    assert refused.returncode == 2, refused.stdout
    assert "has other weights than when the adapters" in refused.stderr
    shutil.rmtree(base / "checkpoint/step-3")
    done = atom(*words, moved)
    assert done.returncode == 0, done.stderr
    assert losses(place) == losses(run)


def test_a_run_of_adapters_is_no_base(
    run: Path, settings: tuple[str, ...], atom: Callable, small: tuple[str, ...], folder: Path
) -> None:
    words = (*small, *settings, f"checkpoint.initial_load={run}")
    result = atom("train", *words, f"run.dir={folder / 'bad'}")
    assert result.returncode == 2, result.stdout
    assert "holds adapters, and not the weights that they belong to" in result.stderr
    assert not (folder / "bad").exists()


def test_commands_on_adapters(run: Path, atom: Callable, folder: Path) -> None:
    """The validation of the run, and of its whole model; averages of checkpoints are refused."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for average in ((), ("--average", "ema")):
        done = atom("validate", str(run), *average)
        assert done.returncode == 0, done.stderr
        kind = "pairs/ema" if average else "pairs"
        assert f"{rows[-1]['validation'][kind]['loss']:.4f}" in done.stdout
    refused = atom("average", str(run), "--steps", "5,10", "--out", str(folder / "mean"))
    assert refused.returncode == 2
    assert "adapters" in refused.stderr
    refused = atom("export", str(folder / "base"), "--adapter", "--out", str(folder / "none"))
    assert refused.returncode == 2
    assert "has no adapters" in refused.stderr
    assert not (folder / "none").exists()


DENSE = {
    "llama3, tied, scaled rope": ["*"],
    "qwen3, tied": ["*"],
    "olmo2": ["*"],
    "gpt_oss": ["*"],
    "deepseek_v3": ["attention.*"],
}


@pytest.mark.parametrize("family", DENSE)
def test_peft_loads_every_family(family: str, tmp_path: Path) -> None:
    """Random adapters over random weights: PEFT's logits are those of the merged export."""
    base = saver(tmp_path)(FAMILIES[family], "base")
    run = adapted(base, tmp_path / "run", {"rank": 3, "alpha": 5.0, "targets": DENSE[family]})
    whole.export(base, tmp_path / "hf")
    whole.export(run, tmp_path / "merged")
    adapter.export(run, tmp_path / "peft")
    plain, merged = logits(tmp_path / "hf"), logits(tmp_path / "merged")
    assert float((merged - plain).abs().max()) > 0.1
    assert torch.allclose(logits(tmp_path / "hf", tmp_path / "peft"), merged, atol=1e-4)


UNKNOWN = {
    "deepseek_v3": (["w2"], "for one of all experts"),
    "qwen3_5": (["in_proj_q"], "is no layer of its own"),
}


@pytest.mark.parametrize("family", UNKNOWN)
def test_what_peft_would_misread_is_refused(family: str, tmp_path: Path) -> None:
    targets, words = UNKNOWN[family]
    base = saver(tmp_path)(FAMILIES[family], "base")
    run = adapted(base, tmp_path / "run", {"rank": 3, "targets": targets})
    with pytest.raises(UserError, match=words):
        adapter.export(run, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()
