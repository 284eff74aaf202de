"""Nothing of the engine is left out in silence: docs/engine.md lists every part of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torchtitan
from torchtitan.trainer import Trainer

from atom.titan import engine_parts, translate

ROOT = Path(torchtitan.__file__).parent
HERE = Path(__file__).parents[1]


def test_every_module_is_listed() -> None:
    """Once: by itself, or by a package that it is in. What is listed exists, with its test."""
    found = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if path.name != "__init__.py" and not path.is_relative_to(ROOT / "experiments")
    }
    listed = [part.name for part in engine_parts.PARTS]
    for module in sorted(found):
        covering = [name for name in listed if module == name or module.startswith(f"{name}/")]
        assert len(covering) == 1, f"{module} is listed {len(covering)} times"
    for part in engine_parts.PARTS:
        assert (ROOT / part.name).exists(), f"torchtitan has no {part.name}"
        assert (HERE / part.test).is_file(), f"{part.name}: there is no {part.test}"


def test_every_experiment_is_known() -> None:
    experiments = {path.name for path in (ROOT / "experiments").iterdir() if path.is_dir()}
    known = {"forge", "graph_trainer", "rl", "torchft", "transformers_modeling_backend"}
    assert experiments - {"__pycache__"} == known


def test_every_field_has_a_key_or_a_reason() -> None:
    told = {part.name: part.key for part in engine_parts.configs()}
    for field in dataclasses.fields(Trainer.Config):
        sections = set(translate.CONFIGS) | {"activation_checkpoint"}
        assert field.name in sections | set(translate.NOT_IN_A_RUN), field.name
        assert told[f"Trainer.Config.{field.name}"]
    for section, config in translate.CONFIGS.items():
        for field in dataclasses.fields(config):
            assert f"`{section}.{field.name}`" in told[f"config of {section}"]
