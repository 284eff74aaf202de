"""Load a model in Hugging Face's format with ``transformers``, for a folder without a ``run.yaml``.

Nothing is downloaded, and no code of the folder runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from atom.errors import UserError
from atom.io.special_tokens import as_text


@dataclass(frozen=True)
class Foreign:
    """A model of ``transformers``.

    Attributes:
        model: the model.
        forward: (ids_BL, positions_BL) -> logits_BLV.
        tokenizer: its tokenizer, with the methods of torchtitan's.
        max_length: the longest sequence in tokens.
    """

    model: Any
    forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    tokenizer: Any
    max_length: int


class _Tokenizer:
    """A tokenizer of ``transformers`` with the methods of torchtitan's."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id

    def encode(self, text: str, *, add_bos: bool = False, add_eos: bool = False) -> list[int]:
        # What the tokenizer's file adds, such as BOS, is what the model was trained with.
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_bos)
        return [*ids, self.eos_id] if add_eos and self.eos_id is not None else ids

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the ids of a conversation, up to where the next answer begins.

        Raises:
            UserError: the template refuses the messages.
        """
        added = self._tokenizer.added_tokens_decoder.values()
        special = [token.content for token in added if token.special]
        safe = [{**each, "content": as_text(each["content"], special)} for each in messages]
        try:
            text = self._tokenizer.apply_chat_template(
                safe, add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # a template may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"the model's chat template refuses this conversation: {reason}"
            ) from None
        return self.encode(text)

    def get_vocab_size(self) -> int:
        return len(self._tokenizer)


def load(folder: Path, *, kind: str, dtype: torch.dtype) -> Foreign:
    """Load a model and its tokenizer.

    Raises:
        UserError: ``transformers`` is not installed, or cannot load them.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError:
        raise UserError(
            f"{folder} is in Hugging Face's format and holds no run.yaml, which needs the package "
            "transformers",
            valid="`pip install transformers`, or a folder of `atom export`",
        ) from None
    logging.disable_progress_bar()
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, dtype=dtype, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder} cannot be loaded by transformers: {reason}") from None
    model = model.to(kind).eval()

    def forward(ids_BL: torch.Tensor, positions_BL: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = model(
            input_ids=ids_BL, position_ids=positions_BL, use_cache=False
        ).logits
        return output

    length = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    return Foreign(model, forward, _Tokenizer(tokenizer), min(int(length), 10**6))
