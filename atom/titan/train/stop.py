"""Agree among all ranks, at the same step, that the run must stop."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist


class StopRequest:
    """A stop request that all ranks observe at the same step.

    A signal reaches ranks at different times; a rank that stopped alone would leave the others
    waiting. Each check starts an all-reduce of one integer in the background and reads the result
    of the previous check, so no rank waits, and a stop takes one more step.
    """

    _asked: int = 0
    """The signal sent to this process, 0 for none."""

    def __init__(self) -> None:
        # On GPUs the default group's tensors are on the device, and reading one means waiting.
        gloo = dist.get_backend() == "gloo"
        self.group: Any = None if gloo else dist.new_group(backend="gloo")
        """A group of all ranks, for tensors on a CPU; None for the default group."""
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    @classmethod
    def listen(cls, *signals: signal.Signals) -> None:
        """Treat these signals as a request to stop."""

        def ask(number: int, _frame: FrameType | None) -> None:
            cls._asked = number

        for number in signals:
            signal.signal(number, ask)

    def agreed(self) -> str | None:
        """Return the name of the signal that all ranks have agreed on, or None."""
        result = self._result()
        asked = torch.tensor(self._asked, dtype=torch.int32)
        work = dist.all_reduce(asked, dist.ReduceOp.MAX, group=self.group, async_op=True)
        assert work is not None
        self._pending = (asked, work)
        return signal.Signals(result).name if result else None

    def close(self) -> None:
        """Wait for the pending all-reduce: a group must not be destroyed before it ends."""
        self._result()

    def _result(self) -> int:
        if self._pending is None:
            return 0
        (asked, work), self._pending = self._pending, None
        work.wait()
        return int(asked)
