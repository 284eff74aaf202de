"""Check that a loss computed from hidden states respects an output layer that does more than a
product.
"""

from __future__ import annotations

from atom.errors import UserError
from atom.titan.contracts.comparison import Implementation
from atom.titan.contracts.contract import ids
from atom.titan.contracts.sizes import Sizes

TOLERANCE = 1e-2


def difference(tested: Implementation, dtype: str, device: str) -> str | None:
    """Return how the loss differs from that of logits with a soft-cap, or None.

    A loss that refuses the layer passes.
    """
    import torch
    import torch.nn.functional as F

    class Capped(torch.nn.Linear):
        def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
            return torch.tanh(super().forward(x_BLD))

    sizes, kind = Sizes(), getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)
    head = Capped(sizes.dim, sizes.vocab_size, bias=False, device=device, dtype=kind)
    x_BLD = torch.randn(sizes.batch, sizes.length, sizes.dim, generator=generator)
    x_BLD = x_BLD.to(device, kind).requires_grad_()
    labels_BL = ids(sizes, device)
    loss = tested.contract.build(tested.node(sizes))
    loss.set_lm_head(head)
    try:
        found = loss(x_BLD, labels_BL)[0].item()
    except (TypeError, ValueError, UserError):
        return None
    logits_RV = head(x_BLD).flatten(0, 1).float()
    expected = F.cross_entropy(logits_RV, labels_BL.flatten(), reduction="sum").item()
    if abs(found - expected) <= TOLERANCE * abs(expected):
        return None
    return f"{found:.4f}, and {expected:.4f} with the soft-cap"
