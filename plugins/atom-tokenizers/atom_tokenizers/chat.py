"""Encode conversations with the chat template of a tokenizer's files.

torchtitan renders templates in Jinja's immutable sandbox.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from atom.errors import UserError
from atom.io.special_tokens import as_text
from atom_tokenizers.tokenizer_config import ROLES, TokenizerConfig

if TYPE_CHECKING:
    from atom_tokenizers.ranks import PlainTextTokenizer

Message = Mapping[str, str]

_ANSWER = "an answer"
_MARKED = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


def source(template: Any) -> str | None:
    """Return the template to render, or None: of several named ones, the default.

    ``transformers`` marks the assistant's parts with ``{% generation %}``, for training.
    """
    if isinstance(template, list):
        named = {each.get("name"): each for each in template if isinstance(each, dict)}
        template = named.get("default", {}).get("template")
    if not isinstance(template, str):
        return None
    return _MARKED.sub(
        lambda found: f"{{%{found[1]} {'endif' if found[2] else 'if true'} {found[3]}%}}", template
    )


def text(
    tokenizer: PlainTextTokenizer, messages: Sequence[Message], *, add_generation_prompt: bool
) -> str:
    """Return the text of a conversation.

    A special token that a message spells gets a zero-width space after its first character.

    Args:
        tokenizer: a tokenizer with a template.
        messages: each has a ``role`` and a ``content``.
        add_generation_prompt: whether to end with the beginning of the next answer.

    Raises:
        UserError: the template refuses the messages, or is not valid.
    """
    spellings = _special(tokenizer)
    safe = [{**each, "content": as_text(each["content"], spellings)} for each in messages]
    roles = TokenizerConfig.model_validate(tokenizer._hf_config or {}).roles()
    named = {role: token.content for role, token in roles.items() if role in ROLES}
    try:
        return tokenizer.apply_chat_template(
            safe, add_generation_prompt=add_generation_prompt, **named
        )
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the model's chat template refuses this conversation: {reason}") from None


def ids(tokenizer: PlainTextTokenizer, rendered: str) -> list[int]:
    """Return the ids of a conversation's text, in which special tokens are tokens."""
    inner = tokenizer.tokenizer
    inner.encode_special_tokens = False
    try:
        found: list[int] = inner.encode(rendered, add_special_tokens=False).ids
    finally:
        inner.encode_special_tokens = True
    return found


def ends(tokenizer: PlainTextTokenizer) -> frozenset[int]:
    """Return the ids that end an answer: EOS, and the token that the template writes after one."""
    found = {tokenizer.eos_id} - {None}
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": _ANSWER}]
    try:
        rendered = text(tokenizer, messages, add_generation_prompt=False)
    except UserError:
        return frozenset(found)
    after = rendered.rpartition(_ANSWER)[2].lstrip()
    first = [each for each in _special(tokenizer) if after.startswith(each)]
    if first:
        found.add(tokenizer.tokenizer.token_to_id(max(first, key=len)))
    return frozenset(found)


def _special(tokenizer: PlainTextTokenizer) -> list[str]:
    added = tokenizer.tokenizer.get_added_tokens_decoder().values()
    return [token.content for token in added if token.special and token.content]
