"""Evaluate saved weights on tasks of evaluators."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import atom
from atom.errors import UserError
from atom.io.files import sha256
from atom.plugin import EvaluatorContext, Measured
from atom.recipe.scoring_layout import ScoringLayout
from atom.run_dir import checkpoint, inputs, saved
from atom.run_dir.evals import Evaluation
from atom.run_dir.evaluators import Task
from atom.run_dir.folder import RUN_FILE
from atom.titan.evaluation.passes import OwnPasses, SharedPasses
from atom.titan.evaluation.scorer import ModelScorer
from atom.titan.generation.generate import generate, generate_by, longest
from atom.titan.weights import transformers_model
from atom.titan.weights.forward import logits
from atom.titan.weights.loaded import ALONE, DTYPES, Loaded, load


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to evaluate.

    Attributes:
        step: the checkpoint's step, for a run; None for the newest.
        average: the callback whose averaged weights to evaluate; None: the weights.
        limit: maximum number of documents of a task; None for all.
        seed: for everything that an evaluator draws.
        dtype: precision of the weights in the forward pass.
        max_length: longest sequence in tokens; None for that of the training.
        tokens: tokens of one pass; None for the default.
        layout: the layout of the ranks that share the model.
    """

    step: int | None = None
    average: str | None = None
    limit: int | None = None
    seed: int = 0
    dtype: str = "float32"
    max_length: int | None = None
    tokens: int | None = None
    layout: ScoringLayout = ALONE


@dataclass(frozen=True)
class Subject:
    """Weights to evaluate.

    Attributes:
        scorer: their model.
        shared: the passes that several ranks compute together; None in one process.
        step: their step; None for a folder in Hugging Face's format.
        weights: their digest.
        tokenizer: digest of the tokenizer; None if it is not known.
    """

    scorer: ModelScorer
    step: int | None
    weights: str
    tokenizer: str | None
    shared: SharedPasses | None = None


def subject(folder: Path, settings: Settings, *, kind: str) -> Subject:
    """Load weights.

    Args:
        folder: the folder of a run, of an export, or in Hugging Face's format.
        settings: how to evaluate.
        kind: the device that torchtitan is set up for, ``cpu`` or ``cuda``.

    Raises:
        UserError: there are no readable weights.
    """
    if not (folder / RUN_FILE).is_file():
        return _foreign(folder, settings, kind)
    loaded = load(
        folder,
        step=settings.step,
        kind=kind,
        average=settings.average,
        dtype=settings.dtype,
        layout=settings.layout,
    )
    weights = _digest(folder, loaded) if loaded.first else ""
    recorded = inputs.read(folder / inputs.FILE_NAME)
    tokenizer = loaded.trained.tokenizer()
    own = OwnPasses(
        partial(logits, loaded.model),
        partial(
            generate,
            loaded.model,
            reach=longest(loaded.trained.parts),
            **_ends(tokenizer),
        ),
        tokenizer.decode,
        device=kind,
        tokens=settings.tokens,
    )
    shared = SharedPasses(own, loaded.ranks) if loaded.ranks is not None else None
    length = _length(settings, loaded.trained.run.training.seq_len)
    scorer = ModelScorer(shared or own, tokenizer, max_length=length)
    digest = recorded.tokenizer.digest if recorded else None
    return Subject(scorer, loaded.step, weights, digest, shared)


def _foreign(folder: Path, settings: Settings, kind: str) -> Subject:
    """Load weights with ``transformers``."""
    found = transformers_model.load(folder, kind=kind, dtype=DTYPES[settings.dtype])
    passes = OwnPasses(
        found.forward,
        partial(generate_by, found.forward, kind, **_ends(found.tokenizer)),
        found.tokenizer.decode,
        device=kind,
        tokens=settings.tokens,
    )
    length = _length(settings, found.max_length)
    scorer = ModelScorer(passes, found.tokenizer, max_length=length)
    return Subject(scorer, None, _files_digest(folder), None)


def _ends(tokenizer: Any) -> dict[str, Any]:
    """Return the ids that end a text, and the number of ids: further rows are padding."""
    eos = getattr(tokenizer, "eos_id", None)
    return {"ends": () if eos is None else (eos,), "size": tokenizer.get_vocab_size()}


def _digest(folder: Path, loaded: Loaded) -> str:
    """Return the digest of loaded weights.

    Raises:
        UserError: the checkpoint was changed after it was saved.
    """
    if loaded.step is None:
        return _files_digest(folder)
    _, place = saved.newest(folder, loaded.trained.run, loaded.step)
    saved.verify(place)
    return sha256(place / checkpoint.MANIFEST)


def _length(settings: Settings, most: int) -> int:
    if settings.max_length is not None and settings.max_length > most:
        raise UserError(
            "is longer than the sequences of the model",
            valid=f"at most {most:,}",
            key="--max-length",
            value=settings.max_length,
        )
    return settings.max_length or most


def _files_digest(folder: Path) -> str:
    """Return a digest of the files of weights in a folder in Hugging Face's format."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        found.update(f"{file.name} {sha256(file)}\n".encode())
    return found.hexdigest()


def evaluate(
    subject: Subject, tasks: Sequence[Task], settings: Settings
) -> Iterator[list[Evaluation]]:
    """Yield the results of each task.

    Raises:
        UserError: an evaluator cannot evaluate a task.
    """
    for task in tasks:
        yield _evaluated(subject, task, settings)


def _evaluated(subject: Subject, task: Task, settings: Settings) -> list[Evaluation]:
    scorer, chosen = subject.scorer, task.evaluator
    scorer.new_digest()
    context = EvaluatorContext(
        model=scorer, task=task.name, limit=settings.limit, seed=settings.seed
    )
    measured = list(chosen.call("evaluate", context))
    if not measured:
        raise UserError(f"the task {task.name} of {chosen.component.owner} has no result")
    plugin = chosen.component.plugin
    shared: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "step": subject.step,
        "evaluator": chosen.component.name,
        "asked": task.name,
        "package": f"{plugin.package} {plugin.version}",
        "parameters": TypeAdapter(Any).dump_python(chosen.config, mode="json") or {},
        "prompts": scorer.digest,
        "average": settings.average,
        "limit": settings.limit,
        "seed": settings.seed,
        "truncated": scorer.truncated,
        "max_length": scorer.max_length,
        "weights": subject.weights,
        "tokenizer": subject.tokenizer,
        "dtype": settings.dtype,
        "atom": atom.__version__,
    }
    return [_row(each, task.name, shared) for each in measured]


def _row(measured: Measured, task: str, shared: dict[str, Any]) -> Evaluation:
    stderr = measured.stderr
    return Evaluation(
        **shared,
        task=measured.task or task,
        metric=measured.metric,
        value=float(measured.value),
        stderr=float(stderr) if stderr is not None and math.isfinite(stderr) else None,
        samples=measured.samples,
        higher_is_better=measured.higher_is_better,
        few_shot=measured.few_shot,
        version=measured.version,
    )
