"""Run code of a plugin in a fresh Python process that has imported nothing yet."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from atom.plugin import HOOKS

HEAVY = (
    "torch",
    "torchtitan",
    "torchdata",
    "torchvision",
    "triton",
    "transformers",
    "datasets",
    "tokenizers",
    "sentencepiece",
    "tiktoken",
    "tensorflow",
    "jax",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "sklearn",
    "matplotlib",
    "hydra",
)
"""Packages that take a tenth of a second or more to import, or start threads."""

_DECLARING = """
import importlib, sys, time, traceback
import atom.plugin

places = {}

class Watch:
    def find_spec(name, path=None, target=None):
        if name in heavy and name not in places:
            frames = [f for f in traceback.extract_stack() if not f.filename.startswith("<")]
            places[name] = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"

module, hooks, heavy = argument
loaded = set(sys.modules)
sys.meta_path.insert(0, Watch)
began = time.process_time()
declaring = importlib.import_module(module)
for hook in hooks:
    if hasattr(declaring, hook):
        list(getattr(declaring, hook)())
seconds = time.process_time() - began
imported = set(sys.modules) - loaded
answer([{name: place for name, place in places.items() if name in imported}, seconds])
"""


@functools.cache
def declaring(module: str) -> tuple[dict[str, str], float]:
    """Import a plugin's module and call its hooks, once for all components of the module.

    Returns:
        The heavy packages that it imports, each with the importing file and line, and CPU seconds.
    """
    places, seconds = run(_DECLARING, [module, list(HOOKS), HEAVY])
    return places, seconds


def run(script: str, argument: Any, **environment: str) -> Any:
    """Run ``script`` and return the value that it passes to ``answer``: see :func:`start`."""
    return result(start(script, argument, **environment))


def start(script: str, argument: Any, **environment: str) -> subprocess.Popen[str]:
    """Start a process that runs ``script``.

    It has the same import path as this process. The script can use ``argument``, passed as JSON,
    and a function ``answer(value)`` that sends a value to :func:`result`.
    """
    preamble = """
import json, os, sys
_out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what the plugin prints is no answer
_path, argument = json.load(sys.stdin)
sys.path[:] = _path

def answer(value):
    json.dump(value, _out)
    _out.flush()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", preamble + script],
        env=_without_ranks(os.environ) | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps([[os.path.abspath(p) for p in sys.path], argument]))  # noqa: PTH100
    process.stdin.close()
    process.stdin = None
    return process


def result(process: subprocess.Popen[str], *, timeout: float = 300) -> Any:
    """Wait for a process of :func:`start`; the test fails with its last output if the process
    failed.
    """
    try:
        out, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        pytest.fail(f"a process of its own gave no answer in {timeout:.0f} s", pytrace=False)
    if process.returncode != 0:
        pytest.fail(f"in a process of its own:\n{errors.strip()[-3000:]}", pytrace=False)
    return json.loads(out)


def _without_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "PYTHONHASHSEED")
    return {name: value for name, value in environment.items() if name not in names}
