"""``checkpoint.initial_load``: the weights that a run starts from, checked before there are ranks.

The ranks then load their own shares of it, whatever the layout: torchtitan does, through DCP.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atom import checkpoint
from atom.errors import UserError
from atom.folder import RUN_FILE
from atom.plugin import ModelParts
from atom.run import Run, read
from atom.titan import hf_folder, sections, weights
from atom.titan.checkpointer import HUGGING_FACE, VerifiedCheckpointManager

KEY = "checkpoint.initial_load"


def resolve(run: Run, parts: ModelParts, training: Any, place: Path) -> Run:
    """Return ``run`` with the place of its initial weights in full.

    Args:
        run: as composed.
        parts: the model's; a set of its own, which is changed.
        training: the section.
        place: the run folder. A run that goes on there needs its initial weights no more.

    Raises:
        UserError: there are no weights at the place, or they are of another model.
    """
    section: VerifiedCheckpointManager.Config = sections.build(
        VerifiedCheckpointManager.Config, run.checkpoint, "checkpoint"
    )
    wanted = section.initial_load
    if not wanted:
        return run
    if not section.enable:
        raise _refusal(wanted, "nothing is loaded with checkpoint.enable=false")
    from_hugging_face = wanted.startswith(HUGGING_FACE)
    folder = Path(str(section.initial_load_path))
    if not checkpoint.resumable(place / section.folder):
        weights.on_one_rank(parts, training)
        if from_hugging_face:
            _check_hugging_face(run, parts, folder, wanted, section.initial_load_in_hf_quantized)
        else:
            folder = _native(parts, folder, wanted)
    full = f"{HUGGING_FACE if from_hugging_face else ''}{folder}"
    return run.model_copy(update={"checkpoint": run.checkpoint | {"initial_load": full}})


def _check_hugging_face(
    run: Run, parts: ModelParts, folder: Path, wanted: str, quantized: bool
) -> None:
    try:
        adapter = weights.adapter(parts, run.architecture.name)
    except UserError as error:
        raise _refusal(wanted, error.problem) from None
    try:
        problem = hf_folder.files(folder) and hf_folder.disagreement(folder, parts.hf_config or {})
        if not problem and not quantized:
            expected = adapter.to_hf(weights.on_meta(parts.model).state_dict())
            problem = weights.difference(expected, hf_folder.shapes(folder))
    except ValueError as error:
        raise _refusal(
            wanted,
            f"{error}; valid: hf:FOLDER, with {hf_folder.CONFIG} and the weights in "
            f"*{hf_folder.SUFFIX}, as `atom export` and transformers' save_pretrained write it",
        ) from None
    if problem:
        raise _refusal(wanted, f"is of another model: {problem}")


def _native(parts: ModelParts, folder: Path, wanted: str) -> Path:
    """Return the folder of a native checkpoint, which may be given by its run's."""
    if any(folder.glob(f"*{hf_folder.SUFFIX}")):
        raise _refusal(wanted, f"is in Hugging Face's format; did you mean {HUGGING_FACE}{wanted}?")
    if (folder / RUN_FILE).is_file() and not (folder / ".metadata").is_file():
        try:
            _, folder = weights.newest(folder, read(folder / RUN_FILE))
        except UserError as error:
            raise _refusal(wanted, str(error)) from None
    if not (folder / ".metadata").is_file():
        raise _refusal(
            wanted,
            f"holds no checkpoint; valid: the folder of a run, its checkpoint/step-N, or "
            f"{HUGGING_FACE}FOLDER",
        )
    try:
        weights.Checkpoint(folder).check(weights.on_meta(parts.model).state_dict())
    except UserError as error:
        raise _refusal(wanted, str(error)) from None
    return folder


def _refusal(wanted: str, problem: str) -> UserError:
    return UserError(problem, key=KEY, value=wanted)
