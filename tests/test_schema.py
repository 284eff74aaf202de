"""What ATOM 0.1.0 has written is read, goes on and is exported: tests/fixtures/runs_0.1.0.tar.gz.

It holds two runs of 4 steps (AdamW on one rank, Muon under FSDP), an export of the first, their
text, and the losses of steps 5 and 6 as 0.1.0 computed them.
"""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from atom.data import order
from atom.errors import UserError
from atom.recipe import migrations, run
from atom.run_dir import metrics, resume

ARCHIVE = Path(__file__).parent / "fixtures" / "runs_0.1.0.tar.gz"

SAME = (
    *("architecture=llama3_tiny", "tokenizer=bytes", "device=cpu", "metrics=none"),
    *("architecture.n_layers=1", "architecture.dim=16", "architecture.n_heads=2"),
    *("architecture.n_kv_heads=1", "training.seq_len=32", "training.global_batch_size=4"),
    *("training.steps=6", "checkpoint.interval=4", "dataset=local", "dataset.path=texts"),
)
MUON = (
    *("optimizer.name=Muon", "optimizer.momentum=0.9", "training.max_norm=0.5"),
    *("lr_scheduler.decay_type=cosine", "parallelism=fsdp", "launch.ranks=2"),
)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs and the export."""
    place = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(place, filter="data")
    return place


def test_an_earlier_run_is_read_and_written_in_the_present_schema(
    earlier: Path, tmp_path: Path
) -> None:
    adamw, muon = (run.read(earlier / name / "run.yaml") for name in ("adamw", "muon"))
    usual = {"lr": 3e-4, "betas": [0.9, 0.95], "eps": 1e-8}
    usual |= {"state_dtype": None, "weight_decay": 0.1}
    assert (adamw.optimizer.name, adamw.optimizer.parameters) == ("AdamW", usual)
    assert (muon.optimizer.name, muon.optimizer.parameters) == ("Muon", usual | {"momentum": 0.9})
    assert (muon.training.max_norm, muon.lr_scheduler.decay_type) == (0.5, "cosine")
    assert muon.training.local_batch_size is None
    assert (adamw.data.order, muon.data.order) == (1, 1)
    for one in (adamw, muon):
        one.write(tmp_path / "run.yaml")
        assert run.read(tmp_path / "run.yaml") == one
        assert yaml.safe_load((tmp_path / "run.yaml").read_text())["schema"] == migrations.SCHEMA


def test_every_schema_leads_to_the_present_one() -> None:
    assert set(migrations.MIGRATIONS) == set(range(1, migrations.SCHEMA))


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (migrations.SCHEMA + 1, "was written by a later ATOM; valid: at most 3"),
        *((wrong, "a number from 1 to 3") for wrong in (0, -1, "2", True, None, 1.0, [1])),
    ],
)
def test_a_schema_that_is_not_known(schema: Any, says: str, earlier: Path, tmp_path: Path) -> None:
    sections = yaml.safe_load((earlier / "adamw" / "run.yaml").read_text())
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections | {"schema": schema}))
    with pytest.raises(UserError, match=says) as refused:
        run.read(tmp_path / "run.yaml")
    assert refused.value.key == "schema"


def test_a_resumed_run_keeps_its_order_and_a_new_one_has_the_newest(
    earlier: Path, tmp_path: Path
) -> None:
    begun = run.read(earlier / "adamw" / "run.yaml")
    asked = begun.model_copy(update={"data": begun.data.model_copy(update={"order": None})})
    assert resume.with_order(earlier / "adamw", asked).data.order == 1
    assert resume.with_order(tmp_path, asked).data.order == order.NEWEST
    other = begun.model_copy(update={"data": begun.data.model_copy(update={"order": 2})})
    with pytest.raises(UserError, match=r"data\.order=1") as refused:
        resume.check(earlier / "adamw", other)
    assert refused.value.key == "data.order"


EDITS = {
    # what somebody has written into a run.yaml of 0.1.0: what is said of it
    "an unknown key of the schedule": (
        lambda text: text.replace("  warmup_steps: ", "  warmup: 1\n  warmup_steps: "),
        "lr_scheduler.warmup=1: warmup is no key here",
    ),
    "a section twice": (
        lambda text: f"{text}training: {{steps: 7}}\n",
        "the key training is there twice",
    ),
    "a number to base 8": (
        lambda text: text.replace("  steps: 4\n", "  steps: 010\n"),
        "YAML reads 010 as 8",
    ),
    "a callback that is none": (
        lambda text: re.sub(r"  callbacks:(\n  - .*)*", "  callbacks: 5", text),
        "resolved.callbacks=5: must be a list",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_run_is_read_as_it_was_written(
    edit: str, forked: Callable, earlier: Path, tmp_path: Path
) -> None:
    edited, says = EDITS[edit]
    shutil.copytree(earlier / "adamw", tmp_path / "adamw")
    text = (tmp_path / "adamw" / "run.yaml").read_text()
    assert edited(text) != text
    (tmp_path / "adamw" / "run.yaml").write_text(edited(text))
    result = forked("report", "adamw", cwd=tmp_path)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
    assert says in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), [("adamw", ()), ("muon", MUON)])
def test_an_earlier_run_goes_on(
    name: str, settings: tuple[str, ...], atom: Callable, earlier: Path
) -> None:
    done = atom("train", *SAME, *settings, f"run.dir={name}", cwd=earlier)
    assert done.returncode == 0, done.stderr
    assert "resumed after step 4" in done.stdout
    assert run.read(earlier / name / "run.yaml").data.order == 1
    losses = [row.loss for row in metrics.read(earlier / name / metrics.FILE_NAME)][4:]
    # Sums of floating-point numbers differ from CPU to CPU.
    expected = json.loads((earlier / "expected.json").read_text())[name]
    assert losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_an_earlier_checkpoint_is_exported_and_an_earlier_export_continued(
    atom: Callable, earlier: Path
) -> None:
    done = atom("export", "adamw", "--to", "hf", "--step", "4", "--out", "again", cwd=earlier)
    assert done.returncode == 0, done.stderr
    before, after = (load_file(earlier / n / "model.safetensors") for n in ("exported", "again"))
    assert before.keys() == after.keys()
    assert all((before[key] == after[key]).all() for key in before)
    done = atom("generate", "exported", "Line 1", "--tokens", "4", "--device", "cpu", cwd=earlier)
    assert done.returncode == 0, done.stderr
