"""The points of a step and who is called there, in one process over a model of one layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from atom.errors import RunError
from atom.recipe.sections import Faults as Settings
from atom.run_dir import events
from atom.titan.train.callback import Callback, Decision
from atom.titan.train.callbacks import CALLBACKS
from atom.titan.train.faults import Faults
from atom.titan.train.replay import ReplayCheck
from atom.titan.train.trainer import AtomTrainer


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Steps:
    """Counts the steps of an optimizer or of a schedule, and does them."""

    def __init__(self, does: Any) -> None:
        self.does, self.count = does, 0

    def zero_grad(self, *, set_to_none: bool) -> None:
        self.does.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        self.count += 1
        if self.does is not None:
            self.does.step()

    def get_metrics(self) -> dict[str, float]:
        return {"lr/all": 0.1}


class Metrics:
    """Keeps what is logged; every step is."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, float, float]] = []

    def should_log(self, _step: int) -> bool:
        return True

    def log(self, step: int, loss: float, _largest: float, norm: float, **_more: Any) -> None:
        self.rows.append((step, loss, norm))


class Layer(AtomTrainer):
    """The trainer's step over y = w x, without what surrounds it in a run."""

    def __init__(self, run: Path, *callbacks: type[Callback], **faults: Any) -> None:
        self.callbacks = [callback(self) for callback in callbacks]
        self.run = run
        training = SimpleNamespace(steps=10, max_norm=1e9, disable_cuda_graphs=True)
        self.config = SimpleNamespace(faults=Settings(**faults), training=training)  # type: ignore[assignment]
        self.device = torch.device("cpu")
        no_mesh = {"dp_enabled": False, "dp_cp_enabled": False, "pp_enabled": False}
        sizes = {"tp": 1, "dp_replicate": 1, "dp_shard": 1, "cp": 1, "ep_enabled": False}
        self.parallel_dims = SimpleNamespace(
            **no_mesh, **sizes, get_optional_mesh=lambda _name: None
        )
        self.layer = nn.Linear(2, 1, bias=False)
        nn.init.constant_(self.layer.weight, 0.5)
        self.model_parts = [self.layer]
        self.optimizers = Steps(torch.optim.SGD(self.layer.parameters(), lr=0.1))
        self.lr_schedulers = Steps(None)
        self.metrics_processor = Metrics()
        self.checkpointer = SimpleNamespace(enable=False, maybe_wait_for_staging=lambda: None)
        self.dataloader = None
        self.loss_fn = None
        self.gradient_accumulation_steps = self.num_pipeline_parallel_microbatches = 1
        self.step = self.ntokens_seen = self.discarded = 0
        self.noise = 0.0
        for callback in self.callbacks:
            callback.on_built()

    def computed(self, *, input_dict: Any, labels: Any, global_valid_tokens: Any) -> torch.Tensor:
        loss = ((self.layer(input_dict["x"]) - labels) ** 2).sum() / global_valid_tokens
        loss = loss * (1 + self.noise * torch.rand(()))
        loss.backward()
        return loss

    def do(self, x: float = 1.0) -> None:
        """Do the next step, on two inputs of ``x`` whose label is 0."""
        self.step += 1
        batch = ({"x": torch.full((2, 2), x)}, torch.zeros(2, 1))
        self.train_step(iter([batch] * 4))

    @property
    def weight(self) -> float:
        return self.layer.weight[0, 0].item()


def recording(said: list[str], *decisions: Decision) -> type[Callback]:
    """Return a callback that notes each point, and decides on the steps as given."""
    left = list(decisions)

    class Recorder(Callback):
        name = "recorder"

        def before_optimizer(self, _grad_norm: torch.Tensor) -> Decision:
            said.append("before_optimizer")
            return left.pop(0)

    def noting(point: str) -> Any:
        return lambda self, *_: said.append(point)  # noqa: ARG005

    for point in ("before_step", "before_forward", "after_forward", "after_backward"):
        setattr(Recorder, point, noting(point))
    for point in ("after_optimizer", "on_skipped", "after_step"):
        setattr(Recorder, point, noting(point))
    return Recorder


