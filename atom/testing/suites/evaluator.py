"""The suite of an evaluator: it lists its tasks, and scores a model on them, always alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from atom.plugin import EvaluatorContext, Measured
from atom.registry.host import Component
from atom.testing import isolated
from atom.testing.opened import described, opened
from atom.testing.options import Options
from atom.testing.partners.scorer import Bigrams
from atom.testing.suites.component import ComponentSuite

LIMIT = 3

_TASKS = """
import sys
from atom.testing.opened import again

names = list(again(*argument).call("tasks"))
answer([names, "torch" in sys.modules])
"""


class EvaluatorSuite(Options, ComponentSuite):
    """The contract of an evaluator. The model of the kit is a fixed distribution of bytes.

    Options, given by ``conformance(…).having(…)``:

    Attributes:
        tasks: the tasks to score it on; by default the first one.
    """

    kind = "evaluator"
    options = ("tasks", "sample")
    tasks: ClassVar[Sequence[str] | None] = None

    def test_lists_its_tasks(self, component: Component, config: BaseModel | None) -> None:
        """``tasks`` returns names, the same every time; a name has no comma, colon or space."""
        first, second = (list(opened(component, config).call("tasks")) for _ in range(2))
        assert first, "it has no tasks"
        assert first == second, "the tasks of two calls differ"
        assert len(set(first)) == len(first), "a task is listed twice"
        odd = [name for name in first if not name or any(c in ",:" or c.isspace() for c in name)]
        assert not odd, "names that --tasks cannot have"

    @pytest.mark.slow
    def test_lists_its_tasks_without_torch(
        self, component: Component, config: BaseModel | None
    ) -> None:
        """``atom eval`` refuses an unknown task before torch is imported."""
        names, torch = isolated.run(_TASKS, described(component, config))
        assert names
        assert not torch, "listing the tasks imports torch"

    def test_scores_a_model(self, component: Component, config: BaseModel | None) -> None:
        """``evaluate`` yields :class:`atom.plugin.Measured`: finite, each metric once."""
        for task in self._chosen(component, config):
            found, model = self._measured(component, config, task)
            assert found, f"{task} has no result"
            assert all(isinstance(each, Measured) for each in found), "results of another type"
            names = [(each.task, each.metric) for each in found]
            assert len(set(names)) == len(names), f"{task} has a metric twice"
            for each in found:
                assert math.isfinite(each.value), f"{task}: {each.metric} is not finite"
                assert each.samples > 0, f"{task}: {each.metric} is of no documents"
                assert each.stderr is None or each.stderr >= 0 or math.isnan(each.stderr)
            assert model.requests, f"{task} asks the model nothing"

    def test_scores_alike_every_time(self, component: Component, config: BaseModel | None) -> None:
        """A second evaluation makes the same requests, and has the same results."""
        for task in self._chosen(component, config):
            (first, asked), (second, again) = (
                self._measured(component, config, task) for _ in range(2)
            )
            assert asked.requests == again.requests, f"{task}: other requests in a second call"
            assert first == second, f"{task}: other results in a second call"

    def test_keeps_to_the_limit(self, component: Component, config: BaseModel | None) -> None:
        """With a limit of one document, a task of several makes fewer requests."""
        for task in self._chosen(component, config):
            _, one = self._measured(component, config, task, limit=1)
            found, several = self._measured(component, config, task)
            if any(each.samples > 1 for each in found):
                fewer = len(one.requests) < len(several.requests)
                assert fewer, f"{task}: a limit of one document changes nothing"

    def _chosen(self, component: Component, config: BaseModel | None) -> list[str]:
        offered = opened(component, config).call("tasks")
        return list(self.tasks) if self.tasks is not None else sorted(offered)[:1]

    def _measured(
        self, component: Component, config: BaseModel | None, task: str, *, limit: int = LIMIT
    ) -> tuple[list[Any], Bigrams]:
        model = Bigrams()
        context = EvaluatorContext(model=model, task=task, limit=limit, seed=0)
        return list(opened(component, config).call("evaluate", context)), model


CONFORMANCE = EvaluatorSuite
