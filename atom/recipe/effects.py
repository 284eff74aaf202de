"""Refuse settings that have no effect because of another setting of the same run.

Only a value that the user has set, and that differs from the default, is refused. Values from
ATOM's and plugins' files, and values that a sweep over layouts needs, are accepted.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from atom.errors import UserError, nearest, shown
from atom.recipe import defaults
from atom.recipe.effect_rules import RULES, Seen, Situation
from atom.recipe.run import COMMAND_LINE, DEGREES, Run
from atom.recipe.training_sections import RECOMPUTATION

_COMPILED = ("model", "loss")
_CHECKS = ("default", "none")
_KEY = re.compile(r"[a-z_]+(?:\.[a-z_]+)+")
_FIXED = {
    "checkpoint.folder": ("checkpoint", "the folder from which a run resumes"),
    # Restarted ranks would load that step again, even if a newer checkpoint exists.
    "checkpoint.load_step": (
        -1,
        "the newest; to resume from an older one, move newer checkpoints away",
    ),
}
_STATES = ("optimizer", "lr_scheduler", "dataloader", "random", "faults")
"""Parts of a checkpoint, other than weights and step, that resuming requires."""
_KNOWN = {
    "activation_checkpoint.mode": ("there is no such mode", RECOMPUTATION),
    "compile.components": ("there is no such part to compile", _COMPILED),
    "activation_checkpoint.determinism_check": ("there is no such check", _CHECKS),
    "checkpoint.exclude_from_loading": ("is not a state that can be excluded", _STATES),
}
"""Key -> message for an unknown name, and the known names."""
_CHOSEN = ("activation_checkpoint.mode", "auto")
"""What a strategy can choose."""
_REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "comm.mode": (
        ("fake_backend", "local_tensor"),
        "sends nothing between ranks, so nothing would be trained; valid: default, torchcomms, or "
        "dry_run=true to check a run without ranks",
    ),
    "checkpoint.create_seed_checkpoint": (
        (True,),
        "ignores the layout, and is not needed: initial weights are equal under every layout; "
        "valid: false",
    ),
    "checkpoint.initial_load_model_only": (
        (False,),
        "would load the position in the data of another run; valid: true, or resume.from=RUN@STEP",
    ),
    "debug.batch_invariant": ((True,), "does not support training; valid: false"),
}
"""Key -> refused values, and the reason."""


def composed(run: Run, *, chooses: bool) -> Situation:
    """Return what is known of a run before torch is imported.

    Args:
        run: the composed run.
        chooses: whether its strategy chooses the degrees that are not set.
    """
    given = run.parallelism.parameters
    usual = {} if chooses else {name: 1 for name in DEGREES if name != "data_parallel_shard_degree"}
    degrees = usual | {name: int(given[name]) for name in DEGREES if name in given}
    return Situation(
        degrees={name: degree for name, degree in degrees.items() if degree > 0},
        device=run.device if run.device in ("cpu", "cuda") else None,
    )


def check(run: Run, where: Situation, given: Callable[[str], str | None]) -> None:
    """Refuse user settings that have no effect.

    Args:
        run: a run with validated ranges.
        where: the machine and layout, as far as known.
        given: returns where the user has set a key, or None.

    Raises:
        UserError: names the first such key, and the setting that makes it ineffective.
    """
    _check_choices(run)
    seen = Seen(run, where)
    for keys, reason in RULES:
        why = reason(seen)
        for key in keys if why is not None else ():
            value, default = defaults.value(run, key), defaults.default(run, key)
            if value in (default, defaults.ATOMS.get(key, default)):
                continue
            origin = given(key)
            if origin is None or (origin != COMMAND_LINE and _typed(str(why), given)):
                continue
            raise UserError(
                f"has no effect {why}",
                valid=f"{shown(default) or 'empty'}, or leave it out",
                key=key,
                value=value,
            )


def _typed(why: str, given: Callable[[str], str | None]) -> bool:
    """Return whether a setting of the reason, or its group, was typed.

    Then the ineffective value comes from a file, and the command line overrides it on purpose."""
    keys = _KEY.findall(why)
    return any(COMMAND_LINE in (given(key), given(key.partition(".")[0])) for key in keys)


def _check_choices(run: Run) -> None:
    """Refuse values that torchtitan accepts but that train nothing, or something else."""
    for key, (words, known) in _KNOWN.items():
        value = defaults.value(run, key)
        for name in value if isinstance(value, list) else (value,):
            if name not in known and (key, name) != _CHOSEN:
                raise UserError(f"{words}; {nearest(str(name), known)}", key=key, value=name)
    if defaults.value(run, "compile.components") == [] and defaults.value(run, "compile.enable"):
        raise UserError(
            "nothing would be compiled",
            valid=f"some of {', '.join(_COMPILED)}, or compile.enable=false",
            key="compile.components",
            value="[]",
        )
    for key, (only, why) in _FIXED.items():
        if (value := defaults.value(run, key)) != only:
            raise UserError(f"is always {only}, {why}", key=key, value=value)
    for key, (values, why) in _REFUSED.items():
        if (value := defaults.value(run, key)) in values:
            raise UserError(why, key=key, value=value)
