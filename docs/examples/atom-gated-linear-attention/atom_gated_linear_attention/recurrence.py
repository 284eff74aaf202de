"""The recurrence of gated linear attention, in plain PyTorch.

Each head keeps a state S of shape (K, V). At token t it decays by the gate, row by row, takes up
the token's key and value, and answers its query:

    S_t = diag(g_t) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t

Within a chunk of C tokens all answers are computed at once; only the state goes from chunk to
chunk one after another. Nothing is divided by a decay, so no gate can overflow.

Shape suffixes: B sequences, L tokens, N heads, K and V width of a head's keys and values;
G chunks, C tokens of a chunk (I and J where there are two).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def gated_linear_attention(
    q_BLNK: torch.Tensor,
    k_BLNK: torch.Tensor,
    v_BLNV: torch.Tensor,
    log_g_BLNK: torch.Tensor,
    positions_BL: torch.Tensor | None = None,
    *,
    chunk: int = 16,
) -> torch.Tensor:
    """Return the answers o of shape (B, L, N, V), in the dtype of ``v_BLNV``.

    Args:
        q_BLNK: queries.
        k_BLNK: keys.
        v_BLNV: values.
        log_g_BLNK: logarithms of the gates, none above 0.
        positions_BL: position of each token in its document; the state starts empty at 0. None
            for one document a sequence.
        chunk: C. Memory is O(B L C N K).
    """
    return continued(q_BLNK, k_BLNK, v_BLNV, log_g_BLNK, positions_BL, None, chunk=chunk)[0]


def continued(
    q_BLNK: torch.Tensor,
    k_BLNK: torch.Tensor,
    v_BLNV: torch.Tensor,
    log_g_BLNK: torch.Tensor,
    positions_BL: torch.Tensor | None,
    state_NKV: torch.Tensor | None,
    *,
    chunk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the answers, and the state after the last token.

    The other arguments are those of :func:`gated_linear_attention`.

    Args:
        state_NKV: the state of each sequence before its first token; None where it is empty.
    """
    batch, length = v_BLNV.shape[:2]
    if positions_BL is None:
        positions_BL = torch.arange(length, device=v_BLNV.device).expand(batch, length)
    documents_BL = (positions_BL == 0).cumsum(1) + (0 if state_NKV is None else 1)

    # Float32 at least: decays are multiplied over thousands of tokens.
    dtype = torch.promote_types(v_BLNV.dtype, torch.float32)
    q, k, v, log_g = (_chunks(x.to(dtype), chunk) for x in (q_BLNK, k_BLNK, v_BLNV, log_g_BLNK))
    # (B, G, C), as all below begin with B. What fills up the last chunk belongs to its document.
    last_B1 = documents_BL[:, -1:]
    documents_GC = _chunks(documents_BL - last_B1, chunk) + last_B1[:, None]
    last_G = documents_GC[..., -1]
    # The document whose state comes into a chunk. Before the first there is none (0), or the one
    # that is continued (1).
    before_G = F.pad(last_G[:, :-1], (1, 0), value=0 if state_NKV is None else 1)
    decay_GCNK = log_g.cumsum(2)  # logarithm, from the start of the chunk to the token

    # Within a chunk: token I sees J, if J is not later and of the same document.
    seen_GIJ = documents_GC[..., :, None] == documents_GC[..., None, :]
    seen_GIJ = seen_GIJ & torch.ones_like(seen_GIJ).tril()
    between_GIJNK = _exp(decay_GCNK[:, :, :, None] - decay_GCNK[:, :, None], seen_GIJ)
    scores_GIJN = torch.einsum("bgink,bgjnk,bgijnk->bgijn", q, k, between_GIJNK)
    out_GCNV = torch.einsum("bgijn,bgjnv->bginv", scores_GIJN, v)

    # From chunk to chunk.
    whole_GNK = decay_GCNK[:, :, -1]
    to_end_GCNK = _exp(whole_GNK[:, :, None] - decay_GCNK, documents_GC == last_G[..., None])
    added_GNKV = torch.einsum("bgcnk,bgcnv->bgnkv", k * to_end_GCNK, v)
    kept_GNK = _exp(whole_GNK, last_G == before_G)
    if state_NKV is None:
        state_NKV = torch.zeros_like(added_GNKV[:, 0])
    states = []
    for added_NKV, kept_NK in zip(added_GNKV.unbind(1), kept_GNK.unbind(1), strict=True):
        states.append(state_NKV)
        state_NKV = kept_NK[..., None] * state_NKV + added_NKV
    from_start_GCNK = _exp(decay_GCNK, documents_GC == before_G[..., None])
    out_GCNV = out_GCNV + torch.einsum(
        "bgcnk,bgnkv->bgcnv", q * from_start_GCNK, torch.stack(states, 1)
    )
    return out_GCNV.flatten(1, 2)[:, :length].to(v_BLNV.dtype), state_NKV


def _chunks(x_BL: torch.Tensor, chunk: int) -> torch.Tensor:
    """Return (B, L, …) as (B, G, C, …), filled up with zeros."""
    length = x_BL.shape[1]
    missing = math.ceil(length / chunk) * chunk - length
    if missing:
        x_BL = F.pad(x_BL, (0, 0) * (x_BL.ndim - 2) + (0, missing))
    return x_BL.unflatten(1, (-1, chunk))


def _exp(exponent: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Return exp of an exponent (…, N, K) where (…) is true, and 0 elsewhere."""
    return exponent.masked_fill(~where[..., None, None], -math.inf).exp()
