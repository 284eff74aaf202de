"""Check the settings of torch.compile."""

from __future__ import annotations

from atom.errors import UserError, nearest
from atom.recipe.run import Run
from atom.titan import translate
from atom.titan.checks.plan import Plan


def compiles_model(run: Run) -> bool:
    """Return whether ``run`` compiles its model."""
    compilation = translate.compilation(run.compile)
    return compilation.enable and "model" in compilation.components


def check_async(plan: Plan) -> None:
    """Refuse asynchronous tensor parallelism if there is nothing to overlap.

    Raises:
        UserError: names the reason.
    """
    if not translate.compilation(plan.run.compile).enable_async_tensor_parallel:
        return
    parallelism, problem = plan.parallelism, None
    if plan.kind != "cuda":
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
            problem, valid="false", key="compile.enable_async_tensor_parallel", value=True
        )


def check_backend(plan: Plan) -> None:
    """Refuse a backend that torch does not know, or that lacks its compiler.

    Raises:
        UserError: names the nearest backend, or what is missing.
    """
    compilation = translate.compilation(plan.run.compile)
    if not compilation.enable:
        return
    if compilation.backend != "inductor":
        _check_known(compilation.backend)
    elif plan.kind == "cpu":
        _check_compiler()


def _check_known(name: str) -> None:
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
