"""The evaluators list their tasks, and score a model on them, always alike."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from atom.testing import conformance

sys.path.append(str(Path(__file__).parent))

import made

pytestmark = pytest.mark.slow

TestOlmes = conformance("evaluator:olmes", unconditional=True).having(
    tasks=made.OLMES, sample=made.requests
)
TestLmEval = conformance("evaluator:lm_eval").having(tasks=made.HARNESS, sample=made.tasks)
