"""Load a model that answers: of a run, of an export, or of ``transformers``.

Shape suffixes: B = texts, V = vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from atom.errors import UserError
from atom.io.files import is_regular
from atom.run_dir.folder import RUN_FILE
from atom.titan.generation.conversation import Speaker
from atom.titan.generation.decoding import begin
from atom.titan.generation.generator import Generator
from atom.titan.weights import transformers_model


def load(folder: Path, *, step: int | None, kind: str, average: str | None) -> Speaker:
    """Load the model of a folder.

    Args:
        folder: a run folder, an export, or a folder in Hugging Face's format.
        step: the checkpoint's step, for a run; None for the newest.
        kind: the device that torchtitan is set up for, ``cpu`` or ``cuda``.
        average: the callback whose averaged weights to use; None: the weights.

    Raises:
        UserError: there are no readable weights, or the tokenizer has no conversations.
    """
    if not is_regular(folder / RUN_FILE) and step is None and average is None:
        return _foreign(transformers_model.load(folder, kind=kind, dtype=torch.float32))
    found = Generator(folder, step=step, kind=kind, average=average)
    chat = getattr(found.tokenizer, "chat", lambda: None)()
    if chat is None:
        raise UserError(f"the tokenizer of {folder} has no chat template that it can read")
    ends, text = chat.ends()
    return Speaker(
        begin=partial(begin, found.model, reach=found.reach),
        tokenizer=found.tokenizer,
        encode=chat.ids,
        ends=ends,
        end=text,
        size=found.tokenizer.get_vocab_size(),
        reach=found.reach,
    )


def _foreign(found: transformers_model.Foreign) -> Speaker:
    def started(prompts: Sequence[Sequence[int]]) -> tuple[_Cache, torch.Tensor]:
        cache = _Cache(found.model)
        return cache, cache.extend(prompts)

    ends = found.model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return Speaker(
        begin=started,
        tokenizer=found.tokenizer,
        encode=found.tokenizer.encode_chat,
        ends={each for each in (*ends, found.tokenizer.eos_id) if each is not None},
        size=found.tokenizer.get_vocab_size(),
        reach=found.max_length,
    )


class _Cache:
    """What a model of ``transformers`` keeps of texts of one length.

    Attributes:
        lengths: the number of tokens of each text.
    """

    def __init__(self, model: Any) -> None:
        self.lengths: list[int] = []
        self._model = model
        # Its name changed in transformers 5.
        parameters = inspect.signature(type(model).forward).parameters
        self._name = "cache" if "cache" in parameters else "past_key_values"
        self._kept: Any = None

    @torch.inference_mode()
    def extend(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Add as many tokens to each text; return the logits after the last ones, (B, V)."""
        ids_BL = torch.tensor(ids, device=self._model.device)
        output = self._model(input_ids=ids_BL, use_cache=True, **{self._name: self._kept})
        self._kept = getattr(output, self._name)
        self.lengths = [length + len(ids[0]) for length in self.lengths or [0] * len(ids)]
        logits_BV: torch.Tensor = output.logits[:, -1]
        return logits_BV

    def keep(self, rows: Sequence[int]) -> None:
        """Keep all texts."""
        assert list(rows) == list(range(len(self.lengths)))
