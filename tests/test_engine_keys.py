"""Every setting of torchtitan's is ATOM's own, the engine's, or left out for a reason."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from torchtitan.trainer import Trainer

from atom.recipe.defaults import ENGINE
from atom.recipe.training_sections import ENGINE_SECTIONS, SECTIONS
from atom.titan import translate

MODES = {mode: config for mode, config in translate.ACTIVATION_CHECKPOINT.items() if config}
ATOMS = {
    "parallelism.name": "the strategy",
    "activation_checkpoint.mode": "which of torchtitan's policies",
}
"""Own keys that are no field of a config of torchtitan's, and what they say."""

OTHER: dict[str, Any] = {
    "training.dtype": "bfloat16",
    "training.mixed_precision_param": "float32",
    "lr_scheduler.decay_type": "cosine",
    "checkpoint.enable": True,
    "checkpoint.initial_load": "run",
    "compile.enable": True,
    "compile.components": ["loss"],
    "debug.deterministic": True,
    "parallelism.pipeline_parallel_schedule": "GPipe",
    "lr_scheduler.decay_ratio": 0.5,
    "lr_scheduler.min_lr_factor": 0.5,
}
"""Key -> a value that is not the default; 3 of the others."""

TRANSLATED = {
    "training": lambda section: translate.training(section, "cuda"),
    "parallelism": translate.parallelism,
    "lr_scheduler": translate.lr_scheduler,
    "checkpoint": translate.checkpoint,
    "compile": translate.compilation,
    "metrics": translate.metrics,
    "debug": translate.debug,
}


def fields() -> dict[str, Any]:
    """Return key -> default of each field of each config that a section of a run has."""
    found: dict[str, Any] = {}
    for section, config in (
        *translate.CONFIGS.items(),
        *(("activation_checkpoint", mode) for mode in MODES.values()),
    ):
        for field in dataclasses.fields(config):
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            found[f"{section}.{field.name}"] = default
    return found


def own() -> set[str]:
    return {f"{name}.{key}" for name, model in SECTIONS.items() for key in model.model_fields}


def test_every_field_is_own_or_the_engines_or_left_out() -> None:
    left_out = {key for key in translate.NOT_IN_A_RUN if "." in key}
    classes = [own() - set(ATOMS), set(ENGINE), left_out]
    assert set.union(*classes) == set(fields())
    assert sum(map(len, classes)) == len(fields()), "a key is of two classes"


def test_every_section_of_torchtitans_is_one_of_a_run_or_made_elsewhere() -> None:
    sections = {*SECTIONS, *ENGINE_SECTIONS}
    elsewhere = {key for key in translate.NOT_IN_A_RUN if "." not in key}
    assert {field.name for field in dataclasses.fields(Trainer.Config)} == sections | elsewhere


def test_defaults_of_the_engines_keys_are_torchtitans() -> None:
    assert {key: fields()[key] for key in ENGINE} == ENGINE


@pytest.mark.parametrize("key", sorted(own() - set(ATOMS)))
def test_an_own_key_is_translated(key: str) -> None:
    """And without it torchtitan's default stands, so that ATOM's own says the same."""
    section, _, name = key.partition(".")
    start = {"name": "mesh"} if section == "parallelism" else {}
    wanted = OTHER.get(key, 3)
    changed = TRANSLATED[section](SECTIONS[section].model_validate(start | {name: wanted}))
    assert getattr(changed, name) == wanted != fields()[key]
    usual = TRANSLATED[section](SECTIONS[section].model_validate(start))
    assert getattr(usual, name) == fields()[key]