UNTIL = ["before_step", "before_forward", "after_forward", "after_backward", "before_optimizer"]


@pytest.mark.parametrize(
    ("decisions", "points", "steps"),
    [
        ([Decision.TAKE], [*UNTIL, "after_optimizer", "after_step"], (1, 1)),
        ([Decision.SKIP], [*UNTIL, "on_skipped", "after_step"], (0, 1)),
        (
            [Decision.AGAIN, Decision.TAKE],
            [*UNTIL, *UNTIL, "after_optimizer", "after_step"],
            (1, 1),
        ),
    ],
    ids=["taken", "skipped", "again"],
)
def test_points_of_a_step(
    decisions: list[Decision], points: list[str], steps: tuple[int, int], tmp_path: Path
) -> None:
    said: list[str] = []
    trainer = Layer(tmp_path, recording(said, *decisions))
    trainer.do()
    assert said == points
    assert (trainer.optimizers.count, trainer.lr_schedulers.count) == steps


def test_the_first_decision_holds(tmp_path: Path) -> None:
    first, second = [], []
    trainer = Layer(tmp_path, recording(first, Decision.SKIP), recording(second))
    trainer.do()
    assert "before_optimizer" in first
    assert "before_optimizer" not in second
    assert "after_step" in second


def test_a_step_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    trainer = Layer(tmp_path, Faults)
    weight = 0.5
    for step in (1, 2, 3):
        trainer.do()
        # Two inputs (1, 1): the loss is the mean of (2 w)^2, its gradient 4 w for each weight.
        loss, norm = (2 * weight) ** 2, 4 * weight * math.sqrt(2)
        assert trainer.metrics_processor.rows[-1] == pytest.approx((step, loss, norm))
        weight -= 0.1 * 4 * weight
        assert trainer.weight == pytest.approx(weight)


def test_what_is_not_finite_is_not_taken(tmp_path: Path) -> None:
    trainer = Layer(tmp_path, Faults, non_finite="skip")
    trainer.do()
    weight = trainer.weight
    trainer.do(math.inf)
    assert trainer.weight == weight
    assert trainer.lr_schedulers.count == 2, "the step counts"
    (fault,) = [e for e in events.read(tmp_path) if e["event"] == events.NUMERICAL_FAULT]
    assert (fault["step"], fault["decision"], fault["fault"]) == (2, "skip", "non_finite")
    trainer.do()
    assert trainer.weight < weight


def test_what_is_not_finite_ends_a_run(tmp_path: Path) -> None:
    trainer = Layer(tmp_path, Faults)
    with pytest.raises(RunError, match="the loss of step 1 is inf"):
        trainer.do(math.inf)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_step_computed_again_has_the_same_bits(noise: float, tmp_path: Path) -> None:
    trainer = Layer(tmp_path, ReplayCheck, replay_check_interval=2)
    trainer.do()
    trainer.noise = noise
    trainer.do()  # random numbers are the same ones again
    weight = trainer.weight
    trainer.do()
    assert trainer.weight < weight


def test_a_processor_that_errs_is_found(tmp_path: Path) -> None:
    trainer = Layer(tmp_path, ReplayCheck, replay_check_interval=1)
    right, calls = trainer.computed, []

    def errs(**inputs: Any) -> torch.Tensor:
        calls.append(1)
        loss = right(**inputs)
        if len(calls) == 2:
            trainer.layer.weight.grad[0, 0] += 1e-6  # type: ignore[index]
        return loss

    trainer.computed = errs  # type: ignore[method-assign]
    with pytest.raises(RunError, match="step 1 computed again gives other bits"):
        trainer.do()


def test_the_list_has_each_concern_once() -> None:
    names = [callback.name for callback in CALLBACKS]
    assert len(set(names)) == len(names)
    states = [callback.state_name for callback in CALLBACKS if callback.state_name is not None]
    assert states == ["stream", "faults"], (
        "keys of checkpoints: those that there are must still load"
    )
