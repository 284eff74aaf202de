"""List the repairs that these kernels need. Data only."""

from __future__ import annotations

from atom.io.repair import Repair

PRECISION_CASTS = Repair(
    target="torch._inductor.config:emulate_precision_casts",
    reason="What Inductor recomputes in the backward pass is rounded otherwise than in the forward "
    "pass, so that rowwise float8 leads to NaN.",
    version="torch 2.15.0",
    upstream="https://github.com/pytorch/torchtitan/pull/1108",
    remove_when="torchtitan's Float8LinearConverter no longer sets it.",
    applied="to a process, under the kernels float8_rowwise and float8_rowwise_gw_hp",
    where="plugins/atom-kernels-adapters/atom_kernels_adapters/float8.py",
    sources={
        "torch._inductor.config:emulate_precision_casts": "911c390b",
        "torchtitan.components.quantization.float8:Float8LinearConverter": "e38305c5",
    },
    unprobed="it takes a GPU with float8",
)

REPAIRS = (PRECISION_CASTS,)
