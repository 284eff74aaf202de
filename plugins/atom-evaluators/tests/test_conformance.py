"""The evaluators list their tasks, and score a model on them, always alike."""

from __future__ import annotations

from atom.testing import conformance

OLMES = ("arc_easy_rc_0shot", "lambada_bpb_0shot")

TestOlmes = conformance("evaluator:olmes", unconditional=True).having(tasks=OLMES)
