"""An exploding layer and a broken router are named; values are those of plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from atom_diagnostics.config import ExpertAlert, Experts, NormAlert, Norms
from atom_diagnostics.experts import Routing
from atom_diagnostics.layers import layer_of
from atom_diagnostics.norms import LayerNorms
from atom_diagnostics.running_away import RunningAway


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class StoppedError(Exception):
    """The run was ended."""


class Router(nn.Module):
    """Chooses two of four experts by softmax, as torchtitan's router does."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.top_k = 4, 2
        self.gate = nn.Linear(4, 4, bias=False)

    def forward(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scores_TE = self.gate(x_TD).softmax(-1)
        best_TK, ids_TK = scores_TE.topk(2)
        return best_TK, ids_TK, scores_TE


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.router = nn.Linear(4, 4), Router()

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return x_TD + self.linear(x_TD) * self.router(x_TD)[0].sum(-1, keepdim=True)


class Run:
    """A run of three layers, which does the steps of a callback."""

    def __init__(self, callback: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"layers": nn.ModuleDict({str(n): Layer() for n in range(3)})})
        self.rows: list[dict[str, float]] = []
        self.alerts: list[str] = []
        self.model_parts, self.device, self.probing = [self.model], torch.device("cpu"), False
        self.parallel_dims = SimpleNamespace(pp=1, pp_enabled=False)
        self.step = 0
        self.callback = callback
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        callback.on_start(self)

    def log(self, values: dict[str, float]) -> None:
        self.rows[-1].update({key: float(value) for key, value in values.items()})

    def alert(self, reason: str) -> None:
        self.alerts.append(reason)

    def stop(self, reason: str) -> None:
        raise StoppedError(reason)

    def do(self, passes: int = 2) -> dict[str, float]:
        """Do a step; return what was logged."""
        self.step += 1
        self.rows.append({})
        self.callback.before_step(self)
        self.optimizer.zero_grad()
        for number in range(passes):
            self.callback.before_forward(self, {})
            x_TD = torch.arange(32.0).reshape(8, 4).add(number).cos()
            for layer in self.model["layers"].values():
                # The backward pass of sin needs the layer's output, and so all of the layer again.
                x_TD = torch.utils.checkpoint.checkpoint(
                    lambda x_TD, layer=layer: layer(x_TD).sin(), x_TD, use_reentrant=False
                )
            loss = x_TD.square().mean()
            loss.backward()
            self.callback.after_forward(self, loss)
        self.callback.after_backward(self)
        self.callback.before_optimizer(self, loss)
        self.optimizer.step()
        self.callback.after_optimizer(self)
        return self.rows[-1]


def norms(**changed: Any) -> LayerNorms:
    return LayerNorms(Norms(**{"interval": 1} | changed), last_step=100)


def test_norms_are_those_of_plain_arithmetic() -> None:
    run = Run(norms())
    before = [p.detach().clone() for p in run.model["layers"]["1"].parameters()]
    row = run.do()
    after = list(run.model["layers"]["1"].parameters())

    def norm(tensors: Any) -> float:
        return math.sqrt(sum(t.double().square().sum().item() for t in tensors))

    assert row["weight/layers.1"] == pytest.approx(norm(before))
    assert row["gradient/layers.1"] == pytest.approx(norm(p.grad for p in after))
    updates = [a.detach() - b for a, b in zip(after, before, strict=True)]
    assert row["update/layers.1"] == pytest.approx(norm(updates))
    assert row["update/layers.1"] == pytest.approx(0.1 * row["gradient/layers.1"], rel=1e-4)


def test_an_output_counts_once_in_each_pass() -> None:
    """Although the layer is computed again in the backward pass."""
    run = Run(norms(updates=False))
    outputs: list[torch.Tensor] = []
    seen = run.model["layers"]["2"].register_forward_hook(
        lambda _module, _inputs, output: outputs.append(output.detach())
    )
    row = run.do(passes=3)
    seen.remove()
    expected = torch.stack(outputs).square().mean().sqrt().item()  # each one twice
    assert row["activation/layers.2"] == pytest.approx(expected)
    assert len(outputs) == 6
    assert run.callback._outputs.values[2].tolist()[1] == 3 * 32, "elements of three passes"
    assert not [key for key in row if key.startswith("update")]


