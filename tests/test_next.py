"""``make next``: another release of the engine is compared with the one that ATOM is for."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torchtitan

from atom.testing import next_engine, releases

OLD = """
from dataclasses import dataclass

@dataclass
class Training:
    seq_len: int = 2048
    steps: int = 10
    dtype: str = "float32"
    seed: int | None = None

    @dataclass(kw_only=True)
    class Inner:
        size: int = 1

@dataclass
class Gone:
    size: int = 1

class Plain:
    size: int = 1

def moved(): ...
"""
NEW = """
from dataclasses import dataclass

@dataclass
class Training:
    max_context_length: int = 2048
    steps: int = 20
    dtype: bool = False

    @dataclass(kw_only=True)
    class Inner:
        size: int = 1

class Plain:
    pass
"""


def package(folder: Path, text: str) -> list[str]:
    place = folder / "engine"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("")
    (place / "config.py").write_text(text)
    (place / "other.py").write_text("from engine.config import Training")
    return [str(folder)]


def test_every_kind_of_change_of_a_field_is_told(tmp_path: Path) -> None:
    package(tmp_path / "old", OLD)
    package(tmp_path / "new", NEW)
    old, new = (releases.configs(tmp_path / name / "engine") for name in ("old", "new"))
    told = {
        (change.owner, change.name): change.what for change in releases.changed_fields(old, new)
    }
    training = "engine.config:Training"
    assert told == {
        (training, "seq_len"): "is gone; perhaps max_context_length now",
        (training, "steps"): "defaults to 20; it was 10",
        (training, "dtype"): "is of type bool; it was str",
        (training, "seed"): "is gone",
        (training, "max_context_length"): "is new: int = 2048",
        ("engine.config:Gone", ""): "the dataclass is gone",
    }
    assert list(releases.changed_fields(old, old)) == []


def test_imports_of_what_is_gone_are_told(tmp_path: Path) -> None:
    """Also where the release that is compared with has the name: Python does not look there."""
    old, new = package(tmp_path / "old", OLD), package(tmp_path / "new", NEW)
    user = tmp_path / "user.py"
    user.write_text(
        "from engine import config, nothing\n"
        "from engine.config import Training, moved\n"
        "from engine.other import Training as Again\n"
        "from elsewhere import unknown\n"
    )
    assert releases.missing_imports([user], "engine", old) == {"engine:nothing": [f"{user}:1"]}
    assert releases.missing_imports([user], "engine", new + old) == {
        "engine:nothing": [f"{user}:1"],
        "engine.config:moved": [f"{user}:2"],
    }


@pytest.mark.slow
def test_a_wheel_with_changes_is_compared_and_this_environment_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    code = next_engine.main([str(wheel(tmp_path)), "--no-tests"])
    out, errors = capfd.readouterr()
    assert code == 1, errors
    assert re.findall("^(?:not )?installed: .+", out, re.MULTILINE) == ["installed: torchtitan 9.0"]
    assert "GroupedExperts.forward: replaced for torchtitan 0.3.0; installed: torchtitan 9.0" in out
    assert "the body of torchtitan.models.common.moe:GroupedExperts.forward has changed" in out
    assert "-                A=x_RD.bfloat16()," in out
    assert "TrainingConfig.seq_len is gone; perhaps max_context_length now" in out
    assert re.search("torchtitan.components.loss:IGNORE_INDEX: .*atom/titan/train/trainer.py:", out)
    assert "3 findings" in out
    assert importlib.metadata.version("torchtitan") == "0.3.0"


NEEDS = """\
Requires-Dist: torch>=2
Requires-Dist: datasets[torch]
Requires-Dist: nowhere==1; extra == "dev"
"""
"""All of it is here, or not asked for: nothing more is installed."""


def wheel(folder: Path) -> Path:
    """Return a wheel of torchtitan with a function, a config field and a constant changed."""
    place = folder / "torchtitan"
    own = Path(torchtitan.__path__[0])
    shutil.copytree(own, place, ignore=shutil.ignore_patterns("__pycache__"))
    for name, old, new in [
        ("models/common/moe.py", "x_RD.bfloat16()", "x_RD"),
        ("config/configs.py", "    seq_len: int", "    max_context_length: int"),
        ("components/loss.py", "\nIGNORE_INDEX = ", "\nIGNORED = "),
    ]:
        text = (place / name).read_text()
        assert old in text, name
        (place / name).write_text(text.replace(old, new))
    made, info = folder / "torchtitan-9.0-py3-none-any.whl", "torchtitan-9.0.dist-info"
    with zipfile.ZipFile(made, "w") as archive:
        for file in sorted(place.rglob("*.py")):
            archive.write(file, file.relative_to(folder))
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torchtitan\nVersion: 9.0\n{NEEDS}"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return made
