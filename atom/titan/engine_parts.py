"""List the parts of torchtitan: the key of a run that uses each, or the reason why none does.

``docs/engine.md`` shows the list. A test fails if torchtitan has a module, a model or a field of a
config that is not in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from torchtitan.trainer import Trainer

from atom.titan import translate


class Part(NamedTuple):
    """A part of the engine.

    Attributes:
        name: a module or a package below torchtitan, which stands for all of its modules; or a
            config.
        key: the keys of a run, or the reason why there are none.
        test: the file of its test, or of the test of what takes its place.
    """

    name: str
    key: str
    test: str


_KEYS = "tests/test_engine_keys.py"
_ADAPTERS = "plugins/atom-kernels-adapters/tests/"
_MATRIX = "tests/test_parity.py"
_UNUSED = "left out: "

PARTS = (
    Part("train.py", f"{_UNUSED}the command line of torchtitan; `atom train`", "tests/test_cli.py"),
    Part(
        "trainer.py",
        "`training`, `faults`, `callbacks`; the step is ATOM's",
        "tests/test_callbacks.py",
    ),
    Part("components/checkpoint.py", "`checkpoint`", "tests/test_checkpoint.py"),
    Part("components/checkpoint_utils.py", "`checkpoint`", "tests/test_checkpoint.py"),
    Part("components/checkpointer/base.py", "`checkpoint`", "tests/test_checkpoint.py"),
    Part("components/checkpointer/dcp.py", "`checkpoint`", "tests/test_checkpoint.py"),
    Part("components/checkpointer/utils.py", "`checkpoint`", "tests/test_checkpoint.py"),
    Part(
        "components/checkpointer/torch_checkpointing.py",
        f"{_UNUSED}a second format; ATOM reads and writes DCP's",
        "tests/test_checkpoint.py",
    ),
    Part("components/dataloader.py", "`dataset`, by its plugin", "tests/test_data.py"),
    Part("components/lora.py", "`lora`, with layers of ATOM", "tests/test_lora.py"),
    Part(
        "components/loss.py",
        "`loss`, `kernels.cross_entropy`, `kernels.linear_cross_entropy`",
        "tests/test_z_loss.py",
    ),
    Part("components/metrics.py", "`metrics`", "tests/test_metrics.py"),
    Part("components/optimizer/lr_scheduler.py", "`lr_scheduler`", "tests/test_schedules.py"),
    Part(
        "components/optimizer/optimizer.py",
        "`optimizer`",
        "plugins/atom-optimizers/tests/test_conformance.py",
    ),
    Part(
        "components/optimizer/utils.py",
        "`optimizer`",
        "plugins/atom-optimizers/tests/test_conformance.py",
    ),
    Part(
        "components/quantization/float8.py",
        "`kernels.linear=float8_…`; that of `grouped_mm` is left out",
        f"{_ADAPTERS}test_float8.py",
    ),
    Part(
        "components/quantization/mx.py",
        "`kernels.linear=mxfp8`, not run on a GPU; that of `grouped_mm` is left out",
        f"{_ADAPTERS}test_block_scaled.py",
    ),
    Part(
        "components/quantization/nvfp4.py",
        "`kernels.linear=nvfp4`, not run on a GPU",
        f"{_ADAPTERS}test_block_scaled.py",
    ),
    Part(
        "components/quantization/utils.py",
        "`kernels.linear=float8_…`",
        f"{_ADAPTERS}test_float8.py",
    ),
    Part(
        "components/tokenizer.py",
        "`tokenizer`, by its plugin",
        "plugins/atom-tokenizers/tests/test_hf.py",
    ),
    Part(
        "components/validate.py",
        f"{_UNUSED}`validation.sets` validates by a callback of ATOM",
        "tests/test_validated_runs.py",
    ),
    Part("config/configs.py", "the sections of a run", _KEYS),
    Part("config/configurable.py", "the sections of a run", _KEYS),
    Part("config/function.py", f"{_UNUSED}functions in configs, which are no data", _KEYS),
    Part(
        "config/manager.py",
        f"{_UNUSED}the command line of torchtitan; Hydra composes runs",
        "tests/test_hydra.py",
    ),
    Part("config/override.py", "`kernels`", "tests/test_kernels.py"),
    Part("distributed/activation_checkpoint.py", "`activation_checkpoint`", "tests/test_groups.py"),
    Part("distributed/compile.py", "`compile`", "tests/test_groups.py"),
    Part("distributed/context_parallel", "`parallelism.context_parallel_degree`", _MATRIX),
    Part("distributed/cudagraph.py", "`training.disable_cuda_graphs`", "tests/test_run_plan.py"),
    Part(
        "distributed/deepep",
        "`kernels.moe_dispatch=deepep`, `hybridep`",
        f"{_ADAPTERS}test_deepep.py",
    ),
    Part(
        "distributed/flex_shard",
        f"{_UNUSED}its Muon over shards; `optimizer=muon` is ATOM's",
        "tests/test_muon.py",
    ),
    Part(
        "distributed/fsdp.py",
        "`parallelism.data_parallel_shard_degree`, `training.enable_cpu_offload`",
        _MATRIX,
    ),
    Part(
        "distributed/full_dtensor.py",
        "`parallelism.spmd_backend=full_dtensor`",
        "plugins/atom-parallelism/tests/test_parallelism.py",
    ),
    Part("distributed/linear.py", "`parallelism.tensor_parallel_degree`", _MATRIX),
    Part(
        "distributed/minimal_async_ep",
        f"{_UNUSED}a dispatcher of experts that only an override chooses",
        "tests/test_moe.py",
    ),
    Part(
        "distributed/parallel_dims.py",
        "`parallelism`",
        "plugins/atom-parallelism/tests/test_parallelism.py",
    ),
    Part(
        "distributed/pipeline_parallel.py",
        "`parallelism.pipeline_parallel_degree`",
        "plugins/atom-parallelism/tests/test_schedules.py",
    ),
    Part(
        "distributed/spmd_types.py",
        "`parallelism.spmd_backend=spmd_types`",
        "plugins/atom-parallelism/tests/test_parallelism.py",
    ),
    Part(
        "distributed/tensor_parallel.py",
        "`parallelism.tensor_parallel_degree`, `compile.enable_async_tensor_parallel`",
        _MATRIX,
    ),
    Part(
        "distributed/utils.py", "`comm`, `debug`, `training.max_norm`", "tests/test_step_kernels.py"
    ),
    Part(
        "hf_datasets",
        f"{_UNUSED}datasets are plugins: `dataset=huggingface`, and mixtures",
        "plugins/atom-datasets/tests/test_huggingface.py",
    ),
    Part("models/common", "`architecture`, by its plugin", _MATRIX),
    Part("models/utils.py", "`architecture`, by its plugin", _MATRIX),
    Part(
        "models/deepseek_v3",
        "`architecture=deepseek_v3_…`, `architecture.mtp_depth`",
        "plugins/atom-deepseek/tests/test_conformance.py",
    ),
    Part("models/flux", f"{_UNUSED}it makes images", "tests/test_engine_parts.py"),
    Part(
        "models/gpt_oss",
        "`architecture=gpt_oss_…`",
        "plugins/atom-gpt-oss/tests/test_conformance.py",
    ),
    Part(
        "models/kimi_k2_7",
        "`architecture=kimi_k2`, without its vision tower",
        "plugins/atom-deepseek/tests/test_deepseek.py",
    ),
    Part(
        "models/llama3", "`architecture=llama3_…`", "plugins/atom-llama/tests/test_conformance.py"
    ),
    Part(
        "models/muse_glimmer",
        f"{_UNUSED}no package of ATOM describes it; a plugin can",
        "tests/test_engine_parts.py",
    ),
    Part("models/qwen3", "`architecture=qwen3_…`", "plugins/atom-qwen3/tests/test_conformance.py"),
    Part(
        "models/qwen3_5",
        "`architecture=qwen3_5_…`, without its vision tower",
        "plugins/atom-qwen3-5/tests/test_conformance.py",
    ),
    Part("observability", "`debug.enable_structured_logging`", "tests/test_logs.py"),
    Part("ops", "`architecture` with experts", "tests/test_moe.py"),
    Part(
        "overrides/fused_mla.py",
        f"{_UNUSED}no kernel of ATOM names it",
        f"{_ADAPTERS}test_titan.py",
    ),
    Part("overrides/fused_swiglu.py", "`kernels.feed_forward`", f"{_ADAPTERS}test_titan.py"),
    Part("overrides/helion_rope.py", "`kernels.rope`", f"{_ADAPTERS}test_titan.py"),
    Part(
        "overrides/moe_token_dispatcher.py",
        f"{_UNUSED}`kernels.moe_dispatch` chooses dispatchers",
        f"{_ADAPTERS}test_deepep.py",
    ),
    Part("protocols/model.py", "`architecture`, by its plugin", "tests/test_kinds.py"),
    Part("protocols/model_spec.py", "`architecture`, by its plugin", "tests/test_kinds.py"),
    Part("protocols/module.py", "`architecture`, by its plugin", "tests/test_initial_weights.py"),
    Part("protocols/sharding.py", "`architecture`, by its plugin", "tests/test_checks.py"),
    Part(
        "protocols/state_dict_adapter.py",
        "`atom export`, `checkpoint.initial_load=hf:…`",
        "tests/test_export.py",
    ),
    Part(
        "tools/filesystem.py",
        f"{_UNUSED}object stores are read and written by `atom.io`",
        "tests/test_clouds.py",
    ),
    Part("tools/logging.py", "`run.dir`: the logs of ranks", "tests/test_logs.py"),
    Part("tools/profiler.py", "`profiler`, `profile`", "tests/test_profile.py"),
    Part("tools/utils.py", "`training.gc_freq`, MFU", "tests/test_metrics.py"),
    Part(
        "experiments",
        f"{_UNUSED}experiments of torchtitan, which may change at any time",
        "tests/test_engine_parts.py",
    ),
)
"""The modules of torchtitan, by packages."""


def configs() -> Iterator[Part]:
    """Yield the fields of each config that a section of a run has, and of the whole config."""
    sections: list[tuple[str, Any]] = list(translate.CONFIGS.items())
    sections += [
        (f"activation_checkpoint.mode={mode}", config)
        for mode, config in translate.ACTIVATION_CHECKPOINT.items()
        if config is not None
    ]
    for section, config in sections:
        name = section.partition(".mode=")[0]
        keys = {field: key for key, field in translate.RENAMED.get(section, {}).items()}
        told = []
        for field in dataclasses.fields(config):
            key = f"{name}.{keys.get(field.name, field.name)}"
            reason = translate.NOT_IN_A_RUN.get(key)
            told.append(f"`{key}`" + (f" ({reason})" if reason else ""))
        if told:
            yield Part(f"config of {section}", ", ".join(told), _KEYS)
    for field in dataclasses.fields(Trainer.Config):
        reason = translate.NOT_IN_A_RUN.get(field.name)
        key = reason or f"the section `{field.name}`"
        yield Part(f"Trainer.Config.{field.name}", key, _KEYS)
