"""Record the environment variables that can change the numbers of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping

from atom.redaction import concealed, redacted

PREFIXES = (
    "ATEN_",
    "CUBLAS",
    "CUDA_",
    "CUDNN_",
    "CUTE_",
    "CUTLASS_",
    "DNNL_",
    "GLOO_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "NCCL_",
    "NVIDIA_",
    "NVTE_",
    "OMP_",
    "ONEDNN_",
    "OPENBLAS_",
    "PYTORCH_",
    "TORCH",
    "TRITON_",
    "UCX_",
    "XLA_",
)
"""Prefixes of the variables of libraries that compute or communicate."""

_PLACES = re.compile(r"TORCHELASTIC_.*|.*_CACHE_DIR|TORCH_EXTENSIONS_DIR")
"""Variables that launchers and ATOM itself set, which only name places and attempts."""

NAMES = ("LD_PRELOAD", "PYTHONHASHSEED")


def numerics(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that can change numbers, in order; secrets are redacted."""
    found = {
        name: concealed(value)
        for name, value in sorted(environment.items())
        if (name.startswith(PREFIXES) or name in NAMES) and not _PLACES.fullmatch(name)
    }
    kept: dict[str, str] = redacted(found, "launcher")
    return kept
