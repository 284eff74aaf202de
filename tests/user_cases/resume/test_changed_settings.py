"""A resumed run: what it says, what its files show and what it does are one thing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from resumed import GRADIENTS_KEPT, TINY, rows, saved, tree, two_of


def weights_with(state: str, values: dict[str, torch.Tensor]) -> list[str]:
    """Return the weights whose optimizer's state is in a checkpoint, under the weight's name: that
    of queries, keys and values together has another."""
    names = [
        name.removeprefix("optimizer.state.").removesuffix(state)
        for name in values
        if name.endswith(state)
    ]
    found = [name for name in names if name in values]
    assert len(found) >= 8
    return found


def rate(step: int, peak: float, warmup: int, total: int) -> float:
    """Return torchtitan's linear schedule: up over the warmup, down to 0 a step after the last."""
    done = step - 1
    return peak * ((done + 1) / warmup if done < warmup else 1 - (done - warmup) / (total - warmup))


CHANGED = {
    # pytorch/examples#816, AnswerDotAI/ModernBERT#124, NVIDIA/Megatron-LM#7468
    # Every setting of the optimizer, the schedule and the clipping at once, and one after another.
    "all": (
        {"weight_decay": 100.0, "betas": (0.7, 0.8), "eps": 0.01, "lr": 0.002},
        {"warmup": 10, "total": 40},
        0.01,
    ),
    "Adam": ({"name": "Adam", "weight_decay": 100.0}, {}, None),
}


@pytest.mark.parametrize("case", CHANGED)
def test_the_first_step_after_resuming_is_torchs_with_the_new_settings(
    case: str, three_steps: Path, train: Callable, tmp_path: Path
) -> None:
    """Weights after one step equal those of torch's own optimizer with the moments of the
    checkpoint and the settings of the command, in float64, within 1e-6 of the largest."""
    options, schedule, max_norm = CHANGED[case]
    place = two_of(three_steps, tmp_path / "run")
    given = {"betas": (0.0, 0.95)} | options
    overrides = [
        f"optimizer.{key}={list(value) if isinstance(value, tuple) else value}"
        for key, value in given.items()
    ]
    overrides += [f"lr_scheduler.{key}_steps={value}" for key, value in schedule.items()]
    said = train(place, *overrides, f"training.max_norm={max_norm or 1e9}", "training.steps=3")

    before, gradients, after = saved(three_steps, 2), saved(three_steps, 3), saved(place, 3)
    lr = rate(3, options.get("lr", 3e-4), **({"warmup": 2, "total": 20} | schedule))
    assert rows(place)[-1]["lr"] == pytest.approx(lr, rel=1e-9)
    norm = rows(three_steps)[-1]["grad_norm"]
    scale = min(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0
    optimizers = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam}
    settings = {"eps": 1e-8, "weight_decay": 0.1} | given | {"lr": lr}
    optimizer_class = optimizers[settings.pop("name", "AdamW")]
    for weight in weights_with(".exp_avg", before):
        name = f"optimizer.state.{weight}"
        expected = torch.nn.Parameter(before[weight].double())
        optimizer = optimizer_class([expected], **settings)
        optimizer.state[expected] = {
            "step": before[f"{name}.step"].clone(),
            "exp_avg": before[f"{name}.exp_avg"].double(),
            "exp_avg_sq": before[f"{name}.exp_avg_sq"].double(),
        }
        expected.grad = gradients[f"{name}.exp_avg"].double() * scale
        optimizer.step()
        error = (after[weight].double() - expected.detach()).abs().max()
        assert error <= 1e-6 * expected.detach().abs().max(), weight
    assert "changed, with an effect on the losses:" in said
    assert f"optimizer.{next(iter(options))}: " in said


