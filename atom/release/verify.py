"""Check a release: every file, digest, signature, and the verdicts against the facts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atom.errors import UserError
from atom.io import json_data
from atom.io.files import is_regular, sha256
from atom.release import bundle, facts, signing, verdicts
from atom.release import form as forms
from atom.release.bundle import MANIFEST, SIGNATURE, Bundle, Saved, Stage
from atom.run_dir import checkpoint, events, starts
from atom.run_dir.folder import LOCK, RUN_FILE

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".distcp", ".metadata", ".joblib")
_MOST_TOLD = 20


@dataclass
class Verification:
    """The result: what is wrong, words about the signature, and the verdicts."""

    problems: list[str] = field(default_factory=list)
    signature: str = "not signed"
    files: int = 0
    tensors: int = 0
    verdicts: verdicts.Verdicts | None = None

    @property
    def level(self) -> str | None:
        """``R0`` if everything is as released; None otherwise."""
        return None if self.problems else "R0"

    def to_json(self) -> dict[str, Any]:
        """Return the result as data."""
        judged = self.verdicts.to_json() if self.verdicts is not None else None
        return {
            "verified": not self.problems,
            "level": self.level,
            "problems": self.problems,
            "signature": self.signature,
            "files": self.files,
            "tensors": self.tensors,
            "verdicts": judged,
        }


def verify(folder: Path, public_key: Path | None = None) -> Verification:
    """Check a release; it runs nothing of it.

    Args:
        folder: the release.
        public_key: the key that must have signed it; None for the one in it.

    Raises:
        UserError: there is no release, or no such key.
    """
    released = bundle.read(folder)
    if public_key is not None and not public_key.is_file():
        raise UserError(f"--public-key {public_key}: there is no such file")
    found = Verification()
    found.problems += _files(released, found)
    wrong, found.signature = signing.verified(folder, public_key)
    if wrong is not None:
        found.problems.append(wrong)
    try:
        found.problems += _verdicts(released, found)
    except UserError as error:
        found.problems.append(error.sentence())
    for stage in released.stages:
        try:
            found.problems += _stage(released, stage, found)
        except (UserError, OSError, ValueError, KeyError, TypeError) as error:
            found.problems.append(f"runs/{stage.name}: {error}")
    more = len(found.problems) - _MOST_TOLD
    if more > 0:
        found.problems[_MOST_TOLD:] = [f"{more} more"]
    return found


def _files(released: Bundle, found: Verification) -> Iterator[str]:
    listed = dict(released.manifest["files"])
    for name in bundle.names(released.folder):
        if name in (MANIFEST, SIGNATURE):
            continue
        found.files += 1
        if name.lower().endswith(_PICKLES):
            yield f"{name} may hold code: a release has safetensors only"
        expected = listed.pop(name, None)
        if expected is None:
            yield f"{name} is not in {MANIFEST}"
            continue
        size, digest = expected
        path = released.folder / name
        if path.stat().st_size != size:
            yield f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
        elif sha256(path) != digest:
            yield f"{name} has other content than it was released with"
    for name in listed:
        yield f"{name} is missing"


def _verdicts(released: Bundle, found: Verification) -> Iterator[str]:
    folder = released.folder
    told = forms.read(folder / bundle.FORM)
    result = verdicts.judge(facts.of(released), told, lambda name: (folder / name).exists())
    found.verdicts = result
    claimed = released.manifest.get("verdicts")
    if claimed != result.to_json():
        yield (
            f"{MANIFEST} claims other verdicts than the facts give: class {result.roman}"
            + "".join(f"; {reason}" for reason in result.missing())
        )


def _stage(released: Bundle, stage: Stage, found: Verification) -> Iterator[str]:
    run = released.run_folder(stage)
    told = {
        event["step"]: event.get("tensors")
        for event in events.read(run)
        if event["event"] == events.CHECKPOINT_SAVED
    }
    if not stage.checkpoints:
        yield f"runs/{stage.name} has no checkpoint"
    for number in starts.numbers(run):
        kept = starts.place(run, number)
        for name in (RUN_FILE, LOCK):
            if not is_regular(kept / name):
                yield f"runs/{stage.name}/starts/{number} has no {name}"
    for saved in stage.checkpoints:
        yield from _checkpoint(released, saved, told.get(saved.step), found)


def _checkpoint(
    released: Bundle, saved: Saved, told: str | None, found: Verification
) -> Iterator[str]:
    from atom.titan.boot import boot

    boot("cpu")
    from atom.titan.checkpoint import tensor_digest
    from atom.titan.weights import state

    place = released.folder / saved.folder
    if not is_regular(place / state.TENSORS):
        yield f"{saved.folder}: the checkpoint of step {saved.step} is missing"
        return
    recorded = state.recorded_digests(place)
    seen = set()
    try:
        for name, tensor in state.tensors(place):
            seen.add(name)
            found.tensors += 1
            if name in recorded and state.digest_of(tensor) != recorded[name]:
                yield f"{saved.folder}: {name} has other values than the run saved"
    except (ValueError, OSError) as error:
        yield f"{saved.folder}/{state.TENSORS} cannot be read: {error}"
        return
    for name in recorded:
        if name not in seen and (saved.whole or not name.startswith("optimizer.")):
            yield f"{saved.folder}: the tensor {name} is missing"
            break
    if not recorded:
        return
    listed = json_data.read(place / checkpoint.TENSORS, most=64 << 20)
    if tensor_digest.root(listed["tensors"]) != listed.get("digest"):
        yield f"{saved.folder}/{checkpoint.TENSORS} does not have the digest of its tensors"
    elif told is not None and told != listed["digest"]:
        yield f"{saved.folder}: its tensors are not those that events.jsonl tells of"
