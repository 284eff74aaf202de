"""Check a run's objective against its data before ranks start."""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from atom.errors import UserError
from atom.io.files import copy
from atom.plugin import (
    Dataset,
    DocumentEncoder,
    Objective,
    PreparedTokenizer,
    Teacher,
    Tokenizer,
)
from atom.registry.opening import Chosen
from atom.registry.renaming import renamed
from atom.run_dir.resume import Resumption
from atom.titan.checks.plan import Plan
from atom.titan.teacher_tokenizer import tokenizer_of
from atom.titan.trainer_config import encoder_of

FIRST = 100
"""Documents that are encoded; the ranks refuse later ones."""


class _Plan(Plan, Protocol):
    @property
    def tokenizer(self) -> PreparedTokenizer: ...
    @property
    def resumption(self) -> Resumption | None: ...


def check_packing(plan: Plan) -> None:
    """Refuse a packing that the objective does not support.

    Raises:
        UserError: names the ones that it supports.
    """
    objective, packing = plan.selection.optional(Objective), plan.run.data.packing
    if objective is not None and packing not in objective.declaration.packings:
        raise UserError(
            f"does not work with objective={objective.component.name}",
            valid=" or ".join(objective.declaration.packings),
            key="data.packing",
            value=packing,
        )


def check_loader(plan: Plan) -> None:
    """Refuse an objective for a dataset with its own loader.

    Raises:
        UserError: names the objective.
    """
    objective = plan.selection.optional(Objective)
    if objective is not None and plan.selection[Dataset].declaration.build is not None:
        raise UserError(
            "has no effect: this dataset has its own data loader",
            valid="null",
            key="objective.name",
            value=objective.component.name,
        )


def check_loss(plan: Plan) -> None:
    """Refuse settings that an objective's own loss does not work with.

    Raises:
        UserError: names the setting.
    """
    objective = plan.selection.optional(Objective)
    if objective is None or objective.declaration.loss is None:
        return
    name = objective.component.name
    if plan.parallelism.spmd_backend == "full_dtensor":
        raise UserError(
            f"does not work with the loss of objective={name}",
            valid="spmd_types or partial_dtensor",
            key="parallelism.spmd_backend",
            value="full_dtensor",
        )
    if plan.run.loss.z_loss:
        raise UserError(
            f"has no effect on the loss of objective={name}",
            valid="0",
            key="loss.z_loss",
            value=plan.run.loss.z_loss,
        )
    if plan.kind == "cuda" and not plan.run.training.engine.get("disable_cuda_graphs"):
        raise UserError(
            f"a CUDA graph computes the same number of sequences in each step, and the loss of "
            f"objective={name} that of the step's examples",
            valid="true",
            key="training.disable_cuda_graphs",
            value=False,
        )


def check_documents(plan: _Plan) -> None:
    """Encode the first documents, as the ranks will.

    Raises:
        UserError: a document has not what the objective needs, or no document fits a sequence.
    """
    if plan.selection.optional(Objective) is None:
        return
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch)
        for name, path in plan.tokenizer.files.items():
            copy(path.resolve(), files / name)
        tokenizer = plan.selection[Tokenizer].call("build").build(tokenizer_path=scratch)
        _check_teacher(plan, tokenizer)
        encoder_for = encoder_of(plan.selection, plan.run, files)
        assert encoder_for is not None
        encoder = encoder_for(tokenizer)
        for chosen in (plan.selection[Dataset], *plan.selection.validation().values()):
            with renamed(Dataset.kind, chosen.key):
                _encode(chosen, encoder, plan.run.training.seq_len)


def _check_teacher(plan: _Plan, tokenizer: Any) -> None:
    """Refuse a teacher that is missing, or that predicts other ids than the run's tokenizer has.

    Raises:
        UserError: names the first id that differs.
    """
    objective = plan.selection[Objective]
    if objective.declaration.teacher is None:
        return
    teacher: Teacher = objective.call("teacher")
    if teacher.top > plan.tokenizer.vocab_size:
        raise UserError(
            f"is more than the tokenizer's {plan.tokenizer.vocab_size:,} ids",
            valid="fewer",
            key="objective.top_k",
            value=teacher.top,
        )
    if not teacher.folder.is_dir() and plan.resumption is not None:
        return  # a run that resumes no longer needs its teacher
    theirs, size = tokenizer_of(teacher.folder)
    problem = None
    if size != plan.tokenizer.vocab_size:
        problem = f"has {size:,} ids, and the run's tokenizer {plan.tokenizer.vocab_size:,}"
    else:
        for number in range(size):
            there, here = theirs.decode([number]), tokenizer.decode([number])
            if there and here and there != here:  # special tokens may be no text
                problem = f"has {there!r} for the id {number}, which is {here!r} in the run"
                break
    if problem is not None:
        raise UserError(
            f"is of another vocabulary: it {problem}",
            valid="a teacher with the run's tokenizer",
            key="objective.teacher",
            value=teacher.folder,
        )


def _encode(chosen: Chosen[Dataset], encoder: DocumentEncoder, seq_len: int) -> None:
    documents = chosen.call("source").lane(0, 1, seed=0, epoch=0)
    readable = [each for each in islice(documents, FIRST) if each.problem is None]
    encoded = [encoder.encode(document) for document in readable]
    if readable and not any(encoded):
        raise UserError(
            f"nothing of the first {len(readable)} documents of {chosen.key} fits a sequence",
            valid="more",
            key="training.seq_len",
            value=seq_len,
        )
