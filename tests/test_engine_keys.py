"""Every setting of torchtitan's is ATOM's own, the engine's, or left out for a reason."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from torchtitan.trainer import Trainer

from atom.recipe.defaults import ENGINE
from atom.recipe.training_sections import ENGINE_SECTIONS, RECOMPUTATION, SECTIONS
from atom.titan import translate

ATOM = Path(translate.__file__).parents[1]
MODES = {mode: config for mode, config in translate.ACTIVATION_CHECKPOINT.items() if config}
ATOMS = {
    "parallelism.name": "the strategy",
    "training.stop_after": "of the loop",
    "training.batch_schedule": "of the data loader",
    "activation_checkpoint.mode": "which of torchtitan's policies",
    "metrics.show": "what the launcher's screen shows",
    "lr_scheduler.stages": "the phases of a schedule",
}
"""Own keys that are no field of a config of torchtitan's, and what they say."""

OTHER: dict[str, Any] = {
    "training.dtype": "bfloat16",
    "training.mixed_precision_param": "float32",
    "lr_scheduler.decay_type": "cosine",
    "checkpoint.enable": True,
    "checkpoint.initial_load": "run",
    "checkpoint.keep_best_of": "web",
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
    """Return key -> default of each field of each config that a section of a run has.

    Renamed fields are under ATOM's keys.
    """
    found: dict[str, Any] = {}
    for section, config in (
        *translate.CONFIGS.items(),
        *(("activation_checkpoint", mode) for mode in MODES.values()),
    ):
        keys = {name: key for key, name in translate.RENAMED.get(section, {}).items()}
        for field in dataclasses.fields(config):
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            found[f"{section}.{keys.get(field.name, field.name)}"] = default
    return found


def own() -> set[str]:
    return {f"{name}.{key}" for name, model in SECTIONS.items() for key in model.model_fields}


def test_every_field_is_own_or_the_engines_or_left_out() -> None:
    left_out = {key for key in translate.NOT_IN_A_RUN if "." in key}
    classes = [own() - set(ATOMS), set(ENGINE), left_out]
    assert set.union(*classes) == set(fields())
    assert sum(map(len, classes)) == len(fields()), "a key is of two classes"


def test_modes_of_recomputation_are_torchtitans() -> None:
    """Composing refuses others, before torch is imported."""
    assert set(RECOMPUTATION) == set(translate.ACTIVATION_CHECKPOINT)


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


@pytest.mark.parametrize("key", sorted(own() - set(ATOMS)))
def test_a_renamed_field_is_one_line_of_one_table(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written, read and changed under ATOM's key."""
    section, _, name = key.partition(".")
    config, new = translate.CONFIGS[section], f"{name}_of_another_release"
    names = {field.name: field for field in dataclasses.fields(config)}
    types = get_type_hints(config)
    another = dataclasses.make_dataclass(
        "Another",
        [(new if n == name else n, types[n], _default(field)) for n, field in names.items()],
        kw_only=True,
    )
    monkeypatch.setitem(translate.RENAMED, section, {name: new})
    monkeypatch.setitem(translate.CONFIGS, section, translate.readable(another, {name: new}))
    start = {"name": "mesh"} if section == "parallelism" else {}
    wanted, usual = OTHER.get(key, 3), fields()[key]
    made = TRANSLATED[section](SECTIONS[section].model_validate(start | {name: wanted}))
    assert getattr(made, name) == getattr(made, new) == wanted
    assert getattr(translate.changed(made, section, **{name: usual}), name) == usual
    assert getattr(translate.config(section, **{name: wanted}), name) == wanted


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory)
    return field.default


def test_only_the_translation_writes_torchtitans_fields() -> None:
    """So that a renamed field is changed there alone."""
    configs = [translate.CONFIGS[section] for section in ("training", "parallelism")]
    names = {field.name for config in configs for field in dataclasses.fields(config)}
    makers = {config.__name__ for config in configs}

    def writes(node: ast.AST) -> bool:
        if isinstance(node, ast.Attribute):
            own = ast.unparse(node.value) == "self"
            return isinstance(node.ctx, ast.Store) and node.attr in names and not own
        if not isinstance(node, ast.Call):
            return False
        called = ast.unparse(node.func).rpartition(".")[2]
        changed = called == "replace" and names & {keyword.arg for keyword in node.keywords}
        return called in makers or bool(changed)

    files = [file for room in ("bench", "testing", "titan") for file in (ATOM / room).rglob("*.py")]
    written = [
        f"{file.relative_to(ATOM)}:{node.lineno}"  # type: ignore[attr-defined]
        for file in files
        if file.name != "translate.py"
        for node in ast.walk(ast.parse(file.read_text()))
        if writes(node)
    ]
    assert len(files) > 100
    assert written == []
