"""What the package says of itself, without torch."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import atom_datasets

pytestmark = pytest.mark.slow

DECLARED = {dataset.name: dataset for dataset in atom_datasets.atom_datasets()}
NAMES = [
    *("stdlib", "stdlib_chat", "stdlib_pairs", "local", "prepared", "tokens", "mixture"),
    "huggingface",
]
CONF = Path(atom_datasets.__file__).parent / "conf" / "dataset"


def pointed_to(reference: str | None) -> object:
    assert reference is not None
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def test_every_dataset_has_a_group_file() -> None:
    assert sorted(DECLARED) == sorted(NAMES)
    files = {path.stem: yaml.safe_load(path.read_text()) for path in CONF.glob("*.yaml")}
    assert set(files) >= set(NAMES)
    assert {parameters["name"] for parameters in files.values()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_group_file_has_every_parameter_with_its_default(name: str) -> None:
    text = (CONF / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    assert all("#" in line for line in text.splitlines() if not line.startswith("name:"))
    parameters = yaml.safe_load(text)
    assert parameters.pop("name") == name
    fields = pointed_to(DECLARED[name].config).model_fields  # type: ignore[attr-defined]
    assert parameters == {
        key: "???" if field.is_required() else field.default for key, field in fields.items()
    }


def test_declaring_and_reading_import_no_torch(tmp_path: Path) -> None:
    script = """
import sys
import atom_datasets
list(atom_datasets.atom_datasets())
heavy = {"torch", "torchtitan", "transformers"}
assert not (heavy | {"datasets", "numpy", "pyarrow"}) & set(sys.modules), "declaring"
from pathlib import Path
from atom_datasets import huggingface, local, stdlib
from atom_datasets.config import Local, Stdlib
text, records = Path("a.txt"), Path("b.jsonl")
text.write_text("text")
records.write_text('{"text": "text"}')
sources = [stdlib.source(Stdlib()), local.source(Local(path=str(text)))]
for source in sources:
    source.check()
    source.documents()[0]
assert not (heavy | {"datasets"}) & set(sys.modules), "text"
local.source(Local(path=str(records))).check()
assert not heavy & set(sys.modules), "tables"
"""
    command = [sys.executable, "-c", script]
    environment = {"HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
