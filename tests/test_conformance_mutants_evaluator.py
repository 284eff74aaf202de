"""The suite of an evaluator passes one that keeps its contract, and finds each fault."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from atom.plugin import Evaluator
from atom.registry.host import Component
from atom.registry.installed import Plugin
from atom.testing.suites.evaluator import EvaluatorSuite

TWIN = """
from atom.plugin import Measured

CALLS = []


def tasks(config):
    return ["sums", "words"]


def evaluate(config, context):
    CALLS.append(context.task)
    documents = ["1 plus 1 is 2", "2 plus 2 is 4", "3 plus 3 is 6"][: context.limit]
    pairs = [context.model.pair(text[:-2], text[-2:]) for text in documents]
    found = context.model.loglikelihood(pairs)
    nats = sum(each.logprob for each in found) / len(found)
    yield Measured(metric="nats", value=nats, stderr=None, samples=len(found))
"""

LISTED, SCORED, AGAIN, LIMITED = (
    EvaluatorSuite.test_lists_its_tasks,
    EvaluatorSuite.test_scores_a_model,
    EvaluatorSuite.test_scores_alike_every_time,
    EvaluatorSuite.test_keeps_to_the_limit,
)
CHECKS = (LISTED, SCORED, AGAIN, LIMITED)

MUTANTS: dict[str, tuple[str, str, Callable[..., None], str]] = {
    "no task": ('["sums", "words"]', "[]", LISTED, "it has no tasks"),
    "a task twice": ('"words"', '"sums"', LISTED, "a task is listed twice"),
    "a name that no option can have": ('"words"', '"a,b"', LISTED, "names that --tasks cannot"),
    "tasks in any order": (
        '["sums", "words"]',
        '["sums", "words"][:: 1 - 2 * bool(CALLS.append("") or len(CALLS) % 2)]',
        LISTED,
        "the tasks of two calls differ",
    ),
    "no result": ("    yield Measured", "    if 0: yield Measured", SCORED, "sums has no result"),
    "a value that is none": ("value=nats", "value=nats * float('inf')", SCORED, "is not finite"),
    "a metric twice": (
        "    yield Measured",
        "    yield Measured(metric='nats', value=1.0, samples=1)\n    yield Measured",
        SCORED,
        "has a metric twice",
    ),
    "no documents": ("samples=len(found)", "samples=0", SCORED, "nats is of no documents"),
    "a model that nobody asks": (
        "found = context.model.loglikelihood(pairs)",
        "found = [type('L', (), {'logprob': -1.0})] * len(pairs)",
        SCORED,
        "asks the model nothing",
    ),
    "other requests": ("plus 1 is", "plus {len(CALLS)} is", AGAIN, "other requests in a second"),
    "other results": ("value=nats", "value=nats + len(CALLS)", AGAIN, "other results in a second"),
    "no limit": ("[: context.limit]", "", LIMITED, "a limit of one document changes nothing"),
}


@pytest.fixture
def failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], dict[Callable[..., None], str]]:
    """Return what the suite says of a module, by the check that fails."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def check(name: str, text: str) -> dict[Callable[..., None], str]:
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        plugin = Plugin(name, name, "1", name, name, tmp_path / f"{name}.py")
        declared = Evaluator(
            name="twin", summary="a twin", tasks=f"{name}:tasks", evaluate=f"{name}:evaluate"
        )
        found = {}
        for each in CHECKS:
            try:
                each(EvaluatorSuite(), Component(plugin, declared), None)
            except AssertionError as error:
                found[each] = str(error)
        return found

    return check


def test_the_twin_passes(failures: Callable[..., dict]) -> None:
    assert failures("evaluator_twin", TWIN) == {}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_found(name: str, failures: Callable[..., dict]) -> None:
    old, new, check, says = MUTANTS[name]
    assert old in TWIN
    text = TWIN.replace(old, new)
    if "{len" in new:
        text = text.replace('["1 plus', '[f"1 plus')
    found = failures(f"evaluator_{name.replace(' ', '_')}", text)
    assert says in found.get(check, ""), found
