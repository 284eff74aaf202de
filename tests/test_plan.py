"""Plans: arithmetic on descriptions, without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atom.errors import UserError
from atom.plan.communication import communication
from atom.plan.device import named, names
from atom.plan.estimate import estimate
from atom.plan.layout import Layout
from atom.plan.memory import activation_bytes, local_numel, memory
from atom.plan.model import Activations, Block, ModelDescription, Parameter
from atom.plan.pipeline import Action, bubble, in_flight

WIDTH, VOCABULARY = 8, 32

SAVED = {
    "none": Activations(residual=32, tensor=160, gathered=32),
    "selective": Activations(residual=16, tensor=80, gathered=16, scattered=32),
    "full": Activations(residual=16),
}
BLOCK = Block(
    saved=SAVED,
    working={mode: Activations(residual=64, tensor=200, gathered=32) for mode in SAVED},
    flops=1536.0,
    attention_width=8,
    keys_width=16,
)


def model(layers: int = 4) -> ModelDescription:
    parameters = [Parameter("tok_embeddings.weight", "tok_embeddings", (VOCABULARY, WIDTH), 0)]
    for layer in range(layers):
        part = f"layers.{layer}"
        parameters += [
            Parameter(f"{part}.up", part, (32, WIDTH), 0),
            Parameter(f"{part}.down", part, (WIDTH, 32), 1),
            Parameter(f"{part}.norm", part, (WIDTH,)),
        ]
    parameters += [
        Parameter("norm.weight", "norm", (WIDTH,)),
        Parameter("lm_head.weight", "lm_head", (VOCABULARY, WIDTH), 0),
    ]
    return ModelDescription(
        parameters=tuple(parameters),
        blocks={f"layers.{layer}": BLOCK for layer in range(layers)},
        width=WIDTH,
        vocab_size=VOCABULARY,
        groups={("tok_embeddings",): False, ("norm", "lm_head"): True},
    )


def whole(layers: int = 4) -> tuple[tuple[str, ...], ...]:
    blocks = (f"layers.{layer}" for layer in range(layers))
    return (("tok_embeddings", *blocks, "norm", "lm_head"),)


def layout(**fields: object) -> Layout:
    return Layout(**({"seq_len": 16, "stages": whole()} | fields))  # type: ignore[arg-type]


# ---------------------------------------------------------------------------- states


def test_one_rank_holds_sixteen_bytes_a_parameter() -> None:
    """Mixed precision with Adam in float32: 4 + 4 + 8 bytes (ZeRO, section 3.1)."""
    found = memory(model(), layout())
    steps = 4 * len(model().parameters)
    assert found.states == 16 * model().numel + steps


@pytest.mark.parametrize("degrees", [{"dp_shard": 4}, {"cp": 4}, {"dp_shard": 2, "cp": 2}])
def test_fsdp_divides_states_by_data_and_context_ranks(degrees: dict[str, int]) -> None:
    assert memory(model(), layout(**degrees)).parameters == 4 * model().numel // 4


def test_replicas_divide_nothing() -> None:
    assert memory(model(), layout(dp_replicate=4)).states == memory(model(), layout()).states


def test_tensor_parallelism_divides_what_the_model_says() -> None:
    norms = sum(p.numel for p in model().parameters if p.tensor_dim is None)
    split = model().numel - norms
    assert memory(model(), layout(tp=2)).parameters == 4 * (split // 2 + norms)


def test_experts_are_dealt_out_and_then_sharded() -> None:
    expert = Parameter("w", "layers.0", (8, 6, 4), tensor_dim=1, expert=True)
    assert local_numel(expert, layout()) == 192
    assert local_numel(expert, layout(dp_shard=4, ep=2)) == 8 // 2 // 2 * 24
    assert local_numel(expert, layout(dp_shard=2, tp=2, ep=4)) == 2 * 24
    # More ranks than experts: FSDP shards the second dimension, as torchtitan does.
    assert local_numel(expert, layout(dp_shard=16)) == 8 * 1 * 4


@given(
    rows=st.integers(1, 50), columns=st.integers(1, 50), tp=st.integers(1, 5),
    fsdp=st.integers(1, 9), dim=st.sampled_from([None, 0, 1]),
)  # fmt: skip
def test_no_element_is_lost(rows: int, columns: int, tp: int, fsdp: int, dim: int | None) -> None:
    parameter = Parameter("w", "layers.0", (rows, columns), dim)
    largest = local_numel(parameter, layout(dp_shard=fsdp, tp=tp))
    ranks = fsdp * (tp if dim is not None else 1)
    assert largest * ranks >= parameter.numel
    assert largest <= parameter.numel


def test_bfloat16_states_are_half() -> None:
    steps = 4 * len(model().parameters)
    assert memory(model(), layout(state_bytes=4)).optimizer == 4 * model().numel + steps


def test_an_average_is_in_float32_and_sharded() -> None:
    found = memory(model(), layout(dp_shard=4, averages=2, parameter_dtype="bfloat16"))
    assert found.averages == 2 * 4 * model().numel // 4
    assert found.total - memory(model(), layout(dp_shard=4, parameter_dtype="bfloat16")).total == (
        found.averages
    )


def test_muon_keeps_one_moment_of_the_matrices_of_layers() -> None:
    blocks = model().blocks
    matrices = [p.numel for p in model().parameters if p.part in blocks and len(p.shape) == 2]
    assert 0 < sum(matrices) < model().numel
    adamw, muon = (memory(model(), layout(matrix_state_bytes=n)).optimizer for n in (None, 4))
    assert adamw - muon == 4 * sum(matrices) + 4 * len(matrices)  # and it counts no steps


# ---------------------------------------------------------------------------- activations


def test_sequence_parallelism_divides_the_residual_stream() -> None:
    kept = Activations(residual=40, tensor=80, gathered=10)
    assert activation_bytes(kept, layout(tp=4), 1) == 40 / 4 + 80 / 4 + 10
    assert activation_bytes(kept, layout(tp=4, sequence_parallel=False), 1) == 40 + 80 / 4 + 10
    assert activation_bytes(kept, layout(), 1) == kept.whole


def test_what_a_reduce_scatter_leaves_counts_under_tensor_parallelism_only() -> None:
    kept = SAVED["selective"]
    assert activation_bytes(kept, layout(), 1) == kept.whole
    assert activation_bytes(kept, layout(tp=2), 1) == (16 + 80 + 32) / 2 + 16


def test_more_checkpointing_keeps_less() -> None:
    kept = [memory(model(), layout(checkpointing=mode)).activations for mode in SAVED]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 3


@pytest.mark.parametrize("mode", SAVED)
def test_activations_grow_with_the_batch_and_shrink_with_context_parallelism(mode: str) -> None:
    one = memory(model(), layout(checkpointing=mode)).activations
    assert memory(model(), layout(checkpointing=mode, local_batch_size=3)).activations == 3 * one
    halved = memory(model(), layout(checkpointing=mode, cp=2)).activations
    keys = 4 * BLOCK.keys_width * 2 * 16 if mode == "none" else 0
    assert halved == one // 2 + keys


def test_logits_are_the_peak_until_they_are_chunked() -> None:
    big = replace(model(), vocab_size=10_000)
    logits = 16 * 10_000 * 4 * 3
    assert memory(big, layout()).working == logits
    assert memory(big, layout(loss_chunks=4)).working == logits // 4
    assert memory(big, layout(z_loss=True)).working == logits // 3 * 4
    assert memory(big, layout(loss_chunks=10**6)).working < logits // 4


def test_gathered_parameters_stay_where_they_are_not_freed() -> None:
    freed = memory(model(), layout(dp_shard=2)).gathered
    kept = memory(model(), layout(dp_shard=2, reshard=False)).gathered
    assert kept - freed == 2 * (model().numel - 2 * 520 - 264)


def test_the_allocator_reserves() -> None:
    plain, reserved = memory(model(), layout()), memory(model(), layout(), reserve=1.5)
    assert reserved.total == round(plain.total * 1.5)


# ---------------------------------------------------------------------------- pipelines


def one_f_one_b(ranks: int, microbatches: int) -> list[list[Action]]:
    order = []
    for rank in range(ranks):
        warmup = min(ranks - rank - 1, microbatches)
        actions = [Action(rank, "F", m) for m in range(warmup)]
        for m in range(warmup, microbatches):
            actions += [Action(rank, "F", m), Action(rank, "B", m - warmup)]
        actions += [Action(rank, "B", m) for m in range(microbatches - warmup, microbatches)]
        order.append(actions)
    return order


@given(ranks=st.integers(1, 6), microbatches=st.integers(1, 12))
def test_one_f_one_b_has_its_closed_form(ranks: int, microbatches: int) -> None:
    """Narayanan et al. (2021), section 2.2.1: (p - 1) / (m + p - 1) of the time is idle."""
    order = one_f_one_b(ranks, microbatches)
    assert bubble(order, ranks) == pytest.approx((ranks - 1) / (microbatches + ranks - 1))
    for rank, actions in enumerate(order):
        assert in_flight(actions) == {rank: min(ranks - rank, microbatches)}


def test_an_order_that_waits_for_itself_is_told() -> None:
    with pytest.raises(ValueError, match="cyclic dependency"):
        bubble([[Action(0, "B", 0), Action(0, "F", 0)]], 1)


def pipelined(rank_flying: tuple[int, int] = (2, 1), **fields: object) -> Layout:
    stages = (
        ("tok_embeddings", "layers.0", "layers.1"),
        ("layers.2", "layers.3", "norm", "lm_head"),
    )
    return layout(
        pp=2, local_batch_size=4, reshard=False, stages=stages, stages_of=((0,), (1,)),
        in_flight=({0: rank_flying[0]}, {1: rank_flying[1]}), **fields,
    )  # fmt: skip


def test_a_pipeline_rank_holds_its_stage_for_each_microbatch_in_flight() -> None:
    first, last = (memory(model(), pipelined(), rank=rank) for rank in (0, 1))
    assert first.parameters + last.parameters == 4 * model().numel
    one = memory(model(), pipelined((1, 1)), rank=0).activations
    assert first.activations == 2 * one
    # All gradients wait, in float32, until the last microbatch.
    assert first.reduced == 4 * (256 + 2 * 520)


# ---------------------------------------------------------------------------- communication


def test_one_rank_sends_nothing() -> None:
    assert communication(model(), layout()) == {}


def test_fsdp_sends_three_times_the_parameters() -> None:
    """ZeRO, section 7.2.2, with gathers in bfloat16 and reduction in float32."""
    expected = 3 / 4 * model().numel * (2 + 2 + 4)
    assert communication(model(), layout(dp_shard=4)) == {"fsdp": expected}
    assert communication(model(), layout(dp_shard=4, reshard=False)) == {
        "fsdp": 3 / 4 * model().numel * (2 + 4)
    }


def test_replicas_reduce_shards() -> None:
    sent = communication(model(), layout(dp_shard=2, dp_replicate=2))
    assert sent["dp_replicate"] == 2 / 2 * (model().numel // 2) * 4


def test_tensor_parallelism_sends_the_stream_and_again_where_it_is_recomputed() -> None:
    once = communication(model(), layout(tp=2))["tp"]
    # Gathers and scatters of 32 bytes a token each, forward and backward, in 4 blocks.
    assert once == 1 / 2 * (32 + 32) * 16 * 2 * 4
    assert communication(model(), layout(tp=2, checkpointing="full"))["tp"] == once * 3 // 2


def test_context_parallelism_sends_keys_and_values() -> None:
    assert communication(model(), layout(cp=2))["cp"] == 1 / 2 * 16 * 2 * 16 * 2 * 4


def test_a_pipeline_sends_the_stream_both_ways() -> None:
    assert communication(model(), pipelined(), rank=0)["pp"] == WIDTH * 2 * 16 * 4


def test_accumulation_sends_for_each_local_batch() -> None:
    once = communication(model(), layout(dp_shard=4))["fsdp"]
    assert communication(model(), layout(dp_shard=4, accumulation=3))["fsdp"] == 3 * once


# ---------------------------------------------------------------------------- time and devices


@pytest.mark.parametrize("name", names())
def test_every_device_is_whole(name: str) -> None:
    device = named(name)
    assert device.kind in ("cpu", "cuda")
    assert (device.capability is None) == (device.kind == "cpu")
    assert 1 < device.memory / 2**30 < 1000
    assert device.peak("bfloat16") > 1e10
    assert device.memory_bandwidth > device.node_bandwidth > 0
    assert device.node_bandwidth >= device.network_bandwidth > 0
    assert device.reserve >= 1
    assert 0 < device.best("bfloat16") <= device.peak("bfloat16")
    assert device.multiprocessors >= 1
    assert device.power_cap <= device.power
    found = estimate(model(), layout(), device)
    assert found.fits
    assert found.step.seconds > 0


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(UserError, match="h100") as error:
        named("h1000")
    assert error.value.key == "device"


def test_a_device_can_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "cloud.yaml"
    file.write_text("like: h100\nnetwork_bandwidth: 12.5e9\npower_limit: 400\n")
    found = named(str(file))
    assert found == replace(
        named("h100"), name="cloud", network_bandwidth=12.5e9, power_limit=400.0
    )


WRONG_DEVICES = {
    "like: h1": "has like: h1; valid: a100, ",
    "like: h100\nnic: 3": "has the unknown key nic; ",
    "kind: cuda": "lacks capability, flops, memory_gib, ",
    "like: h100\nkind: tpu": "has kind: tpu; valid: cpu, cuda",
    "like: h100\nmemory_gib: -1": "has memory_gib: -1; valid: a number above 0",
    "like: h100\nflops: {bfloat16: fast}": "has flops.bfloat16: fast; valid: a number above 0",
    "like: h100\nflops: 3": "has flops: 3; valid: FLOP/s by dtype",
    "like: h100\ncapability: 9": "has capability: 9; valid: null, or such as [9, 0]",
    "like: h100\ndevices_per_node: 2.5": "has devices_per_node: 2.5; valid: a whole number",
    "- a": "describes no device; valid: keys kind, ",
}


@pytest.mark.parametrize("text", WRONG_DEVICES)
def test_a_file_that_describes_no_device_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "d.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        named(str(file))
    assert WRONG_DEVICES[text] in error.value.sentence()


def test_a_device_file_that_is_not_there_is_told() -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        named("none.yaml")


def test_plans_need_no_torch() -> None:
    code = (
        "import sys, atom.plan.estimate, atom_parallelism, atom_parallelism.auto\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
