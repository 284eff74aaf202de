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

import torch
from pydantic import TypeAdapter

import atom
from atom.errors import UserError
from atom.io.files import sha256
from atom.plugin import EvaluatorContext, Measured
from atom.run_dir import checkpoint, inputs, saved
from atom.run_dir.evals import Evaluation
from atom.run_dir.evaluators import Task
from atom.run_dir.folder import RUN_FILE
from atom.titan.evaluation.scorer import ModelScorer
from atom.titan.generation.generate import generate, longest
from atom.titan.weights import transformers_model
from atom.titan.weights.forward import logits
from atom.titan.weights.loaded import load

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
    """

    step: int | None = None
    average: str | None = None
    limit: int | None = None
    seed: int = 0
    dtype: str = "float32"
    max_length: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Subject:
    """Weights to evaluate.

    Attributes:
        scorer: their model.
        step: their step; None for a folder in Hugging Face's format.
        weights: their digest.
        tokenizer: digest of the tokenizer; None if it is not known.
    """

    scorer: ModelScorer
    step: int | None
    weights: str
    tokenizer: str | None


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
        found = transformers_model.load(folder, kind=kind, dtype=DTYPES[settings.dtype])
        length = _length(settings, found.max_length)
        scorer = ModelScorer(
            found.forward,
            found.tokenizer,
            max_length=length,
            device=kind,
            tokens=settings.tokens,
        )
        return Subject(scorer, None, _files_digest(folder), None)
    loaded = load(folder, step=settings.step, kind=kind, average=settings.average)
    if loaded.step is None:
        weights = _files_digest(folder)
    else:
        _, place = saved.newest(folder, loaded.trained.run, loaded.step)
        saved.verify(place)
        weights = sha256(place / checkpoint.MANIFEST)
    # As under FSDP: parameters have the dtype, buffers keep theirs.
    for parameter in loaded.model.parameters():
        parameter.data = parameter.data.to(DTYPES[settings.dtype])
    recorded = inputs.read(folder / inputs.FILE_NAME)
    tokenizer = loaded.trained.tokenizer()
    eos = getattr(tokenizer, "eos_id", None)
    scorer = ModelScorer(
        partial(logits, loaded.model),
        tokenizer,
        generate=partial(
            generate,
            loaded.model,
            ends=() if eos is None else (eos,),
            size=tokenizer.get_vocab_size(),
            reach=longest(loaded.trained.parts),
        ),
        max_length=_length(settings, loaded.trained.run.training.seq_len),
        device=kind,
        tokens=settings.tokens,
    )
    return Subject(scorer, loaded.step, weights, recorded.tokenizer.digest if recorded else None)


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
