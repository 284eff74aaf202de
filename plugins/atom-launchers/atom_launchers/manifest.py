"""Share the parts of manifests: names, volumes, durations, and YAML."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from atom.errors import UserError
from atom.plugin import LaunchContext

_PLAIN = re.compile(r"[A-Za-z/~][\w./@+-]*", re.ASCII)
_WORDS = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null", "~"))
_LONGEST_WORDS = 24
_OTHER_BREAKS = re.compile("[\r\x85\u2028\u2029]")
r"""Line breaks in YAML that a block scalar would convert to \\n."""


def name(folder: Path) -> str:
    """Return a unique name of a run folder for systems with strict rules.

    It is a DNS label (RFC 1035) of at most 38 characters.
    """
    words = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")[:_LONGEST_WORDS].strip("-")
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    return "-".join(word for word in ("atom", words, digest) if word)


def mounts(context: LaunchContext) -> list[tuple[str, str]]:
    """Return source and target of each of ``launcher.mounts``.

    Raises:
        UserError: one lacks the source or the target.
    """
    found = []
    for mount in context.resources.mounts:
        source, _, target = mount.rpartition(":")
        if not source or not target.startswith("/"):
            raise UserError(
                "is not a volume and its target",
                valid="SOURCE:/TARGET",
                key="launcher.mounts",
                value=mount,
            )
        found.append((source, target))
    return found


def holds(target: str, folder: Path) -> bool:
    """Return whether ``folder`` is in the volume mounted at ``target``."""
    return PurePosixPath(folder).is_relative_to(target)


def exports(context: LaunchContext) -> list[str]:
    """Return lines of bash that export the ranks' variables; those without a value must be set."""
    given = context.resources.environment.items()
    passed = context.resources.pass_environment
    return [
        *(f"export {key}={shlex.quote(value)}" for key, value in given),
        *(f"export {name}=${{{name}:?launcher.pass_environment names it}}" for name in passed),
    ]


def refuse(context: LaunchContext, system: str, *keys: str) -> None:
    """Refuse shared resources that a system does not support.

    Raises:
        UserError: one of ``keys`` is set.
    """
    for key in keys:
        if (value := getattr(context.resources, key)) is not None:
            raise UserError(
                f"{system} does not support it", valid="null", key=f"launcher.{key}", value=value
            )


def seconds(limit: str) -> int:
    """Return ``launcher.time``: MINUTES, MINUTES:SECONDS, HOURS:MM:SS, DAYS-HH, … in seconds."""
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, rest_seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, rest_seconds = parts
    else:
        hours, minutes, rest_seconds = 0, *[*parts, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest_seconds


def added(own: dict[str, Any], further: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return ``own`` with the user's ``further`` fields; lists and mappings in both are merged.

    Raises:
        UserError: a field is reserved for ATOM.
    """
    result = dict(own)
    for field, value in further.items():
        present = own.get(field)
        if isinstance(present, list) and isinstance(value, list):
            result[field] = [*present, *value]
        elif isinstance(present, dict) and isinstance(value, dict):
            result[field] = added(present, value, f"{key}.{field}")
        elif field in own:
            raise UserError("is set by ATOM", valid="other fields", key=f"{key}.{field}")
        else:
            result[field] = value
    return result


def dump(comment: str, *documents: dict[str, Any]) -> str:
    """Return documents as YAML with the same meaning in YAML 1.1 and 1.2."""
    text = yaml.dump_all(
        documents,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=float("inf"),
    )
    return f"# {comment}\n{text}"


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes text such as ``1e3``, a number to other parsers but not to PyYAML."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = None if _PLAIN.fullmatch(text) and text.lower() not in _WORDS else '"'
    if "\n" in text and not _OTHER_BREAKS.search(text):
        style = "|"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
