"""The groups of a run's own sections: each option composes, and is refused where it cannot work."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hydra.types import RunMode
from omegaconf import OmegaConf
from torchtitan.config import ParallelismConfig

from atom.compose import compose
from atom.compose.groups import loaded
from atom.errors import UserError
from atom.recipe.run import Run, parse
from atom.registry.host import Host
from atom.testing import matrix, models, partners, runs
from atom.titan import translate
from atom.titan.checks import compilation, context_parallel, device, experts, recomputation
from atom.titan.saved_model import on_meta

GROUPS = ("activation_checkpoint", "compile", "precision", "offload", "batch")
OPTIONS = [
    (group, file.stem) for group in GROUPS for file in sorted((compose.CONF / group).glob("*.yaml"))
]


@pytest.fixture(scope="module")
def composed() -> Callable[..., dict[str, Any]]:
    """Compose the sections of a run from overrides, as ``atom train`` does."""
    loader = compose.config_loader(Host.load())

    def sections_of(*overrides: str) -> dict[str, Any]:
        config = loader.load_configuration("train", list(overrides), run_mode=RunMode.RUN)
        found = OmegaConf.to_container(config)
        assert isinstance(found, dict)
        return {str(k): v for k, v in found.items() if k not in ("hydra", "plugins")}

    return sections_of


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_options_compose_to_what_torchtitan_takes(
    group: str, option: str, composed: Callable[..., dict[str, Any]]
) -> None:
    run = parse(composed(f"{group}={option}"))
    file = loaded(compose.CONF, f"{group}/{option}", "main", trusted=True)
    package = file.header.get("package") or group
    said = OmegaConf.to_container(file.config)
    assert isinstance(said, dict)
    assert said, "the option says nothing"
    for section, values in said.items() if package == "_global_" else [(package, said)]:
        found = run.model_dump()[section]
        wanted = {key: value for key, value in values.items() if value is not None}
        assert {key: found[key] for key in wanted} == wanted
    translate.training(run.training, "cpu")
    translate.compilation(run.compile)
    translate.activation_checkpoint(run.activation_checkpoint)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_options_say_what_they_are(group: str, option: str) -> None:
    lines = (compose.CONF / group / f"{option}.yaml").read_text().splitlines()
    comments = [line for line in lines[:2] if line.startswith("# ") and "@package" not in line]
    assert len(comments) == 1


@pytest.mark.parametrize(
    ("overrides", "mode"),
    [
        ((), "none"),
        (("activation_checkpoint=full",), "full"),
        (("activation_checkpoint.mode=full",), "full"),
        (("activation_checkpoint=full", "activation_checkpoint.mode=none"), "none"),
        (("parallelism=auto",), "auto"),
        (("parallelism=auto", "activation_checkpoint=selective"), "selective"),
        (("parallelism=auto", "activation_checkpoint.mode=selective"), "selective"),
    ],
)
def test_what_is_chosen_goes_before_what_a_layout_brings(
    overrides: tuple[str, ...], mode: str, composed: Callable[..., dict[str, Any]]
) -> None:
    assert composed(*overrides)["activation_checkpoint"]["mode"] == mode


@pytest.mark.parametrize(
    ("overrides", "intervals"),
    [
        (("callbacks=[norms,experts]", "callbacks.norms.interval=5"), {"norms": 5, "experts": 10}),
        (("callbacks={norms:{name: norms, interval: 3}}",), {"norms": 3}),
        (("callbacks=norms", "callbacks={b:{name: norms, interval: 3}}"), {"norms": 10, "b": 3}),
        (("callbacks=norms", "~callbacks.norms", "callbacks.b={interval: 3}"), {"b": 3}),
    ],
)
def test_a_run_has_any_number_of_callbacks(
    overrides: tuple[str, ...],
    intervals: dict[str, int],
    forked: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    shown = forked("train", *overrides, "--cfg", "job")
    found = yaml.safe_load(shown.stdout)["callbacks"]
    assert {name: section["interval"] for name, section in found.items()} == intervals


def test_help_lists_the_groups(forked: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    shown = forked("train", "--help").stdout.partition("== The run")[0]
    for group, option in OPTIONS:
        (line,) = [line for line in shown.splitlines() if line.startswith(f"{group}: ")]
        assert option in line.partition(": ")[2].split(", ")


# ---------------------------------------------------------------------------- a batch in tokens


def test_tokens_become_sequences(composed: Callable[..., dict[str, Any]]) -> None:
    chosen = composed("batch=tokens", "++batch.tokens=4096", "training.seq_len=128")
    run = parse(chosen)
    assert run.training.global_batch_size == 32
    assert translate.training(run.training, "cpu").global_batch_size == 32


def test_the_written_run_is_read_as_the_same(
    composed: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    from atom.recipe.run import read

    run = parse(composed("batch=tokens"))
    run.write(tmp_path / "run.yaml")
    assert read(tmp_path / "run.yaml") == run


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        (("batch=tokens", "++batch.tokens=1000"), "batch.tokens", "a multiple of .*seq_len 256"),
        (("batch=tokens", "++batch.tokens=0"), "batch.tokens", "greater than 0"),
        (
            ("batch=tokens", "training.global_batch_size=16"),
            "training.global_batch_size",
            "makes 8 sequences of 256",
        ),
        (("batch=tokens", "training.seq_len=null"), "training.seq_len", "a whole number from 1"),
    ],
)
def test_a_batch_in_tokens_that_cannot_be_is_told(
    overrides: tuple[str, ...], key: str, says: str, composed: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(UserError, match=says) as error:
        parse(composed(*overrides))
    assert error.value.key == key
    assert "\n" not in error.value.sentence()


# ---------------------------------------------------------------------------- what needs what


def run_with(**changed: Any) -> Run:
    names = ("architecture", "tokenizer", "dataset", "optimizer", "parallelism")
    return Run.model_validate({name: {"name": "any"} for name in names} | changed)


def plan_of(run: Run, model: Any = None, *, kind: str = "cpu", **parallelism: Any) -> Any:
    """Return what the checks below read of the plan of ``run``."""
    layout = ParallelismConfig(**parallelism)
    return SimpleNamespace(
        run=run,
        kind=kind,
        training=translate.training(run.training, "cuda"),
        parallelism=layout,
        model_config=model,
        model=on_meta(model) if model else None,
        config=SimpleNamespace(model_spec=SimpleNamespace(model=model), parallelism=layout),
    )


def check(plan: Any) -> None:
    """Check what options require of each other and of the device."""
    for each in (
        recomputation.check_budget,
        compilation.check_async,
        compilation.check_backend,
        device.check_offload,
        context_parallel.check_name,
    ):
        each(plan)


ASYNC = {"enable": True, "enable_async_tensor_parallel": True}


@pytest.mark.parametrize(
    ("changed", "parallelism", "where", "says"),
    [
        ({"activation_checkpoint": {"mode": "memory_budget"}}, {}, "cuda", "is not compiled"),
        (
            {
                "activation_checkpoint": {"mode": "memory_budget"},
                "compile": {"enable": True, "components": ["loss"]},
            },
            {},
            "cuda",
            "is not compiled",
        ),
        ({"compile": ASYNC}, {"tensor_parallel_degree": 2}, "cpu", "this run is on the CPU"),
        ({"compile": ASYNC}, {}, "cuda", "this run has none"),
        (
            {"compile": ASYNC},
            {"tensor_parallel_degree": 2, "enable_sequence_parallel": False},
            "cuda",
            "enable_sequence_parallel=false leaves out",
        ),
        ({"training": {"enable_cpu_offload": True}}, {}, "cpu", "on the CPU already"),
        ({}, {"context_parallel_load_balancer": "ptr"}, "cpu", "valid: headtail, ptrr, null"),
    ],
)
def test_what_is_missing_is_told(
    changed: dict[str, Any], parallelism: dict[str, Any], where: str, says: str
) -> None:
    with pytest.raises(UserError, match=says) as error:
        check(plan_of(run_with(**changed), kind=where, **parallelism))
    assert "\n" not in error.value.sentence()


@pytest.mark.parametrize(
    ("changed", "parallelism"),
    [
        ({"activation_checkpoint": {"mode": "memory_budget"}, "compile": {"enable": True}}, {}),
        ({"compile": ASYNC}, {"tensor_parallel_degree": 2}),
        ({"training": {"enable_cpu_offload": True}}, {}),
        ({}, {"context_parallel_degree": 2, "context_parallel_load_balancer": None}),
    ],
)
def test_what_is_complete_is_taken(changed: dict[str, Any], parallelism: dict[str, Any]) -> None:
    check(plan_of(run_with(**changed), kind="cuda", **parallelism))


@pytest.mark.parametrize(
    ("architecture", "balancer", "says"),
    [
        ("llama3_tiny", "ptrr", None),
        ("llama3_tiny", None, None),
        ("gpt_oss_tiny", "headtail", None),
        ("gpt_oss_tiny", "ptrr", "several attention masks"),
    ],
)
def test_ptrr_needs_one_mask_to_deal_out_by(
    architecture: str, balancer: str | None, says: str | None
) -> None:
    host = Host.load()
    model = model_of(host, matrix.architectures(host)[architecture])
    layout = {"context_parallel_degree": 2, "context_parallel_load_balancer": balancer}
    run = run_with()
    plan = plan_of(run, model, **layout)
    named = plan_of(run, model, **layout, context_parallel_ptrr_mask_key="basic_mask")
    if says is None:
        context_parallel.check_masks(plan)
        if balancer == "ptrr":
            with pytest.raises(UserError, match="no effect on a model with one attention mask"):
                context_parallel.check_masks(named)
        return
    with pytest.raises(UserError, match=says):
        context_parallel.check_masks(plan)
    context_parallel.check_masks(named)


def test_only_a_mixture_has_experts_to_balance() -> None:
    host, run = Host.load(), run_with(debug={"moe_force_load_balance": True})
    models = (
        model_of(host, matrix.architectures(host)[n]) for n in ("gpt_oss_tiny", "llama3_tiny")
    )
    experts.check_load_balance(plan_of(run, next(models)))
    with pytest.raises(UserError, match="no effect on a model without experts"):
        experts.check_load_balance(plan_of(run, next(models)))


def model_of(host: Host, architecture: dict[str, Any]) -> Any:
    """Return the config of a model, with the kernels of the kit's small run in place."""
    return models.subject(host, architecture).config()


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("attention.qkv_linear", "is no linear layer: layers.0.attention.qkv_linear"),
        ("attention.nothing", "is in the name of no layer"),
        ("feed_forward.w2", None),
        ("moe.router.gate", None),
    ],
)
def test_what_is_recomputed_is_in_the_model(part: str, says: str | None) -> None:
    host = Host.load()
    run = run_with(activation_checkpoint={"force_recompute_mm_shapes_by_fqns": [part]})
    plan = plan_of(run, model_of(host, matrix.architectures(host)["llama3_tiny"]))
    if says is None:
        recomputation.check_modules(plan)
        return
    with pytest.raises(UserError, match=says):
        recomputation.check_modules(plan)


