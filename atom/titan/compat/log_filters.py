"""Filter log messages of torch and torchtitan that are not actionable for users."""

from __future__ import annotations

import logging


def hide_notes_for_developers() -> None:
    """Hide torch's warning about a call that torchao makes on import."""
    logging.getLogger("torch.utils._pytree").addFilter(_is_for_users)


def hide_step_lines() -> None:
    """Hide torchtitan's log line of a step's metrics; on thousands of ranks it would fill disks."""
    logging.getLogger().addFilter(_is_no_step_line)


def _is_for_users(record: logging.LogRecord) -> bool:
    return "Calling register_constant() on Enum subclasses is deprecated" not in record.getMessage()


def _is_no_step_line(record: logging.LogRecord) -> bool:
    """Return whether a record is not torchtitan's log line of a step's metrics."""
    return (record.module, record.funcName) != ("metrics", "log")
