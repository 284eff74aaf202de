"""Every number of a run has a range, torchtitan's as well as ATOM's and its plugins'."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from typing import Any

import annotated_types
import pytest
import torch
from pydantic import BaseModel

from atom.recipe import ranges
from atom.recipe.run import Run
from atom.recipe.training_sections import SECTIONS, Training
from atom.registry.host import Host, resolve
from atom.titan.optim.rates import EndingLRSchedulers
from atom.titan.translate import ACTIVATION_CHECKPOINT, CONFIGS

ENGINE: list[tuple[str, type]] = [
    *CONFIGS.items(),
    *(("activation_checkpoint", mode) for mode in ACTIVATION_CHECKPOINT.values() if mode),
]

NO_BOUND: dict[str, str] = {
    "profile.steps": "a validator of its own reads FIRST-LAST",
}
"""Numbers of ATOM's own without a bound, and why."""


def fields(schema: type, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield key, type and default of a dataclass's fields, and of those of the ones in it."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        annotation = hints[field.name]
        key = f"{prefix}.{field.name}"
        inner = [annotation, *typing.get_args(annotation)]
        for one in inner:
            # A callable for programs: not to be given in a configuration.
            if dataclasses.is_dataclass(one) and field.name != "trace_post_processor":
                assert isinstance(one, type)
                yield from fields(one, key)
        made = field.default_factory
        yield key, annotation, field.default if made is dataclasses.MISSING else made()


@pytest.mark.parametrize(("section", "schema"), ENGINE)
def test_numbers_of_torchtitans_have_a_range(section: str, schema: type) -> None:
    own = SECTIONS[section].model_fields if section in SECTIONS else {}
    for key, annotation, default in fields(schema, section):
        if not ranges.is_numeric(annotation) or key.partition(".")[2] in own:
            assert key not in ranges.ENGINE_RANGES, f"{key} is no number of the engine's"
            continue
        valid = ranges.ENGINE_RANGES[key]
        assert valid.holds(default), f"{key}: torchtitan's own default"
        options = [annotation, *typing.get_args(annotation)]
        assert valid.whole == (float not in options), key
        assert (valid.null is not None) == (type(None) in options), key
        for wrong in (math.nan, math.inf, -math.inf, True, False, -7, "many", [], 10**400):
            assert not valid.holds(wrong), f"{key}={wrong}"


def test_text_that_spells_a_number_is_that_number() -> None:
    found = Training.model_validate({"steps": "8", "seq_len": 64.0, "max_norm": "0.5"})
    assert (found.steps, found.seq_len, found.max_norm) == (8, 64, 0.5)
    assert type(found.steps) is type(found.seq_len) is int
    engine = ranges.check({"training": {"gc_freq": "50", "dtype": "1"}, "debug": None})
    assert engine == {"training": {"gc_freq": 50, "dtype": "1"}, "debug": None}


@pytest.mark.parametrize("section", SECTIONS)
def test_numbers_of_atoms_training_sections_have_a_range(section: str) -> None:
    for name, field in SECTIONS[section].model_fields.items():
        valid = [each for each in field.metadata if isinstance(each, ranges.Range)]
        assert bool(valid) == ranges.is_numeric(field.annotation), name
        for found in valid:
            assert found.holds(field.default), name
            for wrong in (math.nan, math.inf, -math.inf, True, False, -7, "many", [], 10**400):
                assert not found.holds(wrong), f"{section}.{name}={wrong}"


def test_no_range_is_of_a_key_that_is_gone() -> None:
    known = {key for section, schema in ENGINE for key, *_ in fields(schema, section)}
    assert set(ranges.ENGINE_RANGES) <= known


def numbers(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, bool]]:
    """Yield the numeric keys of a pydantic model and of those in it, and whether each is bound."""
    for name, field in model.model_fields.items():
        key = f"{prefix}.{name}".lstrip(".")
        inner = [field.annotation, *typing.get_args(field.annotation)]
        for one in inner:
            if isinstance(one, type) and issubclass(one, BaseModel):
                yield from numbers(one, key)
        if any(map(ranges.is_numeric, inner)):
            yield key, bool(bounds([field.annotation, *field.metadata]))