def test_muon_begins_without_a_state_and_goes_on_with_its_own(
    three_steps: Path, train: Callable, tmp_path: Path
) -> None:
    """Muon begins where AdamW ended, and goes on with other settings; matrices of layers are those
    of ``torch.optim.Muon`` within 1e-5: its iterations are in bfloat16."""
    muon = ("optimizer.name=Muon", "checkpoint.exclude_from_loading=[optimizer]")
    muon += ("training.max_norm=1e9", "training.steps=4")
    whole = two_of(three_steps, tmp_path / "whole")
    train(whole, *muon, "optimizer.momentum=0.0")
    place = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(place / "checkpoint/step-4")
    changed = ("optimizer.momentum=0.5", "optimizer.weight_decay=100", "optimizer.lr=0.002")
    train(place, *muon, *changed)
    before, gradients, after = saved(whole, 3), saved(whole, 4), saved(place, 4)
    for weight in weights_with(".momentum_buffer", before):
        name = f"optimizer.state.{weight}.momentum_buffer"
        expected = torch.nn.Parameter(before[weight].clone())
        optimizer = torch.optim.Muon(
            [expected],
            lr=rate(4, 0.002, 2, 20),
            weight_decay=100,
            momentum=0.5,
            adjust_lr_fn="match_rms_adamw",
        )
        optimizer.state[expected] = {"momentum_buffer": before[name].clone()}
        expected.grad = gradients[name].clone()
        optimizer.step()
        torch.testing.assert_close(after[weight], expected.detach(), atol=1e-5, rtol=1e-5)
    # What is left out is AdamW's state of the first load, and not what Muon's run has saved.
    assert before["optimizer.state.norm.weight.step"] == 1
    assert after["optimizer.state.norm.weight.step"] == 2


# ---------------------------------------------------------------------------- all other settings

HARMLESS = (
    "training.local_batch_size=2",
    "training.gc_freq=7",
    "loss.num_chunks=2",
    "parallelism=fsdp",
    "launch.ranks=2",
    "kernels.optimizer_step=reference",
    "activation_checkpoint.mode=full",
    "checkpoint.interval=2",
    "checkpoint.keep_latest_k=3",
    "checkpoint.async_mode=disabled",
    "faults.replay_check_interval=1",
    "debug.deterministic=true",
    "data.trace=true",
    "launch.max_restarts=0",
    # torchtitan's own dump of its config; ranks failed.
    "debug.print_config=true",
    "debug.save_config_file=torchtitan.json",
)


def test_what_is_called_harmless_changes_no_loss(
    three_steps: Path, train: Callable, tmp_path: Path
) -> None:
    """All at once; the loss of every step within 2e-5, weights within 1e-6 in most elements."""
    place = two_of(three_steps, tmp_path / "run")
    said = train(place, *GRADIENTS_KEPT, "training.steps=3", *HARMLESS)
    assert "with an effect on the losses" not in said
    assert "changed:\n" in said
    for one, other in zip(rows(place), rows(three_steps), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=2e-5)
        assert one["lr"] == other["lr"]


REFUSED = {
    "seed": (("debug.seed=1",), ("debug.seed=1", "debug.seed=0", "resume.force=true")),
    "another optimizer": (
        ("optimizer.name=Muon",),
        ("optimizer.name=Muon", "state of AdamW", "checkpoint.exclude_from_loading=[optimizer]"),
    ),
    # A checkpoint that is not read would be trained over from the first step.
    "checkpoints off": (
        ("checkpoint.interval=500", "checkpoint.enable=false"),
        ("checkpoint.enable=false", "another run."),
    ),
    "other weights": (
        ("checkpoint.initial_load=elsewhere",),
        ("checkpoint.initial_load=", "no initial weights are loaded", "resume.force=true"),
    ),
    # Ranks that start again after a failure would go back to it every time.
    "another step": (
        ("checkpoint.load_step=1",),
        ("checkpoint.load_step=1 (command line): is always -1", "move newer checkpoints"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    case: str, three_steps: Path, atom: Callable, texts: Path, tmp_path: Path
) -> None:
    overrides, words = REFUSED[case]
    place = two_of(three_steps, tmp_path / "run")
    before = tree(place)
    command = (*TINY, *GRADIENTS_KEPT, f"dataset.path={texts}", f"run.dir={place}")
    result = atom("train", *command, "training.steps=4", *overrides)
    assert result.returncode == 2, result.stdout + result.stderr
    assert len(result.stderr.splitlines()) == 1
    for each in words:
        assert each in result.stderr
    assert tree(place) == before
