"""Holds forked ranks back until all of them have been forked."""

from __future__ import annotations

import os


class Gate:
    """A pipe that nobody writes to: it ends when no process has its writing end open any more.

    A rank that connects to the agent's store sets threads of the agent to work (the store looks up
    the rank's name). A process forked at that moment may inherit a lock of the C library that is
    held for ever, and hang. So no rank may do anything until the last one is forked.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def open(self) -> None:
        """In the process that forks: all are forked."""
        os.close(self._write)
        os.close(self._read)

    def pass_through(self) -> None:
        """In a forked process: wait until all are."""
        os.close(self._write)
        os.read(self._read, 1)
        os.close(self._read)
