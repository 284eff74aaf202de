"""Check ``checkpoint.initial_load``, the weights that a run starts from, before ranks start.

The ranks later load their own shards for any layout: torchtitan does this through DCP.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atom.errors import UserError
from atom.plugin import ModelParts
from atom.recipe.run import Run, read
from atom.recipe.training_sections import Checkpoint
from atom.registry.host import Host
from atom.registry.select import select
from atom.run_dir import checkpoint, saved
from atom.run_dir.folder import RUN_FILE
from atom.titan import saved_model, translate
from atom.titan.checkpoint import hugging_face_folder as hf_folder
from atom.titan.checkpoint.checkpointer import HUGGING_FACE
from atom.titan.hugging_face import config as hf_config
from atom.titan.hugging_face import remedy
from atom.titan.hugging_face import weights as hf_weights
from atom.titan.trainer_config import copied, model_parts
from atom.titan.weights import smaller_model

KEY = "checkpoint.initial_load"


def resolve(
    run: Run,
    parts: ModelParts,
    training: Any,
    place: Path,
    host: Host,
    *,
    vocab_size: int,
    vocab_size_before: int | None = None,
) -> tuple[Run, list[str]]:
    """Return ``run`` with the full path of its initial weights, and notes about them.

    Args:
        run: as composed.
        parts: the model's.
        training: the section.
        place: the run folder. A run that resumes there no longer needs its initial weights.
        host: the plugins.
        vocab_size: of the prepared tokenizer.
        vocab_size_before: of the tokenizer without tokens that the run adds; None if it adds none.

    Raises:
        UserError: there are no weights at the path, or they belong to another model.
    """
    section = translate.checkpoint(run.checkpoint)
    hugging_face = section.initial_load_in_hf
    wanted = section.initial_load
    if not wanted and section.initial_load_path:
        # torchtitan's own keys mean the same.
        wanted = f"{HUGGING_FACE if hugging_face else ''}{section.initial_load_path}"
    if not wanted:
        if hugging_face:
            raise UserError(
                "sets the format of the weights, but no key names their folder",
                valid=f"{KEY}=hf:FOLDER",
                key="checkpoint.initial_load_in_hf",
                value=True,
            )
        return run, []
    if not section.enable:
        raise _refusal(wanted, "nothing is loaded with checkpoint.enable=false")
    folder = Path(str(section.initial_load_path))
    notes: list[str] = []
    # Checkpoints of adapters lack these weights, so such a run loads them at every start.
    if run.lora.rank or not checkpoint.resumable(place / section.folder):
        parts = copied(parts)
        folder = folder if hugging_face else _step(folder, wanted)
        compared, size = run, vocab_size
        if vocab_size_before is not None:
            compared, size = smaller_model.of(
                run, parts, folder, vocab_size_before, hugging_face=hugging_face
            )
            parts = model_parts(select(compared, host, training=False), size, training.seq_len)
        saved_model.on_one_rank(parts, training)
        if hugging_face:
            quantized = section.initial_load_in_hf_quantized
            notes = _check_hugging_face(
                compared, parts, folder, wanted, host, size, quantized=quantized
            )
        else:
            _check_native(parts, folder, wanted)
            notes = _compare(compared, parts, folder, wanted, host, size)
    full = f"{HUGGING_FACE if hugging_face else ''}{folder}"
    others = ("initial_load_path", "initial_load_in_hf")
    kept = {key: value for key, value in run.checkpoint.said.items() if key not in others}
    loaded = Checkpoint.model_validate(kept | {"initial_load": full})
    resolved = run.model_copy(update={"checkpoint": loaded})
    return resolved, [f"{KEY}={wanted}: {note}" for note in notes]


def _check_hugging_face(
    run: Run,
    parts: ModelParts,
    folder: Path,
    wanted: str,
    host: Host,
    vocab_size: int,
    *,
    quantized: bool,
) -> list[str]:
    try:
        adapter = saved_model.adapter(parts, run.architecture.name)
    except UserError as error:
        raise _refusal(wanted, error.told) from None
    try:
        hf_folder.files(folder)  # a folder without weights is told as such
        theirs = hf_folder.config(folder)
        extended = _extended(run, parts, theirs)
        problem, notes = hf_weights.check(
            parts,
            adapter,
            folder,
            quantized=quantized,
            without=hf_config.SCALING if extended else (),
        )
    except ValueError as error:
        raise _refusal(
            wanted,
            f"{error}; valid: hf:FOLDER, with {hf_folder.CONFIG} and the weights in "
            f"{hf_folder.WEIGHTS} or in the files that {hf_folder.INDEX} names, as `atom export` "
            "and transformers' save_pretrained write it",
        ) from None
    if isinstance(problem, hf_config.Disagreement):
        problem += _valid(remedy.settings(theirs, parts, run, host, vocab_size))
    if problem:
        raise _refusal(wanted, f"is of another model: {problem}")
    return extended + notes


def _extended(run: Run, parts: ModelParts, theirs: Mapping[str, Any]) -> list[str]:
    """Return a note if the user extends the context of weights that were trained without."""
    here = hf_config.scaling(parts.hf_config or {})
    there = hf_config.scaling(theirs)
    if run.given("architecture.rope_scaling") is None or there not in ("default", None):
        return []
    if here in ("default", None):
        return []
    return [f"was trained without scaling of RoPE, and this run has that of {here}"]


def _valid(settings: str) -> str:
    return f"; valid: {settings}" if settings else ""


def _step(folder: Path, wanted: str) -> Path:
    """Return the folder of a native checkpoint, given by its path or by its run's."""
    if any(folder.glob(f"*{hf_folder.SUFFIX}")):
        raise _refusal(wanted, f"is in Hugging Face's format; did you mean {HUGGING_FACE}{wanted}?")
    if (folder / RUN_FILE).is_file() and not (folder / ".metadata").is_file():
        try:
            _, folder = saved.newest(folder, read(folder / RUN_FILE))
        except UserError as error:
            raise _refusal(wanted, str(error)) from None
    if not (folder / ".metadata").is_file():
        raise _refusal(
            wanted,
            f"holds no checkpoint; valid: the folder of a run, its checkpoint/step-N, or "
            f"{HUGGING_FACE}FOLDER",
        )
    if _has_adapters(folder):
        raise _refusal(
            wanted,
            "holds adapters, and not the weights that they belong to; valid: the same weights as "
            f"there, or {HUGGING_FACE}FOLDER with its export, which has them merged",
        )
    return folder


