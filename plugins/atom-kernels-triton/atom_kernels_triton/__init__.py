"""Triton kernels, forward and backward: RMSNorm, RoPE, SwiGLU and cross-entropy.

None of them has been run on a GPU yet, only in Triton's interpreter. So their priority is below
that of the references: ``kernels=auto`` takes none, ``kernels=hopper`` and names do.
"""

from collections.abc import Iterator, Mapping

from atom.plugin import Kernel, Needs, hookimpl

ATOM_INTERFACE = 1
"""The version of :mod:`atom.plugin` that this package is written for."""

NAME = "triton"
_UNMEASURED = -10
_CAPABILITY = (8, 0)
_PACKAGES = ("triton>=3",)
_ALL = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3}


@hookimpl
def atom_kernels() -> Iterator[Kernel]:
    yield _kernel(
        "rms_norm",
        "one pass over each row, forward and backward",
        "rms_norm:triton_rms_norm",
        largest={"dim": 65536},
    )
    yield _kernel(
        "rope",
        "adjacent pairs; positions gathered in the kernel, q and k in one launch",
        "rope:triton_rope",
        largest={"head_dim": 1024},
    )
    yield _kernel(
        "rope_halves",
        "the two halves; positions gathered in the kernel, q and k in one launch",
        "rope:triton_rope_halves",
        largest={"head_dim": 1024},
    )
    yield _kernel(
        "feed_forward",
        "silu(gate) · up in one kernel; the three products are torch's",
        "feed_forward:triton_feed_forward",
    )
    yield _kernel(
        "cross_entropy",
        "the gradient takes the place of the logits",
        "loss:triton_cross_entropy",
        tensor_parallel=False,
    )
    yield _kernel(
        "linear_cross_entropy",
        "output layer and loss in pieces: the logits are never there as a whole",
        "loss:triton_linear_cross_entropy",
        tensor_parallel=False,
    )


def _kernel(
    operation: str,
    summary: str,
    override: str,
    *,
    largest: Mapping[str, int] | None = None,
    tensor_parallel: bool = True,
) -> Kernel:
    return Kernel(
        operation=operation,
        name=NAME,
        summary=summary,
        override=f"{__name__}.{override}",
        needs=Needs(
            triton=True,
            capability=_CAPABILITY,
            packages=_PACKAGES,
            largest=largest or {},
            tensor_parallel=tensor_parallel,
        ),
        priority=_UNMEASURED,
        tolerance=_ALL,
    )
