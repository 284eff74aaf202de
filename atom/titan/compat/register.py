"""List every repair of torch, torchtitan and their dependencies, in the order of a run.

Data only, no imports. ``docs/engine.md`` is generated from it. Repairs of Hydra and OmegaConf are
in :mod:`atom.compose.repairs`, those of a plugin in its ``repairs`` module.
"""

from __future__ import annotations

from atom.io.repair import Repair
from atom.titan.compat.register_ranks import RANKS
from atom.titan.compat.register_training import TRAINING
from atom.titan.compat.register_triton import TRITON

_AT_BOOT = "at boot"
_CPU_MODE = "https://github.com/pytorch/torchtitan/issues/1661"
_PROBES = "atom.testing.probes.engine"

AT_BOOT: tuple[Repair, ...] = (
    Repair(
        target="torch.utils._pytree:register_constant",
        reason="Importing torchao, as torchtitan does, warns users of a call that torchao's "
        "developers should change.",
        version="torchao 0.18.0",
        upstream="https://github.com/pytorch/ao/issues/4848",
        remove_when="Importing torchao logs no warning.",
        applied=_AT_BOOT,
        where="atom/titan/compat/log_filters.py",
        function="atom.titan.compat.log_filters:hide_notes_for_developers",
        sources={"torch.utils._pytree:register_constant": "f7c1f2a6.4aa50bf0"},
        probe="atom.testing.probes.imports:torchao_warns",
    ),
    Repair(
        target="torchtitan.tools.utils:device_type",
        reason="torchtitan takes CUDA for its device where there is no accelerator.",
        version="torchtitan 0.3.0",
        upstream=_CPU_MODE,
        remove_when="device_type is cpu on a machine without an accelerator.",
        applied=_AT_BOOT,
        where="atom/titan/compat/cpu.py",
        replacement="atom.titan.compat.cpu:DEVICE_TYPE",
        devices=("cpu",),
        sources={
            "torchtitan.tools.utils:device_type": "d2f028bb",
            "torchtitan.tools.utils:get_device_info": "6262a5ac.bf0d5df7",
            "torchtitan.tools.utils:get_local_device": "92d35ef6.249acd64",
        },
        probe=f"{_PROBES}:device_is_cuda_without_one",
    ),
    Repair(
        target="torchtitan.tools.utils:device_module",
        reason="torchtitan asks the device's module for memory statistics, which torch.cpu lacks.",
        version="torchtitan 0.3.0",
        upstream=_CPU_MODE,
        remove_when="torchtitan's memory monitor works with torch.cpu.",
        applied=_AT_BOOT,
        where="atom/titan/compat/cpu.py",
        replacement="atom.titan.compat.cpu:MODULE",
        devices=("cpu",),
        sources={
            "torchtitan.tools.utils:device_module": "d2f028bb",
            "torchtitan.components.metrics:DeviceMemoryMonitor": "53cb33c2",
        },
        probe=f"{_PROBES}:cpu_has_no_memory_statistics",
    ),
    Repair(
        target="torchtitan.tools.utils:get_peak_flops",
        reason="A device that torchtitan does not know gets the peak FLOPS of an A100, so that the "
        "MFU of a CPU has no meaning.",
        version="torchtitan 0.3.0",
        upstream="docs/upstream/peak-flops.md",
        remove_when="The peak FLOPS of an unknown device are none or infinite.",
        applied=_AT_BOOT,
        where="atom/titan/compat/cpu.py",
        replacement="atom.titan.compat.cpu:unknown_peak_flops",
        devices=("cpu",),
        sources={"torchtitan.tools.utils:get_peak_flops": "2a8ecd1b.fa753c9d"},
        probe=f"{_PROBES}:cpu_has_the_peak_of_a_gpu",
    ),
    Repair(
        target="torch:compile",
        reason="Importing torchtitan's attention calls torch.compile, which imports Inductor on "
        "every rank of a CPU run that never compiles.",
        version="torchtitan 0.3.0",
        upstream="docs/upstream/imports.md",
        remove_when="Importing torchtitan.models.common.attention imports no Inductor.",
        applied="at boot, while torchtitan's attention is imported",
        where="atom/titan/compat/put_off.py",
        function="atom.titan.compat.put_off:attention",
        devices=("cpu",),
        sources={
            "torchtitan.models.common.attention:FlexAttention._compiled_flex_attn": "308635d2"
        },
        probe="atom.testing.probes.imports:attention_imports_inductor",
    ),
    Repair(
        target="torchtitan.models.common.attention:_compiled_create_block_mask",
        reason="Attention masks are made by a compiled function, which needs a C++ compiler on "
        "every machine and seconds on every rank.",
        version="torchtitan 0.3.0",
        upstream=_CPU_MODE,
        remove_when="torchtitan makes masks without torch.compile on a CPU.",
        applied=_AT_BOOT,
        where="atom/titan/compat/register.py",
        replacement="torch.nn.attention.flex_attention:create_block_mask",
        devices=("cpu",),
        sources={
            "torchtitan.models.common.attention:_compiled_create_block_mask": "ec664d5b",
            "torchtitan.models.common.attention:create_attention_mask": "43eef6ba.6ff80623",
        },
        probe=f"{_PROBES}:masks_are_compiled",
    ),
    Repair(
        target="torch.distributed.tensor.experimental._context_parallel._attention"
        ":_compiled_create_block_mask",
        reason="Context parallelism makes its masks by a compiled function, too.",
        version="torch 2.15.0",
        upstream=_CPU_MODE,
        remove_when="torch makes the masks of context parallelism without torch.compile on a CPU.",
        applied=_AT_BOOT,
        where="atom/titan/compat/register.py",
        replacement="torch.nn.attention.flex_attention:create_block_mask",
        devices=("cpu",),
        sources={
            "torch.distributed.tensor.experimental._context_parallel._attention"
            ":_compiled_create_block_mask": "a3602aea",
            "torch.distributed.tensor.experimental._context_parallel._attention"
            ":_create_cp_block_mask": "e56a503d.560a0247",
        },
        probe=f"{_PROBES}:context_parallel_masks_are_compiled",
    ),
    Repair(
        target="spmd_types._dist:dist",
        reason="Expert parallelism sends tokens by all-to-all over lists of tensors, and gloo "
        "refuses lists of uneven sizes, which routing makes.",
        version="spmd_types 0.2.3",
        upstream="https://github.com/pytorch/pytorch/issues/88245",
        remove_when="gloo's all_to_all takes lists of tensors of uneven sizes.",
        applied=_AT_BOOT,
        where="atom/titan/compat/moe.py",
        function="atom.titan.compat.moe:exchange_over_gloo",
        devices=("cpu",),
        sources={"spmd_types._dist:set_dist": "a1f50954.de622f6f"},
        probe=f"{_PROBES}:gloo_refuses_uneven_lists",
    ),
    Repair(
        target="torchtitan.models.common.moe:GroupedExperts.forward",
        reason="Experts compute in bfloat16, whatever the precision of the run.",
        version="torchtitan 0.3.0",
        upstream="docs/upstream/experts-dtype.md",
        remove_when="GroupedExperts.forward computes in the dtype of its input.",
        applied=_AT_BOOT,
        where="atom/titan/compat/moe.py",
        replacement="atom.titan.compat.moe:in_dtype_of_tokens",
        devices=("cpu",),
        sources={
            "torchtitan.models.common.moe:GroupedExperts.forward": "4e3c8290.a59df6e1",
            "torchtitan.models.common.moe:GroupedExperts._grouped_mm": "fae583dd.882a2f00",
        },
        probe=f"{_PROBES}:experts_round_to_bfloat16",
    ),
    Repair(
        target="sys:modules",
        reason="torchtitan's validation imports datasets, with pandas and Arrow, for the default "
        "of a loader that ATOM never uses.",
        version="torchtitan 0.3.0",
        upstream="docs/upstream/imports.md",
        remove_when="Importing torchtitan.components.validate imports no datasets.",
        applied="at boot, while torchtitan's validation is imported",
        where="atom/titan/compat/put_off.py",
        function="atom.titan.compat.put_off:datasets",
        sources={"torchtitan.components.validate:Validator.Config": "acbe03c1"},
        probe="atom.testing.probes.imports:validation_imports_datasets",
    ),
)
"""Applied by :func:`atom.titan.boot.boot`, in this order, before torchtitan is imported."""

LATER: tuple[Repair, ...] = (*RANKS, *TRAINING, *TRITON)

REPAIRS = (*AT_BOOT, *LATER)