def _check_native(parts: ModelParts, folder: Path, wanted: str) -> None:
    try:
        saved_model.Checkpoint(folder).check(saved_model.on_meta(parts.model).state_dict())
    except UserError as error:
        raise _refusal(wanted, str(error)) from None


def _compare(
    run: Run, parts: ModelParts, folder: Path, wanted: str, host: Host, vocab_size: int
) -> list[str]:
    """Compare the architecture of a native checkpoint's run with this run's.

    The other run's plugins are not loaded: the checkpoint may be untrusted.
    """
    file = next((at / RUN_FILE for at in (folder, *folder.parents[:2]) if _is_run(at)), None)
    if file is None:
        return [
            f"there is no {RUN_FILE} that names its model, so only the weights' shapes are compared"
        ]
    try:
        other = read(file)
    except UserError as error:
        raise _refusal(wanted, str(error)) from None
    there, here = other.architecture, run.architecture
    if there.name != here.name:
        return [f"its architecture is {there.name}, and that of this run is {here.name}"]
    size = other.resolved.vocab_size if other.resolved else vocab_size
    try:
        selection = select(run.model_copy(update={"architecture": there}), host, training=False)
        before = model_parts(selection, size, 1)
    except UserError as error:
        return [f"its architecture cannot be compared: {error}"]
    ours, theirs = (dict(of.hf_config or {}) for of in (parts, before))
    if not (ours and theirs):
        return [] if there == here else ["its architecture has other settings than this run's"]
    extended = _extended(run, parts, theirs)
    problem = hf_config.disagreement(
        theirs, ours, parts.hf_defaults or {}, without=hf_config.SCALING if extended else ()
    )
    if problem:
        words = problem.removeprefix("its config.json says ")
        words += _valid(remedy.settings(theirs, parts, run, host, vocab_size))
        raise _refusal(wanted, f"is of another model: there {words}")
    return extended


def _has_adapters(folder: Path) -> bool:
    """Return whether a checkpoint is of a run with adapters."""
    return _is_run(folder) and bool(read(folder / RUN_FILE).lora.rank)


def _is_run(folder: Path) -> bool:
    return (folder / RUN_FILE).is_file()


def _refusal(wanted: str, problem: str) -> UserError:
    return UserError(problem, key=KEY, value=wanted)
