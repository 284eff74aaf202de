"""Generate the tokens that follow prompts, several texts at a time.

Shape suffixes: B = texts, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch

from atom.titan.generation.cache import RecomputedBy
from atom.titan.generation.decoding import begin
from atom.titan.generation.sampling import Sampler, Sampling

GREEDY = Sampling()


def generate(
    model: Any, prompts: Sequence[Sequence[int]], *, batch: int = 16, **options: Any
) -> list[list[int]]:
    """Return the ids that follow each prompt.

    Args:
        model: a whole model, for evaluation.
        prompts: the ids of each text; none is empty.
        batch: the maximum number of texts that are computed together.
        options: those of :func:`stream`. ``finished`` gets the number of the prompt among all.
    """
    made: list[list[int]] = [[] for _ in prompts]
    finished = options.pop("finished", None)
    for first in range(0, len(prompts), batch):

        def done(text: int, ids: list[int], first: int = first) -> bool:
            return finished is not None and finished(first + text, ids)

        for text, token in stream(model, prompts[first : first + batch], finished=done, **options):
            made[first + text].append(token)
    return made


def generate_by(
    forward: Callable[..., torch.Tensor],
    device: str,
    prompts: Sequence[Sequence[int]],
    **options: Any,
) -> list[list[int]]:
    """Return the ids that follow each prompt, for a model that no cache knows.

    Args:
        forward: (ids_BL, positions_BL) -> logits_BLV.
        device: the device of the ids.
        prompts: the ids of each text, which are computed together; none is empty.
        options: those of :func:`follow`.
    """
    state = RecomputedBy(forward, device)
    made: list[list[int]] = [[] for _ in prompts]
    for text, token in follow(state, state.extend(prompts), **options):
        made[text].append(token)
    return made


def stream(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    sampling: Sampling = GREEDY,
    ends: Collection[int] = (),
    size: int | None = None,
    reach: int | None = None,
    finished: Callable[[int, list[int]], bool] | None = None,
) -> Iterator[tuple[int, int]]:
    """Yield the ids that follow some prompts, computed together: the text's number, and a token.

    Args:
        model: a whole model, for evaluation.
        prompts: the ids of each text; none is empty.
        tokens: the maximum number of tokens of each text.
        sampling: how they are drawn; by default the most likely ones.
        ends: ids that end a text; they are not yielded.
        size: the number of ids; rows of the embedding beyond are padding. None for all rows.
        reach: the maximum number of tokens of a text that the model supports; None if there is
            none.
        finished: called with a text's number and its new ids; returns whether the text ends there.
    """
    state, logits_BV = begin(model, prompts, reach)
    yield from follow(
        state,
        logits_BV,
        tokens=tokens,
        sampling=sampling,
        ends=ends,
        size=size,
        finished=finished,
    )


def follow(
    state: Any,
    logits_BV: torch.Tensor,
    *,
    tokens: int,
    sampling: Sampling = GREEDY,
    ends: Collection[int] = (),
    size: int | None = None,
    finished: Callable[[int, list[int]], bool] | None = None,
) -> Iterator[tuple[int, int]]:
    """Yield what :func:`stream` yields, from a state of the texts.

    Args:
        state: of :func:`atom.titan.generation.decoding.begin`; the last tokens are not added.
        logits_BV: those of the next token of each text.
    """
    texts = list(range(len(logits_BV)))
    made: list[list[int]] = [[] for _ in texts]
    sampler = Sampler(sampling, len(texts))
    for number in range(1, tokens + 1):
        drawn = sampler.draw(logits_BV[:, :size], texts)
        going: list[int] = []
        for row, (text, token) in enumerate(zip(texts, drawn, strict=True)):
            if token in ends:
                continue
            made[text].append(token)
            yield text, token
            if finished is None or not finished(text, made[text]):
                going.append(row)
        if not going or number == tokens:
            return
        if len(going) < len(texts):
            state.keep(going)
        texts, drawn = [texts[row] for row in going], [drawn[row] for row in going]
        logits_BV = state.extend([[token] for token in drawn])


def longest(parts: Any) -> int | None:
    """Return the maximum number of tokens of a text; None if the model has none.

    Args:
        parts: the model's, :class:`atom.plugin.ModelParts`.
    """
    try:
        reach: int | None = parts.model.max_seq_len
    except (AttributeError, ValueError):  # a Decoder without rotary embedding raises the latter
        return None
    return reach
