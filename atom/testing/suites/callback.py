"""The suite of a callback: an observer changes nothing, and every layout measures the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from atom.plugin import CallbackContext, TrainerCallback
from atom.registry.host import Component
from atom.run_dir.metrics import StepMetrics
from atom.testing import partners, ranks, runs
from atom.testing.applicable import where
from atom.testing.opened import opened
from atom.testing.options import Options
from atom.testing.suites.component import ComponentSuite

STEPS = 4
NAME = "tested"
LAYOUTS = ("fsdp", "tp", "pp")
MOVED = 0.01
"""Share of a histogram that may be in other bins than on one rank, where sums are rounded."""


class CallbackSuite(Options, ComponentSuite):
    """The contract of a callback. Set intervals to 1: the kit's runs have four steps.

    Options, given by ``conformance(…).having(…)``:

    Attributes:
        unsupported: layout (``fsdp``, ``tp``, ``pp``) -> why values differ there, or why the
            callback refuses it. The test of that layout is skipped with the reason.
        tolerance: largest relative difference of a value between two layouts.
        architecture: the section of a run that it is tested on; by default a small dense decoder.
    """

    kind = "callback"
    options = ("unsupported", "tolerance", "architecture")
    unsupported: ClassVar[Mapping[str, str]] = {}
    tolerance: ClassVar[float] = 1e-3
    architecture: ClassVar[Mapping[str, Any]] = {
        "name": f"{partners.PACKAGE}:{partners.ARCHITECTURES[0]}"
    }

    def test_opens(self, component: Component, config: BaseModel | None) -> None:
        """Each call of ``callback`` returns a new ``TrainerCallback``."""
        context = CallbackContext(name=NAME, seed=0, steps=STEPS)
        first, second = (opened(component, config).call("callback", context) for _ in range(2))
        assert isinstance(first, TrainerCallback), "callback returns no TrainerCallback"
        assert first is not second, "two runs of one process would share a callback"

    @where(lambda _, component: component.declaration.observes)
    @pytest.mark.slow
    def test_changes_no_loss(self) -> None:
        """Losses, gradient norms and random states of a run with an observer have the bits of one
        without it."""
        alone = runs.sections(dict(self.architecture), steps=STEPS)
        without = runs.train(alone)
        assert _training(self._rows()) == _training(without), (
            "the callback changes the training; valid: observes=False"
        )
        assert _random_state(self._run()) == _random_state(alone), (
            "the callback draws random numbers of torch's default generator; valid: a generator of "
            "its own, or observes=False"
        )

    @pytest.mark.slow
    def test_resumes_as_if_uninterrupted(self) -> None:
        """A resumed run has the losses, values and validation results of one that was never
        interrupted: averaged weights are as they were."""
        rows = runs.train(self._run(), after=self._run(steps=STEPS // 2))
        assert _training(rows) == _training(self._rows())
        assert _values(rows) == _values(self._rows()), "state that the checkpoint does not have"
        assert _histograms(rows) == _histograms(self._rows())
        # The other run has validated its own last step, too.
        found = {row.step: row.validation for row in rows}
        for row in self._rows():
            if row.validation is not None:
                assert found[row.step] == row.validation, "the checkpoint has other averages"

    @pytest.mark.slow
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_values_agree_over_layouts(self, layout: str) -> None:
        """Every layout logs the values of one rank: they are sums over all ranks."""
        if layout in self.unsupported:
            pytest.skip(self.unsupported[layout])
        rows = runs.train(self._run(runs.LAYOUTS[layout]))
        runs.assert_same(rows, self._rows())
        for row, expected in zip(_values(rows), _values(self._rows()), strict=True):
            assert row.keys() == expected.keys(), "other values than on one rank"
            assert row == pytest.approx(expected, rel=self.tolerance, abs=1e-6, nan_ok=True), (
                "other values than on one rank"
            )
        for counts, on_one in zip(_histograms(rows), _histograms(self._rows()), strict=True):
            assert counts.keys() == on_one.keys(), "other histograms than on one rank"
            for name in counts:
                moved = sum(abs(a - b) for a, b in zip(counts[name], on_one[name], strict=True)) / 2
                assert moved <= MOVED * sum(on_one[name]), f"{name}: another histogram"

    def _rows(self) -> list[StepMetrics]:
        return runs.train(self._run())

    def _run(self, parallelism: dict[str, Any] | None = None, *, steps: int = STEPS) -> Any:
        callbacks = {NAME: {"name": self.name} | self.parameters}
        return runs.sections(dict(self.architecture), parallelism, steps=steps, callbacks=callbacks)


def _random_state(run: runs.Sections) -> list[int]:
    """Return the state of torch's generator after the last step, from the checkpoint of a run."""
    import torch

    from atom.run_dir import checkpoint
    from atom.titan.checkpoint.dcp import SafePlanner, SafeReader, load_alone

    name = "random.rank_0.cpu"
    reader = SafeReader(
        checkpoint.step_folder(ranks.shared().place(run) / checkpoint.FOLDER, STEPS)
    )
    saved: Any = reader.read_metadata().state_dict_metadata[name]
    state = {name: torch.empty(saved.size, dtype=torch.uint8)}
    load_alone(state, reader, SafePlanner())
    numbers: list[int] = state[name].tolist()
    return numbers


def _training(rows: Sequence[StepMetrics]) -> list[tuple[int, float, float]]:
    return [(row.step, row.loss, row.grad_norm) for row in rows]


def _values(rows: Sequence[StepMetrics]) -> list[dict[str, float]]:
    return [(row.callbacks or {}).get(NAME, {}) for row in rows]


def _histograms(rows: Sequence[StepMetrics]) -> list[Mapping[str, Sequence[float]]]:
    found = [(row.histograms or {}).get(NAME) for row in rows]
    return [{} if each is None else each.counts for each in found]


CONFORMANCE = CallbackSuite
