"""The audit hook sees what the other tests here say has not happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DEEDS = {
    "a process": ("import os; os.system('true')", "os.system"),
    "another process": ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
    "a connection": (
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))",
        "socket.connect",
    ),
    "a private file": ("open('{tmp}/secret.txt').read()", "secret.txt"),
    "a new file": ("open('{tmp}/new', 'w')", "/new"),
    "a new folder": ("import os; os.mkdir('{tmp}/new')", "/new"),
    "nothing but code": ("pass", "evil/__init__.py"),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_what_is_seen(deed: str, install: Callable, watched: Any, tmp_path: Path) -> None:
    code, seen = DEEDS[deed]
    (tmp_path / "secret.txt").touch()
    site = install("evil", {"__init__.py": code.replace("{tmp}", str(tmp_path))})
    if deed != "nothing but code":
        watched.installed.append(site)
    with pytest.raises(AssertionError) as wrong:
        watched("plugins", cwd=tmp_path, PYTHONPATH=str(site), PYTHONDONTWRITEBYTECODE="1")
    assert seen in str(wrong.value)
