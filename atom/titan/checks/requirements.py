"""Check what options of torchtitan require of each other, of the device and of the model.

torchtitan detects most of these errors on every rank, in the first step, or not at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torchtitan.config import ParallelismConfig, TrainingConfig
from torchtitan.models.common.attention import FlexAttention
from torchtitan.models.common.decoder import Decoder

from atom.errors import UserError, nearest
from atom.recipe.run import Run
from atom.titan import translate
from atom.titan.saved_model import on_meta

LOAD_BALANCERS = ("headtail", "ptrr")
"""Load balancers of torchtitan's context parallelism; None is also valid."""


def check(run: Run, training: TrainingConfig, parallelism: ParallelismConfig, device: str) -> None:
    """Refuse options with unmet requirements.

    Args:
        run: the run.
        training: its section.
        parallelism: with every degree known.
        device: ``cpu`` or ``cuda``.

    Raises:
        UserError: names the option, and what it needs.
    """
    compilation = translate.compilation(run.compile)
    compiled = compilation.enable and "model" in compilation.components
    if run.activation_checkpoint.mode == "memory_budget" and not compiled:
        raise UserError(
            "is the compiler's work, and the model is not compiled",
            valid="compile.enable=true with model among compile.components, or another mode",
            key="activation_checkpoint.mode",
            value="memory_budget",
        )
    if compilation.enable_async_tensor_parallel:
        _check_async(parallelism, device)
    if compilation.enable and compilation.backend == "inductor" and device == "cpu":
        _check_compiler()
    if compilation.enable and compilation.backend != "inductor":
        _check_backend(compilation.backend)
    if training.enable_cpu_offload and device == "cpu":
        raise UserError(
            "moves a GPU's memory to the CPU, and this run is on the CPU already",
            valid="false",
            key="training.enable_cpu_offload",
            value=True,
        )
    if run.optimizer.state_dtype not in (None, training.dtype) and device == "cpu":
        raise UserError(
            "only a GPU has a fused step for moments in another dtype than that of the parameters, "
            f"training.dtype={training.dtype}",
            valid="null",
            key="optimizer.state_dtype",
            value=run.optimizer.state_dtype,
        )
    balancer = parallelism.context_parallel_load_balancer
    if balancer is not None and balancer not in LOAD_BALANCERS:
        raise UserError(
            "there is no such load balancer",
            valid=f"{', '.join(LOAD_BALANCERS)}, null",
            key="parallelism.context_parallel_load_balancer",
            value=balancer,
        )


def check_load_balancer(parallelism: ParallelismConfig, model: Any) -> None:
    """Refuse PTRR if attention has no block mask, which PTRR computes the load from.

    Args:
        parallelism: with every degree known.
        model: the model's config, with the kernels in place.

    Raises:
        UserError: names the alternatives.
    """
    key, name = "parallelism.context_parallel_load_balancer", "ptrr"
    mask = parallelism.context_parallel_ptrr_mask_key
    if mask is not None and not _several_masks(model):
        raise UserError(
            "has no effect on a model with one attention mask",
            valid="null",
            key="parallelism.context_parallel_ptrr_mask_key",
            value=mask,
        )
    if parallelism.context_parallel_degree == 1:
        return
    if parallelism.context_parallel_load_balancer != name:
        return
    attention = getattr(model, "first_attention", None)
    inner = getattr(attention, "inner_attention", None)
    if not isinstance(inner, FlexAttention.Config):
        raise UserError(
            "deals out the blocks of flex attention's mask, and this model's attention has none",
            valid="headtail, null",
            key=key,
            value=name,
        )
    size = inner.block_size
    if not isinstance(size, int) and size[0] != size[1]:
        raise UserError(
            f"needs square blocks in the attention mask, and this kernel's are {size[0]} x "
            f"{size[1]}",
            valid="headtail, null, or another kernels.attention",
            key=key,
            value=name,
        )
    if parallelism.context_parallel_ptrr_mask_key is None and _several_masks(model):
        raise UserError(
            "this model has several attention masks, of which parallelism."
            "context_parallel_ptrr_mask_key names the one to deal out by",
            valid="its name, or headtail or null here",
            key=key,
            value=name,
        )


def check_experts(run: Run, model: Any) -> None:
    """Refuse expert load balancing for a model without experts."""
    mixture = any(getattr(layer, "moe", None) is not None for layer in getattr(model, "layers", ()))
    if run.debug.engine.get("moe_force_load_balance") and not mixture:
        raise UserError(
            "has no effect on a model without experts",
            valid="false",
            key="debug.moe_force_load_balance",
            value=True,
        )


def check_recomputed(run: Run, model: torch.nn.Module) -> None:
    """Refuse to recompute modules that the model lacks.

    Args:
        run: the run.
        model: on the meta device.

    Raises:
        UserError: a name matches no module, or one without a matrix product.
    """
    key = "force_recompute_mm_shapes_by_fqns"
    found = [(name, module) for name, module in model.named_modules() if name.startswith("layers.")]
    for part in run.activation_checkpoint.engine.get(key, ()):
        named = [(name, module) for name, module in found if part in name]
        if part in _RECOMPUTED or (named and all(_is_linear(module) for _, module in named)):
            continue
        other = next((name for name, module in named if not _is_linear(module)), None)
        raise UserError(
            f"is no linear layer: {other}" if other else "is in the name of no layer of this model",
            key=f"activation_checkpoint.{key}",
            value=part,
        )


_RECOMPUTED = ("moe.router.gate",)
"""torchtitan's default; not all models have it."""


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear)


def _several_masks(model: Any) -> bool:
    """Return whether the model makes its masks itself; torchtitan's method makes one mask."""
    method = getattr(type(on_meta(model)), "get_attention_masks", None)
    return method is not Decoder.get_attention_masks


def _check_async(parallelism: ParallelismConfig, device: str) -> None:
    """Refuse asynchronous tensor parallelism if there is nothing to overlap."""
    problem = None
    if device != "cuda":
        problem = "needs GPUs that reach each other's memory, and this run is on the CPU"
    elif parallelism.tensor_parallel_degree == 1:
        problem = "overlaps the communication of tensor parallelism, and this run has none"
    elif not parallelism.enable_sequence_parallel:
        problem = (
            "overlaps the gathering and scattering of sequence parallelism, which "
            "parallelism.enable_sequence_parallel=false leaves out"
        )
    if problem is not None:
        raise UserError(
            f"{problem}", valid="false", key="compile.enable_async_tensor_parallel", value=True
        )


def _check_backend(name: str) -> None:
    """Refuse a backend that the compiler does not know."""
    from torch._dynamo import list_backends
    from torch._dynamo.backends.registry import lookup_backend
    from torch._dynamo.exc import InvalidBackend

    try:
        lookup_backend(name)
    except InvalidBackend:
        raise UserError(
            f"there is no such backend; {nearest(name, [*list_backends(), 'eager'])}",
            key="compile.backend",
            value=name,
        ) from None


def _check_compiler() -> None:
    """Refuse to compile for a CPU without a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UserError(
            "compiling for a CPU needs a C++ compiler, and torch finds none",
            valid="false, or install g++ or clang++",
            key="compile.enable",
            value=True,
        ) from None
