"""Compute Gated DeltaNet in plain PyTorch, for devices without FLA's kernels: CPU and meta.

In Yang et al. (2025, https://arxiv.org/abs/2412.06464) each head has a state S of shape (K, V). It
decays by g and then learns to map a key to a value, with the learning rate beta::

    S = exp(g) S;  S = S + k (beta (v - S^T k))^T;  o = S^T q

Tokens are computed in chunks: within a chunk, the updates u of all tokens are the solution of a
triangular system. The state is reset at the start of each document.

Shape suffixes: B = sequences (one, with the whole batch), L = tokens, N = heads, K and V = widths
of a key and a value head, W = channels, C = tokens of a chunk.
"""

from __future__ import annotations

import spmd_types as spmd
import torch
import torch.nn.functional as F

CHUNK = 64
"""Tokens per chunk."""


def documents(length: int, starts: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """Return the document number of each token, shape (L,).

    Args:
        length: L.
        starts: where documents begin, and finally L; None: there is one document.
        device: the device of the result.
    """
    if starts is None:
        return torch.zeros(length, dtype=torch.long, device=device)
    tokens_L = torch.arange(length, device=device)
    return torch.searchsorted(starts, tokens_L, right=True, out_int32=False) - 1


def causal_conv(
    x_BLW: torch.Tensor, weight_W1T: torch.Tensor, starts: torch.Tensor | None
) -> torch.Tensor:
    """Return SiLU of each channel's convolution over the last T tokens of the same document."""
    length, taps = x_BLW.shape[1], weight_W1T.shape[-1]
    document_L = documents(length, starts, x_BLW.device)
    out_BLW = x_BLW * weight_W1T[:, 0, -1]
    for back in range(1, min(taps, length)):
        earlier_BLW = F.pad(x_BLW, (0, 0, back, 0))[:, :length]
        same_L = F.pad(document_L, (back, 0), value=-1)[:length] == document_L
        out_BLW = out_BLW + earlier_BLW * same_L[:, None] * weight_W1T[:, 0, -1 - back]
    return F.silu(out_BLW)


def continued_conv(
    x_BLW: torch.Tensor, weight_W1T: torch.Tensor, before_BTW: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return :func:`causal_conv` of one document's next tokens, and its last T - 1 inputs.

    Args:
        x_BLW: the tokens.
        weight_W1T: the weights.
        before_BTW: the T - 1 inputs before them; None at the beginning of the document.
    """
    earlier = weight_W1T.shape[-1] - 1
    if before_BTW is None:
        before_BTW = x_BLW.new_zeros(x_BLW.shape[0], earlier, x_BLW.shape[2])
    whole_BLW = torch.cat([before_BTW, x_BLW], dim=1)
    out_BLW = causal_conv(whole_BLW, weight_W1T, None)[:, earlier:]
    return out_BLW, whole_BLW[:, whole_BLW.shape[1] - earlier :]


@spmd.local_map(
    in_types=(
        {"dp": spmd.S(1), "tp": spmd.S(2)},
        {"dp": spmd.R, "tp": spmd.S(0)},
        {"dp": spmd.V, "tp": spmd.R},
    ),
    out_types={"dp": spmd.S(1), "tp": spmd.S(2)},
)
def local_causal_conv(
    x_BLW: torch.Tensor, weight_W1T: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    """Return :func:`causal_conv` of a rank's local channels."""
    return causal_conv(x_BLW, weight_W1T, starts)


def gated_delta_rule(
    q_BLNK: torch.Tensor,
    k_BLNK: torch.Tensor,
    v_BLNV: torch.Tensor,
    g_BLN: torch.Tensor,
    beta_BLN: torch.Tensor,
    starts: torch.Tensor | None,
) -> torch.Tensor:
    """Return the outputs of the states, of shape (B, L, N, V).

    Args:
        q_BLNK: queries; they and the keys are scaled to length 1 here.
        k_BLNK: keys.
        v_BLNV: values.
        g_BLN: logarithm of the state's decay factor, at most 0.
        beta_BLN: learning rate, 0 to 1.
        starts: where documents begin, and finally L; None: there is one document.
    """
    return continued(q_BLNK, k_BLNK, v_BLNV, g_BLN, beta_BLN, starts, None)[0]


def continued(
    q_BLNK: torch.Tensor,
    k_BLNK: torch.Tensor,
    v_BLNV: torch.Tensor,
    g_BLN: torch.Tensor,
    beta_BLN: torch.Tensor,
    starts: torch.Tensor | None,
    state_BNKV: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outputs of the states, and the last state.

    The other arguments are those of :func:`gated_delta_rule`.

    Args:
        state_BNKV: the state that the first document continues; None: it begins here.
    """
    length = q_BLNK.shape[1]
    document_L = documents(length, starts, q_BLNK.device)
    wide = torch.promote_types(v_BLNV.dtype, torch.float32)
    q_BNLK, k_BNLK, v_BNLV = (x.to(wide).transpose(1, 2) for x in (q_BLNK, k_BLNK, v_BLNV))
    g_BNL, beta_BNL = (x.to(wide).transpose(1, 2) for x in (g_BLN, beta_BLN))
    q_BNLK = _unit(q_BNLK) * q_BLNK.shape[-1] ** -0.5
    k_BNLK = _unit(k_BNLK)
    batch, heads, _, width = k_BNLK.shape
    if state_BNKV is None:
        state_BNKV = v_BNLV.new_zeros(batch, heads, width, v_BNLV.shape[-1])
    before = document_L[:1]
    answers = []
    for begin in range(0, length, CHUNK):
        chunk = slice(begin, begin + CHUNK)
        document_C = document_L[chunk]
        answer_BNCV, state_BNKV = _chunk(
            q_BNLK[:, :, chunk],
            k_BNLK[:, :, chunk],
            v_BNLV[:, :, chunk],
            g_BNL[:, :, chunk].cumsum(dim=-1),
            beta_BNL[:, :, chunk, None],
            document_C,
            document_C == before,
            state_BNKV,
        )
        before = document_C[-1:]
        answers.append(answer_BNCV)
    return torch.cat(answers, dim=2).transpose(1, 2).type_as(v_BLNV), state_BNKV


def _chunk(
    q_BNCK: torch.Tensor,
    k_BNCK: torch.Tensor,
    v_BNCV: torch.Tensor,
    g_BNC: torch.Tensor,
    beta_BNC1: torch.Tensor,
    document_C: torch.Tensor,
    goes_on_C: torch.Tensor,
    state_BNKV: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outputs of a chunk's tokens, and the state after it.

    ``g_BNC`` is summed from the chunk's beginning; ``goes_on_C`` marks the tokens of the document
    that ``state_BNKV`` belongs to.
    """
    same_CC = (document_C[:, None] == document_C[None, :]).tril()
    decay_BNCC = _kept(g_BNC[..., :, None] - g_BNC[..., None, :], same_CC)
    kept_BNC1 = _kept(g_BNC, goes_on_C)[..., None]
    system_BNCC = (k_BNCK @ k_BNCK.mT * decay_BNCC * beta_BNC1).tril(-1)
    errors_BNCV = beta_BNC1 * (v_BNCV - kept_BNC1 * (k_BNCK @ state_BNKV))
    u_BNCV = torch.linalg.solve_triangular(
        system_BNCC, errors_BNCV, upper=False, unitriangular=True
    )
    answer_BNCV = kept_BNC1 * (q_BNCK @ state_BNKV) + (q_BNCK @ k_BNCK.mT * decay_BNCC) @ u_BNCV
    # The last row of both: the decay until the chunk's end.
    left_BNC1 = decay_BNCC[..., -1, :, None]
    state_BNKV = kept_BNC1[..., -1:, :] * state_BNKV + (k_BNCK * left_BNC1).mT @ u_BNCV
    return answer_BNCV, state_BNKV


def _kept(logarithm: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the exponential where ``counts`` is true, and 0 elsewhere."""
    # Masked first: the rest may be infinite, with a NaN gradient.
    return logarithm.masked_fill(~counts, -torch.inf).exp()


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-6)
