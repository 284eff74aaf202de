"""Secrets that were typed into a run: they reach its job, and nothing that is written or shown.

A value is a secret by its name: ``WANDB_API_KEY``, ``--token=…``, a password in an address.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

REDACTED = "(redacted)"

_WORDS = "api_?key|key|token|secret|password|passwd|passphrase|credential|auth|cookie"
_NAME = re.compile(rf"(?:.*[^a-zA-Z])?(?:{_WORDS})s?(?:[^a-zA-Z].*)?", re.IGNORECASE | re.DOTALL)
_ASSIGNED = re.compile(r"""([\w-]+)=('[^']*'|"[^"]*"|[^\s'"]+)""")
_ADDRESS = re.compile(r"(?<=://)[^/\s@]+(?=@)")


def is_secret(name: str) -> bool:
    """Return whether a variable, key or option of that name holds a secret."""
    return _NAME.fullmatch(name) is not None


def redacted(value: Any, name: str = "") -> Any:
    """Return ``value`` with :data:`REDACTED` in the place of secrets.

    Args:
        value: plain data: what it holds is looked through.
        name: of the key that holds it.
    """
    return _walked(value, name, name, [])


def found(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the key, with dots, and the text of each secret in ``value``, which ``name`` holds."""
    secrets: list[tuple[str, str]] = []
    _walked(value, name, "", secrets)
    yield from secrets


def _walked(value: Any, path: str, name: str, secrets: list[tuple[str, str]]) -> Any:
    if isinstance(value, dict):
        # As manifests name variables: {name: WANDB_API_KEY, value: …}
        named = value.get("name") if {"name", "value"} <= value.keys() else None
        return {
            key: _walked(
                child, f"{path}.{key}", str(named if named and key == "value" else key), secrets
            )
            for key, child in value.items()
        }
    if isinstance(value, list | tuple):
        return [_walked(child, path, name, secrets) for child in value]
    if not isinstance(value, str) or not value:
        return value
    if is_secret(name):
        secrets.append((path, value))
        return REDACTED

    def assigned(match: re.Match[str]) -> str:
        if not is_secret(match[1]):
            return match[0]
        secrets.append((path, match[2].strip("'\"")))
        return f"{match[1]}={REDACTED}"

    def address(match: re.Match[str]) -> str:
        secrets.append((path, match[0]))
        return REDACTED

    return _ADDRESS.sub(address, _ASSIGNED.sub(assigned, value))
