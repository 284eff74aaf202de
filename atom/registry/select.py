"""Resolve the names in a run to components of plugins, with their parameters validated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from atom.plugin import Callback, CallbackContext, Dataset, Declaration, Objective
from atom.recipe.run import Run
from atom.registry.host import Host
from atom.registry.opening import Chosen, Opener

K = TypeVar("K", bound=Declaration)


@dataclass(frozen=True)
class Selection:
    """The components that ranks load, by key. Kernels are chosen by operation later.

    ``selection[Dataset]`` is the run's dataset; for a kind with many components in a run, ``many``
    returns them by the names that the user gave.
    """

    chosen: Mapping[str, Chosen[Any]]
    opener: Opener

    def __getitem__(self, kind: type[K]) -> Chosen[K]:
        return self.chosen[kind.section]

    def optional(self, kind: type[K]) -> Chosen[K] | None:
        """Return the component of a kind that a run need not have, or None."""
        return self.chosen.get(kind.section)

    def many(self, kind: type[K]) -> dict[str, Chosen[K]]:
        """Return the components of a kind by name, in the order of the run."""
        above = f"{kind.section}."
        return {
            key.removeprefix(above): chosen
            for key, chosen in self.chosen.items()
            if key.startswith(above)
        }

    def validation(self) -> dict[str, Chosen[Dataset]]:
        """Return the datasets of the validation sets by name."""
        above = "validation.sets."
        return {
            key.removeprefix(above): chosen
            for key, chosen in self.chosen.items()
            if key.startswith(above)
        }

    def averages(self) -> list[str]:
        """Return the names of the callbacks that average the weights."""
        return [name for name, each in self.many(Callback).items() if each.declaration.averages]

    def every(self) -> Iterator[Chosen[Any]]:
        """Yield each component, followed by those that its parameters name."""
        for chosen in self.chosen.values():
            yield from chosen.every()


def written_out(run: Run, selection: Selection) -> Run:
    """Return ``run`` with the defaults of parameters that ``run.yaml`` records."""
    sections: dict[str, Any] = {}
    for key, chosen in selection.chosen.items():
        if chosen.declaration.written_out and chosen.config is not None:
            section = getattr(run, key)
            parameters = chosen.config.model_dump(mode="json")
            sections[key] = type(section).model_validate(dict(section) | parameters)
    return run.model_copy(update=sections)


def check_callbacks(run: Run, selection: Selection) -> None:
    """Let callbacks refuse parameters that do not fit the run, without torch.

    Raises:
        UserError: one does.
    """
    for name, chosen in selection.many(Callback).items():
        if chosen.declaration.check is not None:
            steps = run.training.steps
            context = CallbackContext(name=name, seed=run.debug.seed or 0, steps=steps)
            chosen.call("check", context)


def select(run: Run, host: Host, *, training: bool = True) -> Selection:
    """Find the components that ``run`` names; without ``training``, those of its model and data.

    Raises:
        UserError: a name is unknown or ambiguous, its plugin is broken, or a parameter is invalid.
    """
    opener = Opener(host, run.given, run.data.order)
    chosen = {
        key: opener.of_section(kind, section, key)
        for kind, key, section in run.components()
        if kind.in_ranks and (training or not kind.trains)
    }
    selection = Selection(chosen, opener)
    objective = selection.optional(Objective)
    opener.records = objective is not None and objective.declaration.reads == "records"
    return selection
