"""Learn, on all ranks at the same step, that a run was asked to stop."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist


class StopRequest:
    """Whether any rank was asked to stop, agreed on by all at the same step.

    A signal reaches ranks at different times; a rank that stopped by itself would leave the others
    waiting for it. Each look starts a reduction of one integer in the background and takes the
    result of the look before, so that nobody waits, and a stop takes one step more.
    """

    _asked: int = 0
    """The signal that this process was sent, 0 for none."""

    def __init__(self) -> None:
        # On GPUs the default group's tensors are on the device, where reading one means waiting.
        gloo = dist.get_backend() == "gloo"
        self.group: Any = None if gloo else dist.new_group(backend="gloo")
        """Of all ranks, for tensors on a CPU."""
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    @classmethod
    def listen(cls, *signals: signal.Signals) -> None:
        """Take these signals for a request to stop."""

        def ask(number: int, _frame: FrameType | None) -> None:
            cls._asked = number

        for number in signals:
            signal.signal(number, ask)

    def agreed(self) -> str | None:
        """Return the name of the signal that all ranks know of by now, or None."""
        result = self._result()
        asked = torch.tensor(self._asked, dtype=torch.int32)
        work = dist.all_reduce(asked, dist.ReduceOp.MAX, group=self.group, async_op=True)
        assert work is not None
        self._pending = (asked, work)
        return signal.Signals(result).name if result else None

    def close(self) -> None:
        """Wait for what is under way: a group must not be destroyed before."""
        self._result()

    def _result(self) -> int:
        if self._pending is None:
            return 0
        (asked, work), self._pending = self._pending, None
        work.wait()
        return int(asked)