def test_there_is_no_such_compiler() -> None:
    given = {"enable": True, "backend": "inducter"}
    with pytest.raises(UserError, match="did you mean inductor"):
        compilation.check_backend(plan_of(run_with(compile=given)))


def test_compiling_for_a_cpu_needs_a_compiler() -> None:
    from torch._inductor import config

    # Not monkeypatch: as that undoes it, torch loses the setting for the rest of the process.
    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(UserError, match=r"needs a C\+\+ compiler"),
    ):
        compilation.check_backend(plan_of(run_with(compile={"enable": True})))


# ---------------------------------------------------------------------------- on ranks

LLAMA = {"name": f"{partners.PACKAGE}:llama"}
"""The kit's own small model."""

VARIANTS: dict[str, dict[str, Any]] = {
    "fsdp-never-reshards": {
        "data_parallel_shard_degree": 2,
        "fsdp_reshard_after_forward": "never",
    },
    "fsdp-always-reshards": {
        "data_parallel_shard_degree": 2,
        "fsdp_reshard_after_forward": "always",
    },
    "tp-without-sequence-parallelism": {
        "data_parallel_shard_degree": 1,
        "tensor_parallel_degree": 2,
        "enable_sequence_parallel": False,
    },
    **{
        f"cp-{balancer}": {
            "data_parallel_shard_degree": 1,
            "context_parallel_degree": 2,
            "context_parallel_load_balancer": balancer,
        }
        for balancer in ("headtail", "ptrr", None)
    },
}
"""What a strategy can be told to do otherwise, by overriding its keys."""


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_a_strategy_train_alike(variant: str) -> None:
    runs.assert_trains_alike(LLAMA, VARIANTS[variant])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_checkpointing_activations_changes_nothing(mode: str) -> None:
    fsdp = {"data_parallel_shard_degree": 2}
    runs.assert_trains_alike(LLAMA, fsdp, activation_checkpoint={"mode": mode})


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++")
@pytest.mark.parametrize("mode", ["none", "memory_budget"])
def test_a_compiled_model_trains_alike(mode: str) -> None:
    changed = {"compile": {"enable": True}, "activation_checkpoint": {"mode": mode}}
    runs.assert_trains_alike(LLAMA, **changed)


@pytest.mark.slow
def test_bfloat16_trains_nearly_alike() -> None:
    """To bfloat16's eight bits, and not to more: it is really computed in."""
    settings = runs.sections(LLAMA, {"data_parallel_shard_degree": 2})
    precision = {"dtype": "float32", "mixed_precision_param": "bfloat16"}
    rows = runs.train(settings | {"training": settings["training"] | precision})
    single = runs.train(runs.sections(LLAMA))
    apart = [abs(row.loss - one.loss) for row, one in zip(rows, single, strict=True)]
    assert 1e-5 < max(apart) < 0.05