def bounds(parts: Any) -> list[Any]:
    """Return the bounds in a type, however deep: those of ``PositiveInt | None``, too."""
    kinds = (annotated_types.Gt, annotated_types.Ge, annotated_types.Interval, ranges.Range)
    found = []
    for part in parts:
        found += [part] if isinstance(part, kinds) else []
        found += bounds(typing.get_args(part))
        found += bounds(getattr(part, "metadata", ()))
    return found


def test_numbers_of_atoms_have_a_bound() -> None:
    found = [
        each for each in numbers(Run, "") if not each[0].startswith("resolved.")
    ]  # ATOM writes it
    unbound = {key for key, bound in found if not bound}
    assert unbound == set(NO_BOUND)


def test_numbers_of_shipped_components_have_a_bound() -> None:
    unbound = []
    for component in Host.load().components:
        reference = component.declaration.config
        if reference is not None:
            model = resolve(reference, component)
            unbound += [key for key, bound in numbers(model, component.name) if not bound]
    assert not unbound


def rate(step: int, *, total: int, warmup: int, decay: int, kind: str, least: float) -> float:
    """Return the share of the peak at ``step``, from 1; the decay would be over at total + 1."""
    if step <= warmup:
        return step / warmup
    if step <= total + 1 - decay or decay == 0:
        return 1.0
    done = min((step - (total + 1 - decay)) / decay, 1.0)
    left = {
        "linear": 1 - done,
        "sqrt": 1 - done**0.5,
        "cosine": 0.5 + 0.5 * math.cos(math.pi * done),
    }[kind]
    return least + (1 - least) * left


@pytest.mark.parametrize("kind", ["linear", "sqrt", "cosine"])
@pytest.mark.parametrize("least", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    ("warmup", "ratio", "decay"),
    [(0, None, 12), (3, None, 9), (12, None, 0), (30, None, 0), (3, 0.0, 0), (3, 0.25, 3)],
)
def test_rate_at_every_step(
    kind: str, least: float, warmup: int, ratio: float | None, decay: int
) -> None:
    config = EndingLRSchedulers.Config(
        warmup_steps=warmup, decay_ratio=ratio, decay_type=kind, min_lr_factor=least, total_steps=12
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    built = config.build(optimizers=[optimizer], training_steps=99)
    told, used = [], []
    for _ in range(40):
        told.append(next(iter(built.get_metrics().values())))
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        built.step()
    expected = [
        2.0 * rate(step, total=12, warmup=min(warmup, 12), decay=decay, kind=kind, least=least)
        for step in range(1, 41)
    ]
    assert used == pytest.approx(expected, abs=1e-12)
    assert told == used


@pytest.mark.parametrize(("total", "last"), [(None, 20), (10, 10), (30, 30)])
def test_rate_of_a_run_that_goes_on_with_more_steps(total: int | None, last: int) -> None:
    """The curve is that of the new number of steps, unless ``total_steps`` says how long it is."""
    config = EndingLRSchedulers.Config(warmup_steps=2, min_lr_factor=0.1, total_steps=total)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    built = config.build(optimizers=[optimizer], training_steps=20)
    built.load_state_dict({"last_epoch": 10})
    told = []
    for _ in range(12):
        told.append(next(iter(built.get_metrics().values())))
        optimizer.step()
        built.step()
    shape = {"total": last, "warmup": 2, "decay": last - 2, "kind": "linear", "least": 0.1}
    expected = [2.0 * rate(step, **shape) for step in range(11, 23)]  # type: ignore[arg-type]
    assert told == pytest.approx(expected, abs=1e-12)
