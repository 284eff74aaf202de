"""Runs are released, checked and trained again from their release alone; sabotage is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from huggingface_hub import ModelCard
from mlcroissant import Dataset
from safetensors import safe_open

from atom.release import bundle, signing, verdicts
from atom.release.form import Form
from atom.release.verify import verify

pytestmark = pytest.mark.slow

TINY = (
    *("tokenizer=bytes", "training.seq_len=64", "training.global_batch_size=4", "device=cpu"),
    *("architecture=llama3_tiny", "architecture.n_layers=2", "architecture.dim=64"),
    *("dataset=local", "metrics.enable_tensorboard=false", "metrics.log_freq=1"),
    *("checkpoint.enable=true", "checkpoint.interval=2", "checkpoint.last_save_model_only=false"),
    *("validation.sets.kept.name=local", "validation.interval=2"),
)
FORM = {
    "name": "Tiny",
    "licence": "Apache-2.0",
    "data_licence": "CC-BY-4.0",
    "data_access": "https://example.org/data",
    "data_description": "Made of one sentence.",
    "report": "https://example.org/report",
    "can_be_rebuilt": True,
}


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a pair of keys."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, atom: Callable[..., Any]) -> Path:
    """A folder with a release ``R`` of a run of two starts, which is gone, and its data."""
    work = tmp_path_factory.mktemp("release")
    data = work / "data"
    data.mkdir()
    for number in range(3):
        text = "\n".join(f"{number} and {word} are words." for word in range(300))
        (data / f"{number}.txt").write_text(text)
    (work / "form.yaml").write_text(yaml.safe_dump(FORM))
    keys(work, "own")
    keys(work, "other")
    given = (f"dataset.path={data}", f"validation.sets.kept.path={data}", "run.dir=run")
    for settings in (("training.steps=2",), ("training.steps=4", "optimizer.lr=5e-4")):
        result = atom("train", *TINY, *given, *settings, cwd=work)
        assert result.returncode == 0, result.stderr
    signed = ("--key", "own.pem", "--public-key", "own.pub", "--form", "form.yaml")
    result = atom("release", "run", "--out", "R", *signed, cwd=work)
    assert result.returncode == 0, result.stderr
    assert "class II" in result.stdout
    shutil.rmtree(work / "run")
    return work


def test_a_release_is_verified(made: Path, atom: Callable[..., Any]) -> None:
    result = atom("verify", "R", "--public-key", "own.pub", "--json", cwd=made)
    assert result.returncode == 0, result.stdout
    told = json.loads(result.stdout)
    assert (told["verified"], told["level"], told["problems"]) == (True, "R0", [])
    assert told["signature"].startswith("valid, by the key given")
    assert told["verdicts"]["model_openness_framework"]["class"] == "II"
    assert told["verdicts"]["open_source_ai_definition"]["verdict"] == "met"
    missing = told["verdicts"]["model_openness_framework"]["missing"]
    assert missing == ["research paper is missing: paper in release.yaml"]


def test_documents_are_those_of_their_formats(made: Path) -> None:
    release = made / "R"
    data = Dataset(jsonld=json.loads((release / bundle.CROISSANT).read_text()))
    assert not data.metadata.ctx.issues.errors
    assert len(data.metadata.distribution) == 3
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str((release / bundle.BOM).read_text()) is None
    card = ModelCard((release / bundle.CARD).read_text())
    assert card.data.license == "apache-2.0"
    assert card.data.tags == ["atom", "mof-class-ii"]
    statement = json.loads((release / bundle.PROVENANCE).read_text())
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert {each["name"] for each in statement["subject"]} >= {"model.safetensors"}
    with safe_open(
        release / "checkpoints/stage1-step4-tokens1K/state.safetensors", framework="pt"
    ) as file:
        names = set(file.keys())
    assert "optimizer.state.lm_head.weight.exp_avg" in names
    assert {path.name.partition("-")[0] for path in (release / "code").iterdir()} >= {
        *("atom_train", "atom_llama", "atom_datasets", "atom_tokenizers"),
    }


def test_a_segment_is_trained_again_bit_for_bit(made: Path, atom: Callable[..., Any]) -> None:
    """From the release alone: the settings of the second start, from the first one's state."""
    result = atom("reproduce", "R", "--segments", "2", "--json", cwd=made)
    assert result.returncode == 0, result.stdout + result.stderr
    told = json.loads(result.stdout)
    assert (told["level"], told["equal"], told["first_difference"]) == ("R1", True, None)
    [segment] = told["segments"]
    assert segment["steps"] == [3, 4]
    assert segment["compared"]["logged_steps"] == 2
    assert segment["compared"]["tensors"] > 60
    assert segment["same_data"]


def test_other_data_is_named(made: Path, atom: Callable[..., Any]) -> None:
    """A changed document, and what differs first."""
    other = made / "other"
    shutil.copytree(made / "data", other)
    (other / "1.txt").write_text((other / "1.txt").read_text().replace("words", "wards"))
    result = atom("reproduce", "R", f"dataset.path={other}", "--json", cwd=made)
    assert result.returncode == 1, result.stdout + result.stderr
    told = json.loads(result.stdout)
    assert not told["equal"]
    assert told["level"] is None
    assert told["first_difference"] == {
        "segment": 1,
        "input": "dataset",
        "difference": "changed: 1.txt",
    }
    assert told["segments"][0]["same_data"] is False


LAST = "checkpoints/stage1-step4*"
RUN = "runs/1-run"


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(release: Path) -> None:
        [path] = release.glob(name)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def flip(name: str) -> Callable[[Path], None]:
    def change(release: Path) -> None:
        [path] = release.glob(name)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    return change


