"""Keep what ``datasets`` caches out of the user's own cache."""

from __future__ import annotations

import sys
from pathlib import Path

import datasets
import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder
