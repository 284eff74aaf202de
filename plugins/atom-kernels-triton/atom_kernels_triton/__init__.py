"""Triton kernels, forward and backward: RMSNorm, RoPE, SwiGLU and cross-entropy.

None of them has been run on a GPU yet, only in Triton's interpreter. Therefore their priority is
below that of the references: ``kernels=auto`` selects none, ``kernels=hopper`` and names do.
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
        "modules:triton_rms_norm",
        functions={"rms_norm": "rms_norm:rms_norm", "add_rms_norm": "rms_norm:add_rms_norm"},
        largest={"dim": 65536},
    )
    yield _kernel(
        "rope",
        "adjacent pairs; positions gathered in the kernel, q and k in one launch",
        "modules:triton_rope",
        functions={"rope": "rope:rope_pairs"},
        largest={"head_dim": 1024},
    )
    yield _kernel(
        "rope_halves",
        "the two halves; positions gathered in the kernel, q and k in one launch",
        "modules:triton_rope_halves",
        functions={"rope_halves": "rope:rope_halves"},
        largest={"head_dim": 1024},
    )
    yield _kernel(
        "feed_forward",
        "silu(gate) · up in one kernel; the three products are torch's",
        "modules:triton_feed_forward",
        functions={
            "feed_forward": "feed_forward:feed_forward",
            "silu_mul": "feed_forward:silu_mul",
        },
    )
    yield _kernel(
        "cross_entropy",
        "the gradient overwrites the logits",
        "loss:triton_cross_entropy",
        functions={"cross_entropy": "cross_entropy:cross_entropy"},
        tensor_parallel=False,
    )
    yield _kernel(
        "linear_cross_entropy",
        "output layer and loss in chunks, so that all logits are never in memory at once",
        "loss:triton_linear_cross_entropy",
        functions={"linear_cross_entropy": "cross_entropy:linear_cross_entropy"},
        tensor_parallel=False,
    )


def _kernel(
    operation: str,
    summary: str,
    override: str,
    *,
    functions: Mapping[str, str],
    largest: Mapping[str, int] | None = None,
    tensor_parallel: bool = True,
) -> Kernel:
    return Kernel(
        operation=operation,
        name=NAME,
        summary=summary,
        not_run_on="a GPU",
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
        functions={name: f"{__name__}.{function}" for name, function in functions.items()},
    )