def again(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    """Change files, and the manifest so that it fits: as somebody would who owns the release."""

    def change(release: Path) -> None:
        for each in changes:
            each(release)
        content = json.loads((release / bundle.MANIFEST).read_text())
        bundle.write_manifest(release, {k: v for k, v in content.items() if k != "files"})
        (release / bundle.SIGNATURE).unlink()

    return change


def grown(release: Path) -> None:
    """Claim a size that no memory has."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [2**50], "data_offsets": [0, 2**50]}})
    content = len(header).to_bytes(8, "little") + header.encode()
    next(release.glob(f"{LAST}/state.safetensors")).write_bytes(content)


def resigned(release: Path) -> None:
    (release / bundle.SIGNATURE).unlink()
    (release / signing.PUBLIC).unlink()
    work = release.parent / "made"
    signing.sign(release, work / "other.pem", work / "other.pub")


SABOTAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of a weight": (flip(f"{LAST}/state.safetensors"), "state.safetensors has other content"),
    "a bit of a weight, told as right": (
        again(flip(f"{LAST}/state.safetensors")),
        "tok_embeddings.weight has other values than the run saved",
    ),
    "a step of metrics": (edit(f"{RUN}/metrics.jsonl", '"loss": ', '"loss": 1'), "metrics.jsonl"),
    "another tokenizer": (edit(f"{RUN}/tokenizer/tokenizer.json", "{", "{ "), "tokenizer.json"),
    "a checkpoint": (
        lambda release: shutil.rmtree(next(release.glob(LAST))),
        "the checkpoint of step 4 is missing",
    ),
    "run.yaml": (edit(f"{RUN}/run.yaml", "lr: 0.0005", "lr: 0.0004"), f"{RUN}/run.yaml"),
    "code of a plugin": (flip("code/atom_llama*"), "code/atom_llama"),
    "another torch": (edit(f"{RUN}/lock.json", '"torch": "2', '"torch": "1'), "lock.json"),
    "a lock of a start": (
        again(lambda release: (release / RUN / "starts/1/lock.json").unlink()),
        "starts/1 has no lock.json",
    ),
    "a forged signature": (resigned, "the signature is not valid"),
    "a tensor of a petabyte": (again(grown), "state.safetensors cannot be read: it is too short"),
    "no signature": (lambda release: (release / bundle.SIGNATURE).unlink(), "it is not signed"),
    "a licence": (
        again(edit(bundle.FORM, "\nlicence: Apache-2.0", "\nlicence: ''")),
        "class none; final model parameters has no licence",
    ),
    "a better class": (
        again(edit(bundle.MANIFEST, '"class": "II"', '"class": "I"')),
        "claims other verdicts than the facts give: class II; research paper",
    ),
    "a file more": (lambda release: (release / "new.txt").write_text(""), "new.txt is not in"),
    "a pickle": (lambda release: (release / "a.pt").write_text(""), "a.pt may hold code"),
}


@pytest.mark.parametrize(("change", "says"), SABOTAGES.values(), ids=SABOTAGES)
def test_sabotage_is_named(
    change: Callable[[Path], object], says: str, made: Path, tmp_path: Path
) -> None:
    release = tmp_path / "R"
    shutil.copytree(made / "R", release)
    (tmp_path / "made").symlink_to(made)
    change(release)
    found = verify(release, made / "own.pub")
    assert any(says in problem for problem in found.problems), found.problems
    assert found.level is None


def test_hostile_and_clumsy(made: Path, tmp_path: Path, atom: Callable[..., Any]) -> None:
    """One sentence, exit code 2, and nothing written."""
    linked = tmp_path / "linked"
    shutil.copytree(made / "R", linked)
    (linked / "link").symlink_to("/etc/passwd")
    escaping = tmp_path / "escaping"
    shutil.copytree(made / "R", escaping)
    edit(bundle.MANIFEST, '"folder": "checkpoints', '"folder": "../checkpoints')(escaping)
    (tmp_path / "form.yaml").write_text("licenze: MIT\n")
    (tmp_path / "empty").mkdir()
    for arguments, says in (
        (("verify", linked), "link, which is no regular file"),
        (("verify", escaping), "a path leads out of the release"),
        (("verify", tmp_path / "empty"), "holds no release.json"),
        (
            ("verify", made / "R", "--public-key", "none"),
            "--public-key none: there is no such file",
        ),
        (("reproduce", made / "R", "--segments", "3"), "--segments=3: is no segment of it"),
        (("reproduce", made / "R", "--segments", "x"), "all, or of 1-2"),
        (("release", made / "R", "--out", tmp_path / "out"), "holds no run.yaml"),
        (
            ("release", made / "R", "--out", tmp_path / "out", "--form", tmp_path / "form.yaml"),
            "there is no field licenze; did you mean licence",
        ),
    ):
        result = atom(*map(str, arguments), cwd=tmp_path)
        assert result.returncode == 2, (arguments, result.stderr)
        assert says in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_open_licences() -> None:
    for licence, expected in (
        ("Apache-2.0", True),
        ("CC-BY-4.0", True),
        ("CC-BY-SA-3.0", True),
        ("CC-BY-NC-4.0", False),
        ("CC-BY-ND-4.0", False),
        ("MIT AND CC-BY-NC-4.0", False),
        ("Proprietary OR MIT", True),
        ("OpenMDW-1.0", True),
        ("llama3", False),
        (None, False),
        ("", False),
    ):
        assert verdicts.is_open(licence) is expected, licence


def test_what_is_left_to_say() -> None:
    form = Form(name="x", licence="MIT")
    assert "licence" not in form.left()
    assert "can_be_rebuilt" in form.left()
    assert yaml.safe_load(form.text()) == form.model_dump()