def test_nothing_is_done_between_measurements() -> None:
    run = Run(norms(interval=3))
    rows = [run.do() for _ in range(4)]
    assert [bool(row) for row in rows] == [False, False, True, False]
    assert run.callback.wants_row(99)
    assert run.callback.wants_row(100)  # the last step
    assert not run.callback.wants_row(98)
    assert not run.model["layers"]["0"]._forward_hooks


def test_an_exploding_layer_is_named() -> None:
    run = Run(norms(alert=NormAlert(factor=5, least=3)))
    for _ in range(4):
        run.do()
    assert run.alerts == []
    with torch.no_grad():
        for parameter in run.model["layers"]["1"].linear.parameters():
            parameter.mul_(30)
    run.do()
    weights = next(alert for alert in run.alerts if alert.startswith("weight norm"))
    assert weights.startswith("weight norm runs away: layers.1 (")
    assert "layers.0" not in weights
    assert "layers.2" not in weights
    activations = next(alert for alert in run.alerts if alert.startswith("output"))
    assert activations.startswith("output runs away: layers.1 (")


def test_it_is_named_once_and_can_end_the_run() -> None:
    rule = NormAlert(factor=5, least=2)
    history = RunningAway(rule)
    said = [history.judge("gradient", {"layers.0": 1.0, "norm": x}) for x in (1, 1, 9, 9, 1, 9)]
    assert [len(each) for each in said] == [0, 0, 1, 0, 0, 1]
    assert said[2] == ["gradient norm runs away: norm (9, 9 times its median 1)"]
    again = RunningAway(rule)
    again.load(history.state())
    assert again.judge("gradient", {"norm": 9.0}) == []
    assert again.state()["earlier"]["gradient/norm"] == [1, 1, 9, 9, 1, 9, 9]
    run = Run(norms(alert=NormAlert(stop=True)))
    run.model["layers"]["2"].linear.bias.data.fill_(math.nan)
    with pytest.raises(StoppedError, match=r"output runs away: layers\.2 \(nan"):
        run.do()


def test_what_is_not_finite_is_told_of_where_it_began() -> None:
    """Forward in the order of the model, backward from its end."""
    nan = {"layers.0": 1.0, "layers.1": math.nan, "layers.2": math.inf, "norm": math.nan}
    history = RunningAway(NormAlert())
    assert "away: layers.1 (nan)" in history.judge("activation", nan)[0]
    assert "away: norm (nan)" in history.judge("gradient", nan)[0]


def routing(**changed: Any) -> Routing:
    return Routing(Experts(**{"interval": 1, "each": True} | changed), last_step=100)


def test_a_broken_router_is_named() -> None:
    """Its tokens all go to two of four experts, half each."""
    run = Run(routing(alert=ExpertAlert(dead=0.5)))
    row = run.do()
    assert run.alerts == []
    shares = [row[f"load/layers.1.{expert}"] / 4 for expert in range(4)]
    assert sum(shares) == pytest.approx(1)
    assert row["highest_load/layers.1"] == pytest.approx(4 * max(shares))
    entropy = -sum(share * math.log(share) for share in shares if share) / math.log(4)
    assert row["load_entropy/layers.1"] == pytest.approx(entropy)
    with torch.no_grad():
        run.model["layers"]["1"].router.gate.weight.zero_()
    row = run.do()
    assert run.alerts == ["2 of 4 experts of layers.1 get no token"]
    assert row["dead/layers.1"] == 2
    assert row["highest_load/layers.1"] == 2
    assert row["load_entropy/layers.1"] == pytest.approx(math.log(2) / math.log(4))
    assert row["router_entropy/layers.1"] == pytest.approx(1)
    with torch.no_grad():
        run.model["layers"]["1"].router.gate.weight.zero_()
    run.do()
    assert len(run.alerts) == 1, "it is named once"


def test_a_model_without_experts_is_told() -> None:
    run = Run(norms())
    run.model["layers"] = nn.ModuleDict({"0": nn.Linear(4, 4)})
    callback = routing()
    callback.on_start(run)
    callback.before_step(run)
    callback.after_backward(run)
    assert run.alerts == ["the model has no experts; nothing is measured"]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("layers.12.attention.wq.weight", "layers.12"),
        ("layers.3._checkpoint_wrapped_module.ffn.w1", "layers.3"),
        ("_orig_mod.layers.3._orig_mod.norm.weight", "layers.3"),
        ("tok_embeddings.weight", "tok_embeddings"),
        ("lm_head", "lm_head"),
    ],
)
def test_layers_of_names(name: str, layer: str) -> None:
    assert layer_of(name) == layer
