from dataclasses import dataclass
from typing import Any

import torch
from torchtitan.components.dataloader import BaseDataLoader


class DocumentLoader(BaseDataLoader):
    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        source: Any
        seed: int
        global_batch_size: int

    def __init__(
        self,
        config,
        *,
        dp_world_size,
        dp_rank,
        tokenizer,
        seq_len,
        local_batch_size,
        snapshot_every_n_steps,
    ):
        n = config.global_batch_size // dp_world_size
        self.b = local_batch_size
        self.n = n
        self.L = seq_len
        self.c = config
        self.tok = tokenizer
        self.lanes = range(dp_rank * n, (dp_rank + 1) * n)
        self.state = {l: torch.zeros(3, dtype=torch.int64) for l in self.lanes}
        self.it = None

    def _lane(self, l):
        s = self.state[l]
        while True:
            buf = []
            for d in self.c.source.lane(
                l, self.c.global_batch_size, seed=self.c.seed, epoch=int(s[0]), start=int(s[1])
            ):
                t = self.tok.encode(d.text, add_bos=True, add_eos=True)
                o = int(s[2])
                while o + self.L + 1 <= len(t):
                    s[2] = o + self.L
                    yield t[o : o + self.L + 1]
                    o += self.L
                s[1] += 1
                s[2] = 0
            s[0] += 1
            s[1] = 0

    def __iter__(self):
        its = {l: self._lane(l) for l in self.lanes}
        while True:
            ls = list(self.lanes)
            for c in range(0, self.n, self.b):
                x = torch.tensor([next(its[l]) for l in ls[c : c + self.b]])
                yield (
                    {
                        "input": x[:, :-1].contiguous(),
                        "positions": torch.arange(self.L).expand(x.shape[0], -1).contiguous(),
                    },
                    x[:, 1:].contiguous(),
                )

    def state_dict(self):
        return {f"lane.{l}": s.clone() for l, s in self.state.items()}

    def load_state_dict(self, d):
        for l in self.state:
            self.state[l] = d[f"lane.{l}"]
