"""The stages of a mixture by their steps, and the effect of changes on a run that resumes."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from typing import Any

from atom.errors import UserError
from atom.plugin import Stage, Trained
from atom_datasets.labels import LABELS
from atom_datasets.mixing.config import FIRST, MixtureConfig, same_begin

_OWN = ("weight", "tokens")


def stages(config: MixtureConfig, tokens_per_step: int) -> list[Stage]:
    """Return the stages by their first steps."""
    own = {name: source.share for name, source in config.sources.items()}
    found = [Stage(name=FIRST, step=0, weights=_exact(own))]
    later = ((stage.step(tokens_per_step), name) for name, stage in config.stages.items())
    for step, name in sorted(later):
        weights = _exact(config.stages[name].weights)
        found.append(Stage(name=name, step=step, weights=weights))
    return found


def fitting(config: MixtureConfig, tokens_per_step: int, steps: int, begin: int = 0) -> list[Stage]:
    """Return the stages of a run of ``steps``, of which ``begin`` have read other data.

    Raises:
        UserError: a stage begins with another one, or after the run; or the sources' budgets are
            not those of the first stage.
    """
    found = stages(config, tokens_per_step)
    for before, stage in pairwise(found):
        declared = config.stages[stage.name]
        if stage.step == before.step:
            raise same_begin(stage.name, declared, before.name)
        if stage.step >= steps:
            key, value = declared.begin
            last = steps if key == "from_step" else (steps - 1) * tokens_per_step
            raise UserError(
                f"the run ends after step {steps:,}, so that the stage never begins",
                valid=f"at most {last}, or more training.steps",
                key=f"dataset.stages.{stage.name}.{key}",
                value=value,
            )
    _check_budgets(config, found, tokens_per_step, steps, begin)
    return found


def _check_budgets(
    config: MixtureConfig, found: list[Stage], tokens_per_step: int, steps: int, begin: int
) -> None:
    wanted = sum(source.tokens or 0 for source in config.sources.values())
    end = found[1].step if len(found) > 1 else steps
    count = max(end - begin, 0)
    if not wanted or abs(wanted - count * tokens_per_step) < tokens_per_step:
        return
    fit = begin + max(round(wanted / tokens_per_step), 1)
    after = f" after step {begin:,}" if begin else ""
    if len(found) > 1:
        whose = f"the {count:,} steps{after} before stage {found[1].name}"
        valid = f"dataset.stages.{found[1].name}.from_step={fit + 1}"
    else:
        whose, valid = f"the {count:,} steps of the run{after}", f"training.steps={fit}"
    raise UserError(
        f"{whose} have {count * tokens_per_step:,} tokens, and the budgets are {wanted:,} together",
        valid=f"{valid}, or other budgets",
        key="dataset.sources",
    )


def changed(key: str, before: Mapping[str, Any], after: Mapping[str, Any], trained: Trained) -> str:
    """Return the effect of a changed parameter on a run that resumes.

    A change of what has been read is refused: a source, and the weights and begin of the stages
    that have begun. Other changes matter: they begin later.
    """
    old, new = (_past(section, trained) for section in (before, after))
    if key.startswith("sources."):
        _, name, *parameter = key.split(".")
        if len(parameter) == 1 and parameter[0] in LABELS:
            return "harmless"
        if any(weights.get(name) for _, weights in old):
            if parameter == ["max_repetitions"]:
                return "harmless"
            if not (len(parameter) == 1 and parameter[0] in _OWN):
                return "refused"
            return "harmless" if old == new else "refused"
    return "matters" if old == new else "refused"


def _past(section: Mapping[str, Any], trained: Trained) -> list[tuple[int, dict[str, Fraction]]]:
    """Return the stages that have begun: first step and shares."""
    parameters = {name: value for name, value in section.items() if name != "name"}
    config = MixtureConfig.model_validate(parameters)
    begun = (s for s in stages(config, trained.tokens_per_step) if s.step < trained.steps)
    return [(stage.step, _shares(stage.weights)) for stage in begun]


def _shares(weights: Mapping[str, float | Fraction]) -> dict[str, Fraction]:
    total = Fraction(sum(weights.values()))
    return {name: Fraction(weight) / total for name, weight in weights.items() if weight}


def _exact(weights: Mapping[str, float]) -> dict[str, Fraction]:
    """Return the weights as they are written: 0.1 is a tenth."""
    return {name: Fraction(repr(weight)) for name, weight in weights.items()}
