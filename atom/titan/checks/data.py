"""Check settings of the data loader against a dataset that brings its own loader."""

from __future__ import annotations

from atom.errors import UserError
from atom.plugin import Dataset
from atom.titan.checks.plan import Plan


def check_trace(plan: Plan) -> None:
    """Refuse to record samples that the dataset's own loader does not tell.

    Raises:
        UserError: the dataset has its own loader.
    """
    if plan.run.data.trace and plan.selection[Dataset].declaration.build is not None:
        raise UserError(
            "the data loader of this dataset does not report which samples it reads",
            valid="false",
            key="data.trace",
            value=True,
        )


def check_unused(plan: Plan) -> None:
    """Refuse settings of ATOM's loader that the user has set for a dataset with its own.

    Raises:
        UserError: names the setting.
    """
    if plan.selection[Dataset].declaration.build is None:
        return
    for key, value in (("data.order", plan.run.data.order), ("data.ahead", plan.run.data.ahead)):
        if plan.run.given(key):
            raise UserError(
                "has no effect: this dataset has its own data loader", key=key, value=value
            )


def check_schedule(plan: Plan) -> None:
    """Refuse a schedule of batches for a dataset with its own loader, which reads equal batches.

    Raises:
        UserError: the dataset has its own loader.
    """
    if plan.run.training.batch_schedule and plan.selection[Dataset].declaration.build is not None:
        raise UserError(
            "the data loader of this dataset reads batches of one size",
            valid="[]",
            key="training.batch_schedule",
        )


def check_packing(plan: Plan) -> None:
    """Refuse another packing where the dataset's own loader packs.

    Raises:
        UserError: the dataset has its own loader.
    """
    packing = plan.run.data.packing
    if packing != "concat" and plan.selection[Dataset].declaration.build is not None:
        raise UserError(
            "the data loader of this dataset packs its data itself",
            valid="concat",
            key="data.packing",
            value=packing,
        )
