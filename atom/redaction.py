"""Keep secrets out of files and output; they still reach the job that needs them.

In a launcher's settings a secret is recognized by its name: ``WANDB_API_KEY``, ``--token=…``, a
password in a URL. In the other sections, with names such as ``pad_token``, a secret is recognized
by its form. Ranks read those sections from run.yaml, so a secret there is refused, not redacted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

REDACTED = "(redacted)"

_WORDS = "api_?key|key|token|secret|password|passwd|passphrase|credential|auth|cookie"
_NAME = re.compile(rf"(?:.*[^a-zA-Z])?(?:{_WORDS})s?(?:[^a-zA-Z].*)?", re.IGNORECASE | re.DOTALL)
_ASSIGNED = re.compile(r"""([\w-]+)=('[^']*'|"[^"]*"|[^\s'"]+)""")
_ADDRESS = re.compile(r"(?<=://)[^/\s@]+(?=@)")


_LAST = re.compile(
    r"(.*_)?(api_?key|access_?key|secret|passw(or)?d|passphrase|credentials?"
    r"|(access|api|auth|bearer|hub)_?token)",
    re.IGNORECASE,
)
"""Suffixes of keys that hold secrets, in any section."""


class _Form(NamedTuple):
    what: str
    instead: str
    pattern: re.Pattern[str]


_ELSEWHERE = "the place where its client looks for it, such as an environment variable"
_FORMS = (
    _Form(
        "a token of Hugging Face",
        "HF_TOKEN in the environment, or `hf auth login`",
        re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    ),
    _Form(
        "a key of AWS",
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment",
        re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    ),
    _Form(
        "a token",
        _ELSEWHERE,
        re.compile(
            r"\b(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}"
            r"|sk-[A-Za-z0-9_-]{24,}|xox[abprs]-[\w-]{10,})"
        ),
    ),
    _Form(
        "a password in an address",
        f"the address without it, and {_ELSEWHERE}",
        re.compile(r"(?<=://)([^/\s@:]*:[^/\s@]+|[^/\s@:]{16,})(?=@)"),
    ),
    _Form(
        "a secret in an address",
        f"the address without it, and {_ELSEWHERE}",
        re.compile(
            r"(?<=[?&])(?:[\w.-]*(?:token|secret|passw(?:or)?d|api_?key|signature|credential)"
            r"|key|auth|sig)=[^&#\s]+",
            re.IGNORECASE,
        ),
    ),
)


def concealed(text: str) -> str:
    """Return ``text`` with everything in the form of a secret replaced by :data:`REDACTED`."""
    for form in _FORMS:
        text = form.pattern.sub(REDACTED, text)
    return text


class Exposed(NamedTuple):
    """A secret in a section that is written to disk.

    It holds the key, the kind of secret, the valid alternative, and the value without the secret.
    """

    key: str
    what: str
    instead: str
    shown: str


def exposed(value: Any, key: str) -> Iterator[Exposed]:
    """Yield the secrets in ``value``, the value of ``key``."""
    if isinstance(value, dict):
        for name, child in value.items():
            yield from exposed(child, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for child in value:
            yield from exposed(child, key)
    elif isinstance(value, str) and value:
        for form in _FORMS:
            if form.pattern.search(value):
                yield Exposed(key, form.what, form.instead, concealed(value))
        if _LAST.fullmatch(key.rpartition(".")[2]) and value != REDACTED:
            yield Exposed(key, "a secret", _ELSEWHERE, REDACTED)


def without_secrets(sections: dict[str, Any], launcher: Any) -> dict[str, Any]:
    """Return the sections of a run, and Hydra's, safe to show.

    Args:
        sections: sections by name.
        launcher: the run's launcher; its secrets appear in Hydra's section as typed.
    """
    secrets = sorted({secret for _, secret in found(launcher, "launcher")}, key=len, reverse=True)
    return {
        name: redacted(section, name) if name == "launcher" else _concealed(section, secrets)
        for name, section in sections.items()
    }


def _concealed(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _concealed(child, secrets) for key, child in value.items()}
    if isinstance(value, list):
        return [_concealed(child, secrets) for child in value]
    if not isinstance(value, str):
        return value
    for secret in secrets:
        value = value.replace(secret, REDACTED)
    return concealed(value)


def is_secret(name: str) -> bool:
    """Return whether a variable, key or option named ``name`` holds a secret."""
    return _NAME.fullmatch(name) is not None


def redacted(value: Any, name: str = "") -> Any:
    """Return ``value`` with its secrets replaced by :data:`REDACTED`.

    Args:
        value: plain data, searched recursively.
        name: the key of the value.
    """
    return _walked(value, name, name, [])


def found(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted key and the text of each secret in ``value``, the value of ``name``."""
    secrets: list[tuple[str, str]] = []
    _walked(value, name, "", secrets)
    yield from secrets


def _walked(value: Any, path: str, name: str, secrets: list[tuple[str, str]]) -> Any:
    if isinstance(value, dict):
        # Manifests name variables like this: {name: WANDB_API_KEY, value: …}
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
