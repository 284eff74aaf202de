"""Plans of real models: what is read off them, and torch's own schedules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from atom.plan.layout import Layout
from atom.plan.memory import activation_bytes, memory
from atom.plan.model import MODES, ModelDescription
from atom.plan.pipeline import Order, bubble, in_flight
from atom.plan.transformer import described as of_widths
from atom.plan.work import work
from atom.recipe.run import parse
from atom.registry.host import Host
from atom.registry.select import select

SEQ_LEN = 64
SCHEDULES = {  # name -> stages a rank
    "GPipe": 1,
    "1F1B": 1,
    "Interleaved1F1B": 2,
    "LoopedBFS": 2,
    "InterleavedZeroBubble": 2,
    "ZBVZeroBubble": 2,
    "DualPipeV": 2,
}


def tiny() -> dict[str, dict[str, Any]]:
    """Return the smallest options of every architecture that is installed."""
    return {
        file.stem: yaml.safe_load(file.read_text())
        for plugin in Host.load().plugins
        if plugin.conf is not None
        for file in sorted((plugin.conf / "architecture").glob("*tiny*.yaml"))
    }


def described(architecture: dict[str, Any], **training: Any) -> ModelDescription:

    from atom.titan import trainer_config, translate
    from atom.titan.planning import planning

    run = parse(
        {
            "architecture": architecture,
            "tokenizer": {"name": "bytes"},
            "optimizer": {"name": "AdamW"},
            "dataset": {"name": "stdlib"},
            "parallelism": {"name": "mesh"},
            "training": {"seq_len": SEQ_LEN} | training,
        }
    )
    selection = select(run, Host.load())
    parts = trainer_config.model_parts(selection, 260, SEQ_LEN)
    return planning.description(parts, translate.training(run.training, "cuda"))


@pytest.fixture(scope="module")
def llama() -> ModelDescription:
    return described(tiny()["llama3_tiny"])


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny())
def test_any_architecture_can_be_described(name: str) -> None:
    """Nothing in the core knows these; each is read off its own model."""
    model = described(tiny()[name])
    assert model.head == ("norm", "lm_head")
    assert list(model.blocks) == [f"layers.{n}" for n in range(len(model.blocks))]
    assert {p.part for p in model.parameters} >= {*model.blocks, *model.head}
    assert any(p.tensor_dim is not None for p in model.parameters)
    for block in model.blocks.values():
        saved = [block.saved[mode].whole for mode in MODES]
        assert saved == sorted(saved, reverse=True)
        # Full checkpointing keeps the input of the block, and next to nothing else.
        assert block.saved["full"].whole == pytest.approx(2 * model.width, rel=0.05)
        for mode in MODES:
            assert block.working[mode].whole > block.saved["none"].whole
        assert block.flops > 0
        assert (block.attention_width > 0) == (block.keys_width > 0)
    # Linear layers keep no keys; some layer of every model here does.
    assert any(block.keys_width > 0 for block in model.blocks.values())
    # Products read off parameters' shapes compute what the layers do.
    for part, block in work(model).blocks.items():
        flops = sum(2.0 * p.inputs * p.outputs * p.top_k for p in block.products)
        assert flops == pytest.approx(model.blocks[part].flops, rel=0.05)
    experts = [p for p in model.parameters if p.expert]
    assert bool(experts) == bool(model.routed)


def test_llama_keeps_what_its_formula_says(llama: ModelDescription) -> None:
    """Korthikanti et al. (2022), section 4.1, for SwiGLU, grouped queries and bfloat16.

    Of a token, in elements: the input and its sum with attention (2 D), two gathered norms (2 D),
    rotated q and k and v (D + 2 K), attention's output (D), four of the hidden width F. Of numbers
    of their own size: a float32 a norm and a head, RoPE's 16 complex ones and the position.
    """
    width, keys, hidden = 128, 64, 384
    found = llama.blocks["layers.0"].saved["none"]
    assert found.residual + found.gathered == 2 * (4 * width) + 2 * 4 + 16 * 8 + 8
    split = 2 * ((width + 2 * keys) + width + 4 * hidden) + 4 * 4
    assert found.tensor == pytest.approx(split, abs=1)


def test_published_widths_describe_the_same_activations(llama: ModelDescription) -> None:
    """Plans of published runs describe a model without building it."""
    options = tiny()["llama3_tiny"]
    work_of = work(llama).blocks["layers.0"]
    inner = [product for product in work_of.products if product.split == "row"][-1]
    dims = {
        "layers": options["n_layers"], "dim": llama.width, "heads": options["n_heads"],
        "kv_heads": options["n_kv_heads"], "ffn_dim": inner.inputs, "vocab": llama.vocab_size,
    }  # fmt: skip
    found = of_widths(dims)
    theirs = work(found).blocks["layers.0"]
    assert (theirs.attention_width, theirs.keys_width) == (
        work_of.attention_width, work_of.keys_width,
    )  # fmt: skip
    assert (theirs.dense, theirs.hidden) == (work_of.dense, work_of.hidden)
    for mode in MODES:
        for name in ("saved", "working"):
            mine = getattr(found.blocks["layers.0"], name)[mode]
            traced = getattr(llama.blocks["layers.0"], name)[mode]
            assert mine.tensor == pytest.approx(traced.tensor, rel=0.01)
            assert mine.gathered == traced.gathered
            assert mine.scattered == traced.scattered
            # Positions and statistics of a norm.
            assert mine.residual == pytest.approx(traced.residual, abs=600)


def test_selective_checkpointing_keeps_every_other_product(llama: ModelDescription) -> None:
    width, keys, hidden = 128, 64, 384
    found = llama.blocks["layers.0"].saved["selective"]
    # The input; q, k and v in one, w1, attention's output; w2's output, whole before it is summed.
    assert found.residual == 2 * width + 8  # and the position
    assert found.tensor == pytest.approx(2 * (width + 2 * keys + hidden + width) + 4 * 4, abs=1)
    assert found.gathered == 2 * width
    assert found.scattered == 2 * 2 * width


def test_parameters_are_the_models_own(llama: ModelDescription) -> None:
    by_name = {p.name: p for p in llama.parameters}
    assert by_name["tok_embeddings.weight"].tensor_dim == 0
    assert by_name["layers.0.attention.wo.weight"].tensor_dim == 1
    assert by_name["layers.0.attention_norm.weight"].tensor_dim is None
    assert by_name["layers.5.feed_forward.w1.weight"].part == "layers.5"


def test_a_tied_weight_counts_once() -> None:
    options = tiny()["llama3_tiny"]
    tied = described(options | {"tie_embeddings": True})
    assert described(options).numel - tied.numel == 260 * 128
    assert list(tied.groups.values()) == [True]
    # Its gradient is reduced for the embedding and for the output layer, into one buffer.
    layout = Layout(dp_shard=2, seq_len=SEQ_LEN, stages=(tuple(p.part for p in tied.parameters),))
    found = memory(tied, layout)
    assert found.gradients - found.parameters == 4 * 260 * 128 // 2


def test_activations_are_in_the_compute_dtype() -> None:
    full, half = (
        described(tiny()["llama3_tiny"], mixed_precision_param=dtype)
        for dtype in ("float32", "bfloat16")
    )
    layout = Layout(seq_len=SEQ_LEN, stages=(tuple(p.part for p in full.parameters),))
    kept = [activation_bytes(m.blocks["layers.0"].saved["full"], layout, 1) for m in (full, half)]
    assert kept[0] == pytest.approx(2 * kept[1], rel=0.02)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (4, 8)])
def test_every_schedule_of_torch_is_whole(name: str, ranks: int, microbatches: int) -> None:
    order, stages = ordered(name, ranks, microbatches)
    done = [action for actions in order for action in actions]
    forward = {(a.stage, a.microbatch) for a in done if a.kind == "F"}
    assert len(forward) == stages * microbatches == sum(a.kind == "F" for a in done)
    for kinds in ("BI", "BW"):
        assert {(a.stage, a.microbatch) for a in done if a.kind in kinds} == forward
    assert 0 < bubble(order, stages) < 0.5
    for actions in order:
        assert sum(in_flight(actions).values()) <= stages // ranks * microbatches


@pytest.mark.parametrize(("name", "chunks"), [("GPipe", 1), ("1F1B", 1), ("Interleaved1F1B", 2)])
@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (4, 8), (8, 32)])
def test_bubbles_have_their_closed_forms(
    name: str, chunks: int, ranks: int, microbatches: int
) -> None:
    """Narayanan et al. (2021), sections 2.2.1 and 2.2.2."""
    order, stages = ordered(name, ranks, microbatches)
    closed = (ranks - 1) / (chunks * microbatches + ranks - 1)
    assert bubble(order, stages) == pytest.approx(closed)


def test_microbatches_in_flight() -> None:
    gpipe, one, zero = (ordered(n, 4, 8)[0] for n in ("GPipe", "1F1B", "ZBVZeroBubble"))
    assert [in_flight(actions) for actions in gpipe] == [{rank: 8} for rank in range(4)]
    assert [in_flight(actions) for actions in one] == [{rank: 4 - rank} for rank in range(4)]
    # Zero bubble in a V holds as much as 1F1B: 2 p chunks of half a rank's layers on every rank.
    assert all(sum(in_flight(actions).values()) <= 2 * 4 for actions in zero)


def ordered(name: str, ranks: int, microbatches: int) -> tuple[Order, int]:

    from atom.titan.planning import schedule

    stages = ranks * SCHEDULES[name]
    return schedule.order(name, ranks, stages, microbatches), stages


@pytest.mark.slow
def test_published_memory_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchtitan's H100 tables 1 and 4, within 10 %: the fast half of the benchmark."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import memory_published

    for row in memory_published.PUBLISHED:
        if row.table in (1, 4):
            assert memory_published.estimated(row) == pytest.approx(row.gib, rel=0.10)


MEASURE = """
import json, sys
from collections.abc import Callable
from pathlib import Path
from atom.io.process import call
import memory_estimate

combination = memory_estimate.COMBINATIONS[int(sys.argv[1])]
print(json.dumps(call(lambda: memory_estimate.measure(combination, Path(sys.argv[2])))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [3, 11, 16, 19], ids=["nothing divides", "tied", "3D", "Muon"])
def test_measured_memory_is_met(number: int, measured: Callable, tmp_path: Path) -> None:
    found = measured(MEASURE, str(number), str(tmp_path / "run"))
    for kind, (real, estimated) in found.items():
        assert estimated == pytest.approx(real, rel=0.05), kind


def test_memory_of_a_described_model(llama: ModelDescription) -> None:
    parts = tuple(dict.fromkeys(p.part for p in llama.parameters))
    found = memory(llama, Layout(seq_len=SEQ_LEN, stages=(parts,)))
    assert found.parameters == 4 * llama.numel
