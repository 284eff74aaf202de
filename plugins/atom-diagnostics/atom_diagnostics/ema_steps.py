"""Check that an average of the weights has steps to average."""

from atom.errors import UserError
from atom.plugin import CallbackContext
from atom_diagnostics.config import Ema


def check(config: Ema, context: CallbackContext) -> None:
    """Refuse an average that begins at the end of the run, or has no update.

    Raises:
        UserError: with the parameter.
    """
    if config.start >= max(context.steps, 2):
        raise UserError(
            f"begins to average where the run ends: training.steps={context.steps}",
            valid=f"below {context.steps}",
            key=f"callbacks.{context.name}.start",
            value=config.start,
        )
    most = max(context.steps - config.start, 1)
    if config.interval > most:
        raise UserError(
            f"is longer than the run: training.steps={context.steps}, and "
            f"start={config.start}, so that nothing would be averaged",
            valid=f"at most {most}",
            key=f"callbacks.{context.name}.interval",
            value=config.interval,
        )
