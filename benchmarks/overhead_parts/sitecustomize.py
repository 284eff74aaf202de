"""Count the Python calls of a rank's training steps; Python imports this file at its start.

``overhead.py --calls`` puts this folder on the path of both trainers. The count does not depend on
the load of the machine, as times do: what ATOM does more than torchtitan is visible to a call.
"""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from types import FrameType

STEP = "train_step"
"""Method of both trainers, called once per step."""

LAST = 10
"""Step at whose beginning the counts are written."""

calls = 0
counts: list[int] = []


def count(frame: FrameType, event: str, _: object) -> None:
    """Count one call of a Python function; write the counts at the begin of the last step."""
    global calls
    if event != "call":
        return
    calls += 1
    if frame.f_code.co_name == STEP:
        counts.append(calls)
        if len(counts) == LAST:
            sys.setprofile(None)
            with open(f"{os.environ['COUNTED']}.{os.getpid()}", "w") as file:  # noqa: PTH123
                file.write("\n".join(str(b - a) for a, b in pairwise(counts)))


if "COUNTED" in os.environ:
    sys.setprofile(count)
