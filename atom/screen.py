import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Header:
    run_dir: str
    model: str
    parameters: int
    tokenizer: str
    vocab_size: int
    dataset: str
    device: str
    ranks: int
    layout: Any
    schedule: Any
    batch: str
    steps: int
    kernels: Any
    resumed_from: Any


class Screen:
    def __init__(self, stream=sys.stdout, verbose=False):
        self.s = stream

    def header(self, h):
        print(h, file=self.s, flush=True)

    def starting(self, t, steps=None):
        print(t, file=self.s, flush=True)

    def step(self, m):
        print(m, file=self.s, flush=True)

    def summary(self, ms, d, s):
        print("summary", len(ms), d, s, file=self.s)

    def close(self):
        pass
