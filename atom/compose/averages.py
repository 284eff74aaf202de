"""Check a run with callbacks that average its weights."""

from __future__ import annotations

from atom.errors import UserError, nearest
from atom.plugin import Callback
from atom.recipe.run import Run
from atom.registry.host import Host


def averaging(run: Run, host: Host) -> list[str]:
    """Return the names of the callbacks of a run that average its weights."""
    found = []
    for kind, key, section in run.components():
        declaration = host.find(kind.kind, section.name, key=f"{key}.name").declaration
        if isinstance(declaration, Callback) and declaration.averages:
            found.append(key.partition(".")[2])
    return found


def check(run: Run, host: Host) -> None:
    """Refuse averages that nobody reads, and checkpoints kept by averages that do not exist.

    Raises:
        UserError: names the key.
    """
    names = averaging(run, host)
    best = run.checkpoint.keep_best_of
    if best is not None and "/" in best:
        valid = [*run.validation.names, *run.validation.averaged(names)]
        if best not in valid:
            raise UserError(
                f"{Callback.section}.{best.partition('/')[2]} averages no weights; "
                f"{nearest(best, valid)}",
                key="checkpoint.keep_best_of",
                value=best,
            )
    if names and not run.checkpoint.enable and not run.validation.names:
        raise UserError(
            "averages weights that are neither validated nor saved",
            valid="validation.sets, or checkpoint.enable=true",
            key=f"{Callback.section}.{names[0]}",
        )
    if names and run.checkpoint.engine.get("last_save_in_hf"):
        raise UserError(
            f"saves the last step without the weights that {Callback.section}.{names[0]} averages",
            valid="false, and `atom export` afterwards",
            key="checkpoint.last_save_in_hf",
            value=True,
        )
