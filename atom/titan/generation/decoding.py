"""Decode texts with a model: with a cache if it gives the model's logits, and without otherwise.

Shape suffixes: B = texts, V = vocabulary.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from atom.titan.generation.cache import Cache, Recomputed

TOLERANCE = {"cpu": 1e-3, "cuda": 3e-2}
"""Largest accepted difference of a cached logit, relative to the largest logit. On a GPU, experts
compute in bfloat16."""

_TRIED = 21
"""Tokens that the cache of a model is tried with."""

_refused: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()


def begin(
    model: Any, prompts: Sequence[Sequence[int]], reach: int | None = None
) -> tuple[Cache | Recomputed, torch.Tensor]:
    """Return the state of decoding after ``prompts``, and the logits of their next tokens, (B, V).

    Prompts of one length are computed together; there is no padding.

    Args:
        model: a whole model, for evaluation.
        prompts: the ids of each text, at least one.
        reach: the maximum number of tokens of a text; None if the model has none.
    """
    kind = Recomputed if tell(model) else Cache
    of_length: dict[int, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        of_length[len(prompt)].append(row)
    parts, logits = [], []
    for rows in of_length.values():
        parts.append(kind(model, reach))
        logits.append(parts[-1].extend([prompts[row] for row in rows]))
    if len(parts) == 1:
        return parts[0], logits[0]
    joined: Any = kind(model, reach)
    joined.join(parts)
    order = [row for rows in of_length.values() for row in rows]
    back = sorted(range(len(order)), key=order.__getitem__)
    joined.keep(back)
    return joined, torch.cat(logits)[back]


def tell(model: Any) -> bool:
    """Return whether a model is computed without a cache, and say so once."""
    known = model in _refused
    reason = uncached(model)
    if reason is not None and not known:
        print(
            f"atom: this model cannot be cached: {reason}; each token is computed from all "
            "earlier ones",
            file=sys.stderr,
        )
    return reason is not None


def uncached(model: Any) -> str | None:
    """Return why a model cannot be cached, or None.

    A layer may mix tokens in a way that no cache knows. So a short text is computed with a cache,
    in pieces, and at once; the logits of both must agree.
    """
    if model not in _refused:
        _refused[model] = _tried(model)
    return _refused[model]


def _tried(model: Any) -> str | None:
    size = model.tok_embeddings.weight.shape[0] if hasattr(model, "tok_embeddings") else 2
    ids = [(7 * position + 3) % size for position in range(_TRIED)]
    ends = (_TRIED // 2, _TRIED - 1, _TRIED)
    try:
        whole = torch.cat([Recomputed(model).extend([ids[:end]]) for end in ends])
        cache = Cache(model, reach=None)
        pieces = torch.cat(
            [cache.extend([ids[begin:end]]) for begin, end in zip((0, *ends), ends, strict=False)]
        )
    except Exception as error:  # a plugin's model may raise anything
        return " ".join(str(error).split()) or type(error).__name__
    largest = (pieces - whole).abs().max() / whole.abs().max()
    if largest <= TOLERANCE[whole.device.type]:
        return None
    return f"its logits would differ by {largest:.1g} of the largest"
