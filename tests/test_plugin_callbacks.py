"""Callbacks of plugins: their points, values, errors and state, in one process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_callbacks import Layer

from atom.errors import RunError, UserError
from atom.plugin import CallbackContext, TrainerCallback, Training
from atom.run_dir import events
from atom.run_dir.resume import _judge_callbacks
from atom.titan.checkpoint.callback_state import CallbackState, leave_out_new
from atom.titan.train.faults import Faults
from atom.titan.train.metrics import StepMetricsProcessor
from atom.titan.train.plugin_callbacks import Opened, PluginCallback
from atom.titan.trainer_config import _callbacks


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Rows(StepMetricsProcessor):
    """Keeps the values of callbacks of each logged step."""

    def __init__(self, every: int) -> None:
        self.every, self.writes = every, True
        self.also_logs, self.callbacks, self.histograms = [], {}, {}
        self.rows: dict[int, dict[str, dict[str, float]]] = {}

    def should_log(self, step: int) -> bool:
        return step % self.every == 0 or any(logs(step) for logs in self.also_logs)

    def log(self, step: int, *_: Any, **_more: Any) -> None:
        self.rows[step] = {name: dict(values) for name, values in self.callbacks.items()}


def layer(run: Path, *callbacks: TrainerCallback, every: int = 1, **faults: Any) -> Layer:
    """Return a trainer of one layer with callbacks named a, b, …"""
    trainer = Layer(run, Faults, **faults)
    trainer.metrics_processor = Rows(every)
    for name, callback in zip("abc", callbacks, strict=False):
        trainer.callbacks.append(PluginCallback(trainer, Opened(name, callback)))
        trainer.callbacks[-1].on_built()
    return trainer


class Points(TrainerCallback):
    """Notes each point, and runs code at one of them."""

    def __init__(self, **at: Callable[[Training], None]) -> None:
        self.said: list[str] = []
        self.at = at

    def _note(self, point: str, training: Training) -> None:
        assert not torch.is_grad_enabled()
        self.said.append(point)
        if point in self.at:
            self.at[point](training)


for _point in [name for name in vars(TrainerCallback) if name.startswith(("on_", "bef", "aft"))]:
    setattr(
        Points,
        _point,
        lambda self, training, *_, point=_point: self._note(point, training),
    )

TAKEN = ["before_step", "before_forward", "after_forward", "after_backward"]
TAKEN += ["before_optimizer", "after_optimizer", "after_step"]
SKIPPED = [*TAKEN[:4], "on_skipped", "after_step"]


def test_points_of_a_step_are_called_in_order(tmp_path: Path) -> None:
    points = Points()
    trainer = layer(tmp_path, points, non_finite="skip")
    trainer.do()
    trainer.do(math.inf)
    assert points.said == ["on_start", *TAKEN, *SKIPPED]


def test_what_a_point_sees(tmp_path: Path) -> None:
    seen = []
    view = Points(
        after_optimizer=lambda training: seen.append(
            (training.step, training.steps, training.logged, len(training.model_parts))
        )
    )
    trainer = layer(tmp_path, view, every=2)
    trainer.do()
    trainer.do()
    assert seen == [(1, 10, False, 1), (2, 10, True, 1)]


@pytest.mark.parametrize("point", ["on_start", "before_step", "after_forward", "after_optimizer"])
def test_an_exception_is_told_by_callback_and_point(point: str, tmp_path: Path) -> None:
    def fails(_training: Training) -> None:
        raise KeyError("layers.0")

    words = rf"callbacks.a \([a-z_.]*\) failed in {point} of step \d: KeyError: 'laye"
    with pytest.raises(RunError, match=words):
        layer(tmp_path, Points(**{point: fails})).do()


class Logs(TrainerCallback):
    """Logs the step at each step, and asks for rows of its own."""

    def __init__(self, wanted: int = 0) -> None:
        self.wanted = wanted

    def wants_row(self, step: int) -> bool:
        return step == self.wanted

    def after_backward(self, training: Training) -> None:
        training.log({"early": torch.tensor(training.step)})

    def after_optimizer(self, training: Training) -> None:
        training.log({"late/0": training.step})


def test_values_are_in_the_row_of_their_step(tmp_path: Path) -> None:
    """Those of a step without a row, and of a skipped step, are in no other row."""
    trainer = layer(tmp_path, Logs(wanted=3), Logs(), every=2, non_finite="skip")
    for x in (1.0, 1.0, 1.0, math.inf):
        trainer.do(x)
    rows = trainer.metrics_processor.rows
    both = [{name: {"early": step, "late/0": step} for name in "ab"} for step in (2, 3)]
    assert rows == {2: both[0], 3: both[1], 4: {name: {"early": 4} for name in "ab"}}


@pytest.mark.parametrize(
    ("point", "values", "words"),
    [
        ("after_step", {"a": 1}, "log is called outside of a step; valid: from before_step"),
        ("before_step", {"a b": 1}, "'a b' is no name of a value"),
        ("before_step", {str(n): 1 for n in range(10_001)}, "log is given 10,001 values; valid"),
        ("before_step", {"a": "high"}, "failed in before_step of step 1: ValueError: could not"),
    ],
)
def test_what_is_no_value_is_refused(
    point: str, values: dict[str, Any], words: str, tmp_path: Path
) -> None:
    callback = Points(**{point: lambda training: training.log(values)})
    with pytest.raises(RunError, match=words):
        layer(tmp_path, callback).do()


def test_an_alert_is_an_event_and_a_stop_ends_the_run(tmp_path: Path) -> None:
    trainer = layer(
        tmp_path,
        Points(after_backward=lambda training: training.alert("layer 3 runs away")),
        Points(after_optimizer=lambda training: training.stop("layer 3 ran away")),
    )
    with pytest.raises(RunError, match=r"callbacks\.b ends the run in step 1: layer 3 ran away"):
        trainer.do()
    (alert,) = [e for e in events.read(tmp_path) if e["event"] == events.ALERT]
    assert (alert["callback"], alert["step"], alert["reason"]) == ("a", 1, "layer 3 runs away")


class Remembers(TrainerCallback):
    def __init__(self, **state: Any) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def state_of(callback: TrainerCallback) -> CallbackState:
    return CallbackState(callback, lambda _point, code, *arguments: code(*arguments))


def test_state_is_tensors_and_json() -> None:
    """DCP sees tensors, and one text for what is no tensor, whatever its shape."""
    tensors = {"w": torch.ones(2)}
    state = {"median": {"0": [1.0, math.inf]}, "mean": tensors, "count": 3, "none": {}}
    saved = state_of(Remembers(**state)).state_dict()
    assert saved["mean"] is tensors
    assert {type(saved[key]) for key in ("median", "count", "none")} == {str}
    back = Remembers()
    state_of(back).load_state_dict(saved)
    assert back.state == state


def test_a_checkpoint_without_a_callback_is_not_asked_for_it() -> None:
    loaded = {"model": 1, "callbacks.a": state_of(Remembers(x=1, y=2))}
    leave_out_new(loaded, {"model"})
    assert loaded == {"model": 1}
    loaded = {"callbacks.a": state_of(Remembers(x=1, y=2))}
    leave_out_new(loaded, {"callbacks.a.x", "callbacks.a.y", "callbacks.b.x"})
    assert list(loaded) == ["callbacks.a"]
    with pytest.raises(RunError, match=r"the checkpoint has no callbacks\.a\.y"):
        leave_out_new(loaded, {"callbacks.a.x"})


def chosen(observes: bool = True, makes: Any = None) -> Any:
    declaration = SimpleNamespace(observes=observes, averages=False, callback="mine.code:callback")
    component = SimpleNamespace(plugin=SimpleNamespace(package="mine"))
    return SimpleNamespace(
        declaration=declaration,
        component=component,
        key="callbacks.a",
        call=lambda _reference, context: makes(context),
    )


@pytest.mark.parametrize(
    ("before", "observers", "after", "kind"),
    [
        ([], [], {"a": True}, "harmless"),
        ([], [], {"a": False}, None),
        (["a"], ["a"], {}, "harmless"),
        (["a"], [], {}, None),
        (["a"], ["a"], {"a": True}, "harmless"),
        (["a"], ["a"], {"a": False}, None),
    ],
)
def test_a_resumed_run_may_change_its_observers(
    before: list[str], observers: list[str], after: dict[str, bool], kind: str | None
) -> None:
    run = SimpleNamespace(
        callbacks=dict.fromkeys(before), resolved=SimpleNamespace(observers=observers)
    )
    judge = _judge_callbacks({name: chosen(observes) for name, observes in after.items()}, run)
    assert judge("callbacks.a.interval") == judge("callbacks.a") == kind
    assert judge("training.steps") is None


def test_what_opens_no_callback_is_refused() -> None:
    contexts: list[CallbackContext] = []

    def makes(context: CallbackContext) -> TrainerCallback:
        contexts.append(context)
        return TrainerCallback()

    run = SimpleNamespace(debug=SimpleNamespace(seed=None), training=SimpleNamespace(steps=7))
    for code, ok in ((makes, True), (lambda _context: 3, False)):
        selection = SimpleNamespace(many=lambda _kind, code=code: {"a": chosen(makes=code)})
        if ok:
            (opened,) = _callbacks(selection, run)
            assert (opened.name, contexts[0].steps, contexts[0].name) == ("a", 7, "a")
            continue
        with pytest.raises(UserError, match=r"mine\.code:callback of mine returns a int, and must"):
            _callbacks(selection, run)


def test_averages_that_are_not_of_the_weights_are_told(tmp_path: Path) -> None:
    class Other(TrainerCallback):
        def averages(self) -> list[torch.Tensor]:
            return [torch.zeros(3)]

    trainer = Layer(tmp_path, Faults)
    state = PluginCallback(trainer, Opened("a", Other(), averages=True)).state
    with pytest.raises(RunError, match="averages returns other tensors than one of each param"):
        state.state_dict()


def test_histograms_are_logged_in_a_step(tmp_path: Path) -> None:
    edges = [0.0, 1.0, 2.0]
    at = {
        "after_backward": lambda training: training.log_histograms(
            edges, {"w/0": [1, training.step]}
        )
    }
    trainer = layer(tmp_path, Points(**at), every=2)
    found = trainer.metrics_processor.histograms
    trainer.do()
    assert found == {}, "a step without a row"
    trainer.do()
    assert found["a"].counts == {"w/0": [1, 2]}
    trainer.do()
    assert found == {}, "those of the step before"


@pytest.mark.parametrize(
    ("edges", "counts", "words"),
    [
        ([0.0], {"w": []}, "1 edges; valid: 2 to 513"),
        ([0.0, 0.0], {"w": [1]}, "edges that do not ascend"),
        ([0.0, 1.0], {"w": [1, 2]}, "w does not have a number for each of 1 bins"),
        ([0.0, 1.0], {"w w": [1]}, "'w w' is no name of a value"),
        (range(500), {str(n): [0] * 499 for n in range(500)}, "500 histograms of 499 bins are too"),
    ],
)
def test_what_is_no_histogram_is_refused(
    edges: Any, counts: dict[str, list[float]], words: str, tmp_path: Path
) -> None:
    at = {"after_backward": lambda training: training.log_histograms(edges, counts)}
    with pytest.raises(RunError, match=f"failed in after_backward of step 1: ValueError: {words}"):
        layer(tmp_path, Points(**at)).do()
