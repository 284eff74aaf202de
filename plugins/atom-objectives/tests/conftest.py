"""Fixtures of the tests of this package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of a few hundred tokens, with the special tokens of the templates."""
    import chats

    folder = tmp_path_factory.mktemp("tokenizer")
    chats.made(folder)
    return folder
