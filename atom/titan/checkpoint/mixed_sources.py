"""Prepare a data loader for a checkpoint of a mixture with other sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from atom.data.lanes import ALONE
from atom.run_dir import mixture
from atom.run_dir.folder import RUN_FILE


@runtime_checkable
class HasSources(Protocol):
    """The data loader of documents: see :class:`atom.titan.train.data.DocumentLoader`."""

    sources: tuple[str, ...]

    def expect(self, sources: Sequence[str], step: int) -> None: ...

    def expect_cursor(self, there: bool) -> None: ...

    def begin(self, step: int) -> None: ...


def prepare(loader: HasSources, place: Path, step: int, *, loaded: bool) -> None:
    """Prepare the loader for the sources of a checkpoint.

    Args:
        loader: the loader of the run that resumes.
        place: the checkpoint, with the ``run.yaml`` of its run.
        step: its step.
        loaded: whether the loader's state is loaded from it; otherwise its data begins anew.
    """
    sources = tuple(mixture.saved_sources(place / RUN_FILE)) or ALONE
    if not loaded:
        loader.begin(step)
    elif sources != loader.sources:
        loader.expect(sources, step)
