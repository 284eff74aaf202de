"""Check constraints between the sections of a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from atom.errors import UserError, nearest
from atom.plan.device import is_file as is_device_file
from atom.plan.device import names as device_names
from atom.recipe import ranges
from atom.recipe.defaults import ENGINE
from atom.recipe.training_sections import SECTIONS, Training
from atom.recipe.validation import unknown, validated

if TYPE_CHECKING:
    from atom.recipe.run import Run
    from atom.recipe.sections import Launcher, Section

_PLACE = re.compile(r"(.*_)?(folder|file|file_prefix)")
"""Keys of torchtitan's sections that name a path in the run folder for output."""


def counted_in_tokens(sections: Section) -> Section:
    """Return the sections of a run without ``global_batch_size: null`` if the batch is set in
    tokens.
    """
    batch, training = sections.get("batch"), sections.get("training")
    if not isinstance(batch, dict) or not isinstance(training, dict):
        return sections
    if batch.get("tokens") is None or training.get("global_batch_size", 0) is not None:
        return sections
    rest = {name: value for name, value in training.items() if name != "global_batch_size"}
    return sections | {"training": rest}


def in_sequences(tokens: int, training: Training) -> Training:
    """Return the section with ``global_batch_size`` set to the number of sequences in ``tokens``.

    Raises:
        UserError: it is not a whole number, or differs from the section's ``global_batch_size``.
    """
    length, given = training.seq_len, training.said.get("global_batch_size")
    if tokens % length:
        raise UserError(
            f"must be a multiple of training.seq_len {length}", key="batch.tokens", value=tokens
        )
    sequences = tokens // length
    if given not in (None, sequences):
        raise UserError(
            f"batch.tokens {tokens} makes {sequences} sequences of {length}",
            valid="null (which batch=tokens sets), or batch.tokens=null to count in sequences",
            key="training.global_batch_size",
            value=given,
        )
    return training.updated({"global_batch_size": sequences})


def dry_run(run: Run) -> None:
    """Refuse settings that only a dry run supports: an absent device, or any number of ranks."""
    known = ("auto", "cpu", "cuda")
    if run.device not in (*known, *device_names()) and not is_device_file(run.device):
        described = ", ".join([*device_names(), "FILE.yaml"])
        raise UserError(
            "there is no such device",
            valid=f"{', '.join(map(repr, known))}, and with dry_run=true {described}",
            key="device",
            value=run.device,
        )
    if not run.dry_run and run.device not in known:
        raise UserError(
            "describes a device for dry_run=true",
            valid="auto, cpu, cuda",
            key="device",
            value=run.device,
        )
    if not run.dry_run and run.world_size is not None:
        raise UserError(
            "applies only to dry_run=true; launch.ranks sets the ranks of a run",
            key="world_size",
            value=run.world_size,
        )


def launcher(section: Launcher) -> None:
    """Refuse launcher parameters without a launcher plugin, since a local run would ignore them."""
    if section.name is not None:
        return
    defaults = type(section)().model_dump()
    for name, value in section.model_dump().items():
        if name not in defaults:
            raise UserError(
                f"{name} is no key of launcher=local; {nearest(name, defaults)}",
                key=f"launcher.{name}",
                value=value,
            )
        if value != defaults[name]:
            raise UserError(
                "applies only to remote launchers, and launcher=local starts the ranks on this "
                "machine; leave it out, or choose another launcher",
                key=f"launcher.{name}",
                value=value,
            )


def best(run: Run) -> None:
    """Refuse to keep checkpoints by loss if none of their steps logs a loss."""
    kept, interval = run.checkpoint.keep_best, run.checkpoint.interval
    logged = run.metrics.log_freq
    if kept and run.checkpoint.keep_best_of is None and logged > interval:
        raise UserError(
            f"leaves checkpoints (checkpoint.interval={interval}) without a loss that "
            f"checkpoint.keep_best={kept} could compare",
            valid=f"{interval} or fewer",
            key="metrics.log_freq",
            value=logged,
        )


def engine_keys(name: str, section: object) -> None:
    """Refuse a key that is neither ATOM's own nor the engine's."""
    own = SECTIONS[name].model_fields if name in SECTIONS else ()
    known = {*own, *(key.partition(".")[2] for key in ENGINE if key.startswith(f"{name}."))}
    for key, value in section.items() if isinstance(section, dict) else ():
        if key not in known:
            raise unknown([name, str(key)], value, known)


def section(name: str, values: Section) -> None:
    """Refuse unknown keys and wrong values in one of :data:`SECTIONS`, apart from a whole run."""
    engine_keys(name, values)
    ranges.check({name: values})
    model = SECTIONS[name]
    validated(TypeAdapter(model), values, key=name, fields=model.model_fields)


def places(name: str, section: object) -> None:
    """Refuse an output path outside of the run folder, because no command looks there."""
    for key, value in section.items() if isinstance(section, dict) else ():
        if not _PLACE.fullmatch(key) or not isinstance(value, str):
            continue
        if Path(value).is_absolute() or ".." in Path(value).parts:
            raise UserError(
                "must be inside the run folder",
                valid="a relative path without ..",
                key=f"{name}.{key}",
                value=value,
            )
