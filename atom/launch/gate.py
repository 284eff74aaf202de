"""Hold forked ranks back until all of them have been forked."""

from __future__ import annotations

import os


class Gate:
    """A pipe without a writer: its read end reports EOF once every process has closed the write
    end.

    When a rank connects to the agent's store, threads of the agent start to work (the store
    resolves the rank's name). A process forked at that moment can inherit a locked mutex of the
    C library and hang forever. So no rank may proceed until the last one has been forked.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def open(self) -> None:
        """Open the gate, in the parent process, after all ranks have been forked."""
        os.close(self._write)
        os.close(self._read)

    def pass_through(self) -> None:
        """Wait, in a forked process, until the gate is open."""
        os.close(self._write)
        os.read(self._read, 1)
        os.close(self._read)
