"""Save the states of random number generators."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.stateful import Stateful


class RandomState(Stateful):
    """The states of this rank's random number generators, under a key with the rank's number."""

    @staticmethod
    def key() -> str:
        return f"rank_{dist.get_rank()}"

    def state_dict(self) -> dict[str, Any]:
        state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_initialized():
            state["cuda"] = torch.cuda.get_rng_state()
        return {self.key(): state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = state_dict[self.key()]
        torch.set_rng_state(state["cpu"])
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"])
