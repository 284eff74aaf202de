"""What manifests have in common: names that every system takes, and YAML for any parser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from atom_launchers import manifest

LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="/\0"), min_size=1))
@example("İstanbul")
@example("---")
@example("a" * 200)
def test_a_name_is_a_label_with_room_for_what_is_added(folder: str) -> None:
    """JobSet adds ``-node-0-12345-abcde`` to it, and 63 characters are the most."""
    found = manifest.name(Path("/runs") / folder)
    assert LABEL.fullmatch(found)
    assert "--" not in found, "SkyPilot takes no three in a row"
    assert len(f"{found}-node-0-12345-abcde") <= 63
    assert found != manifest.name(Path("/runs") / f"{folder}x")


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.booleans() | st.lists(st.text())))
@example({"a": "x\u2028y\nz\r\n"})
@example({"\n\x85": "\n\x85"})
@example({"a": " x\n  y\n\n", "b": "x \ny"})
def test_yaml_holds_any_text(document: dict) -> None:
    text = manifest.dump("comment", document, {"a": [document]})
    assert list(yaml.safe_load_all(text)) == [document, {"a": [document]}]


@pytest.mark.parametrize(
    "text",
    [
        *("1e3", "0o17", "0x1F", "1_000", "12:30:00", "2026-11-26", ".5", "+1", ".inf"),
        *("on", "NO", "y", "true", "Null", "~", "", "=", "<<", "- a", "a: b", "#x"),
    ],
)
def test_what_a_parser_may_take_for_something_else_is_quoted(text: str) -> None:
    """Kubernetes reads YAML with a parser of Go's, which knows more numbers than PyYAML."""
    scalars = [
        event for event in yaml.parse(manifest.dump("", {"key": text})) if hasattr(event, "value")
    ]
    assert [(scalar.value, scalar.style) for scalar in scalars] == [("key", None), (text, '"')]


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("30", 1800),
        ("30:15", 1815),
        ("2:30:15", 9015),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("7-00:00:01", 604801),
    ],
)
def test_limits_are_slurms(limit: str, seconds: int) -> None:
    assert manifest.seconds(limit) == seconds


def test_only_whole_folders_are_held() -> None:
    assert manifest.holds("/shared/", Path("/shared/runs/first"))
    assert manifest.holds("/shared", Path("/shared"))
    assert not manifest.holds("/shared", Path("/shared-too/first"))
