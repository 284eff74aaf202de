"""List the repair that these kernels need. Data only."""

from __future__ import annotations

from atom.io.repair import Repair

DENSE_MASK = Repair(
    target="torch.nn.attention.flex_attention:BlockMask.atom_dense",
    reason="A block mask has no place for what is derived from it, and the reference attention "
    "would make its dense form anew in every layer.",
    version="torch 2.15.0",
    upstream="an attribute that torch does not know; nothing to report",
    remove_when="torch keeps the dense form of a block mask.",
    applied="to the masks of a step, under the reference attention",
    where="plugins/atom-kernels-torch/atom_kernels_torch/attention.py",
    sources={"torch.nn.attention.flex_attention:BlockMask": "7dbbe1ea"},
    unprobed="an added attribute and no fault",
)

REPAIRS = (DENSE_MASK,)
