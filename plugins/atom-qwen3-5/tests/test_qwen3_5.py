"""The family is torchtitan's own less its vision; plain PyTorch computes the recurrence."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torchtitan.config import DebugConfig, ParallelismConfig

from atom.errors import UserError
from atom.plugin import ArchitectureContext
from atom_qwen3_5 import delta
from atom_qwen3_5.build import qwen3_5, qwen3_5_moe
from atom_qwen3_5.config import Decoder, Qwen35, Qwen35MoE

CONF = Path(__file__).parents[1] / "atom_qwen3_5/conf/architecture"
SIZES = {
    "qwen3_5_0_8b": "0.8B",
    "qwen3_5_2b": "2B",
    "qwen3_5_4b": "4B",
    "qwen3_5_9b": "9B",
    "qwen3_5_27b": "27B",
    "qwen3_5_35b_a3b": "35B-A3B",
    "qwen3_5_122b_a10b": "122B-A10B",
    "qwen3_5_397b_a17b": "397B-A17B",
}
LARGE = ("qwen3_5_27b", "qwen3_5_35b_a3b", "qwen3_5_122b_a10b", "qwen3_5_397b_a17b")
KINDS = {"qwen3_5": (Qwen35, qwen3_5), "qwen3_5_moe": (Qwen35MoE, qwen3_5_moe)}


def parameters(option: str) -> Decoder:
    section = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    config, _ = KINDS[section.pop("name")]
    return config.model_validate(section)


def shapes(config: Any) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = config.build()
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "option",
    # Models of 40 layers and more take half a second.
    [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in SIZES],
)
def test_size_is_torchtitans(option: str) -> None:
    from torchtitan.models.qwen3_5 import qwen3_5_configs

    context = ArchitectureContext(vocab_size=248320, seq_len=262144)
    ours = parameters(option)
    build = dict(KINDS.values())[type(ours)]
    theirs = shapes(qwen3_5_configs[SIZES[option]](attn_backend="flex"))
    text = {name: shape for name, shape in theirs.items() if not name.startswith("vision_encoder.")}
    if ours.tie_embeddings:  # torchtitan's are not, and Qwen's are
        del text["lm_head.weight"]
    assert shapes(build(ours, context).model) == text


@pytest.mark.parametrize(
    ("option", "number"), [("qwen3_5_tiny", 1_383_736), ("qwen3_5_tiny_moe", 2_567_992)]
)
def test_tiny_has_the_parameters_it_says(option: str, number: int) -> None:
    context = ArchitectureContext(vocab_size=2048, seq_len=256)
    config = parameters(option)
    found = shapes(dict(KINDS.values())[type(config)](config, context).model)
    assert sum(torch.Size(shape).numel() for shape in found.values()) == number


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_kv_heads": 3}, r"architecture\.n_kv_heads=3: must divide n_heads=4"),
        ({"n_key_heads": 3}, r"architecture\.n_key_heads=3: must divide n_value_heads=4"),
        ({"rotary_dim": 64}, r"architecture\.rotary_dim=64: must be at most head_dim=32"),
        ({"n_layers": 3}, r"architecture\.n_layers=3: leaves no layer of attention"),
    ],
)
def test_impossible_models_are_told(change: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Qwen35.model_validate(parameters("qwen3_5_tiny").model_dump() | change)


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        (
            {"context_parallel_degree": 3},
            "context_parallel_degree=3: must divide the 4 value heads of linear layers",
        ),
        (
            {"context_parallel_degree": 2, "context_parallel_load_balancer": "ptrr"},
            "context_parallel_load_balancer=ptrr: divides sequences otherwise in each batch",
        ),
        (
            {"tensor_parallel_degree": 2, "enable_sequence_parallel": False},
            "enable_sequence_parallel=.alse: torchtitan's Qwen3.5",
        ),
        ({"tensor_parallel_degree": 2}, "tensor_parallel_degree=2: must divide the 1 key heads"),
    ],
)
def test_layouts_that_cannot_be_are_told(layout: dict[str, Any], says: str) -> None:
    config = parameters("qwen3_5_tiny").model_copy(update={"n_key_heads": 1})
    model = qwen3_5(config, ArchitectureContext(vocab_size=2048, seq_len=256)).model
    runtime = SimpleNamespace(parallelism=ParallelismConfig(**layout), debug=DebugConfig())
    with pytest.raises(UserError, match=says):
        model.update_from_config(config=runtime)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # In float32, sums of logarithms down to -1000 round to about 1e-4.
    [(torch.float64, 1e-10), (torch.float32, 1e-3)],
)
@pytest.mark.parametrize("starts", [None, [0, 150], [0, 1, 63, 64, 65, 140, 150]])
def test_chunks_compute_the_recurrence(
    starts: list[int] | None, dtype: torch.dtype, tolerance: float
) -> None:
    """Output and gradients are those of a token after the other, document by document."""
    torch.manual_seed(0)
    length, heads, width = 150, 2, 8
    shape = (1, length, heads)
    inputs = [torch.randn(*shape, width) for _ in range(3)]
    # Some keep nearly all of the state, some nothing.
    inputs += [-torch.rand(shape) * torch.tensor([0.1, 30.0]), torch.rand(shape)]
    places = None if starts is None else torch.tensor(starts, dtype=torch.int32)
    weight = torch.randn(1, length, heads, width)
    found = []
    for compute in (
        lambda *given: delta.gated_delta_rule(*given, places),
        lambda *given: recurrence(*given, starts or [0, length]),
    ):
        leaves = [each.detach().to(dtype, copy=True).requires_grad_() for each in inputs]
        answer = compute(*leaves)
        (answer * weight).sum().backward()
        found.append([answer.detach(), *(leaf.grad for leaf in leaves)])
    for ours, expected in zip(*found, strict=True):
        assert (ours - expected).abs().max() <= tolerance * expected.abs().max()


def recurrence(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    starts: list[int],
) -> torch.Tensor:
    """The definition, in float64: one token of one head at a time."""
    q, k, v, g, beta = (x.double() for x in (q, k, v, g, beta))
    q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    answers = []
    for token in range(q.shape[1]):
        if token in starts:
            state = torch.zeros(1, q.shape[2], q.shape[3], v.shape[3], dtype=torch.double)
        key, value = k[:, token, :, :, None], v[:, token, :, None, :]
        state = g[:, token, :, None, None].exp() * state
        error = beta[:, token, :, None, None] * (value - key.mT @ state)
        state = state + key @ error
        answers.append((q[:, token, :, None, :] @ state)[:, :, 0] * q.shape[3] ** -0.5)
    return torch.stack(answers, dim=1)


def test_a_convolution_stays_within_its_document() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 11, 6), torch.randn(6, 1, 4)
    starts = [0, 2, 3, 11]
    found = delta.causal_conv(x, weight, torch.tensor(starts, dtype=torch.int32))
    for begin, end in pairwise(starts):
        padded = torch.nn.functional.pad(x[:, begin:end].mT, (3, 0))
        alone = torch.nn.functional.conv1d(padded, weight, groups=6)
        expected = torch.nn.functional.silu(alone).mT
        assert torch.allclose(found[:, begin:end], expected, atol=1e-6)
