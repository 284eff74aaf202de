"""The model that EleutherAI's harness asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from atom.errors import UserError
from atom.plugin import Scorer

GENERATED = 256
"""Tokens that are generated if a task does not tell, as in the harness."""


class HarnessModel(TemplateLM):
    """A :class:`atom.plugin.Scorer` as a model of the harness."""

    def __init__(self, model: Scorer) -> None:
        super().__init__()
        self._model = model
        prefix = model.bos_id if model.bos_id is not None else model.eos_id
        if prefix is None:
            raise UserError(
                "the tokenizer has neither BOS nor EOS, so the first token of a text has no "
                "probability"
            )
        self._prefix = prefix
        self._bos_text = model.decode([prefix])

    @property
    def eot_token_id(self) -> int:
        return self._prefix if self._model.eos_id is None else self._model.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self._prefix

    @property
    def max_length(self) -> int:
        return self._model.max_length

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        has_bos = bool(self._bos_text) and string.startswith(self._bos_text)
        bos = not has_bos if add_special_tokens is None else add_special_tokens
        return self._model.encode(string, bos=bos)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        return [(each.logprob, each.is_greedy) for each in self._model.loglikelihood(pairs)]

    def loglikelihood_rolling(self, requests: Any, **_: Any) -> list[float]:
        pairs: list[tuple[Sequence[int], Sequence[int]]] = []
        owners = []
        for number, (text,) in enumerate(request.args for request in requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self._prefix,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in map(make_disjoint_window, windows):
                pairs.append(window)
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, found in zip(owners, self._model.loglikelihood(pairs), strict=True):
            totals[number] += found.logprob
        return totals

    def generate_until(self, requests: Any, **_: Any) -> list[str]:
        found = [""] * len(requests)
        alike: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for number, request in enumerate(requests):
            told: Any = normalize_gen_kwargs(request.args[1], GENERATED)
            if told.get("do_sample") or told.get("temperature"):
                raise UserError("the task samples, and an evaluation takes the likeliest tokens")
            until = tuple(handle_stop_sequences(told.get("until"), eos=None))
            alike.setdefault((until, told["max_gen_toks"]), []).append(number)
        for (until, tokens), numbers in alike.items():
            prompts = [self.tok_encode(requests[number].args[0]) for number in numbers]
            texts = self._model.generate_until(prompts, until=until, tokens=tokens)
            for number, text in zip(numbers, texts, strict=True):
                found[number] = text
        return found
