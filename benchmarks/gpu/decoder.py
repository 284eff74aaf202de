"""Train a decoder on one device with other kernels, side by side, without torchtitan.

    python benchmarks/gpu/decoder.py --device cuda --within 100 --write one_gpu.json

The decoder is written here, of the functions that kernels declare: RMSNorm, RoPE, SwiGLU's gate,
and output layer with loss. Its products, attention and optimizer are torch's, the same throughout.
Every variant trains on the same batch from the same weights in a process of its own, so that one
that ends its process costs no other. The file is written after each.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from atom.bench.subjects import REFERENCE, chosen, situation
from atom.io import json_data
from atom.io.files import write_json
from atom.kernels.choose import misfit
from atom.registry.host import Host, resolve
from atom.titan.compat import device
from atom.titan.contracts.functions import FUNCTIONS
from atom.titan.contracts.sizes import Sizes

LEAST = 20.0
"""The shortest limit of a variant, in seconds. Each may take half of the time that is left."""

FUNCTION_NAMES = ("rms_norm", "rope_halves", "silu_mul", "linear_cross_entropy")
EPS = 1e-5


@dataclass(frozen=True)
class Shape:
    """A decoder, and how it is trained. ``warm`` steps are not timed."""

    sizes: Sizes
    layers: int
    dtype: str
    warm: int
    steps: int


SHAPES = {
    # Llama 3.2 1B.
    "cuda": Shape(
        Sizes(
            batch=2, length=4096, n_heads=32, n_kv_heads=8, head_dim=64, hidden_dim=8192,
            vocab_size=128256,
        ),
        layers=16, dtype="bfloat16", warm=3, steps=10,
    ),
    "cpu": Shape(Sizes(batch=1, length=8), layers=1, dtype="float32", warm=1, steps=2),
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """The kernels of a run: ``kernel`` for ``functions``, the references for the others."""

    name: str
    kernel: str = REFERENCE
    functions: tuple[str, ...] = FUNCTION_NAMES
    compiled: bool = False


VARIANTS = (
    Variant("reference"),
    Variant("triton", "triton"),
    Variant("reference, compiled", compiled=True),
    Variant("triton, compiled", "triton", compiled=True),
    Variant("liger", "liger"),
    *(Variant(f"triton {name}", "triton", (name,)) for name in FUNCTION_NAMES),
)


class Decoder(torch.nn.Module):
    """Layers as Llama has them, of the functions given."""

    def __init__(self, shape: Shape, functions: dict[str, Callable[..., Any]], compiled: bool):
        super().__init__()
        self.sizes, self.functions = shape.sizes, functions
        sizes, dim = shape.sizes, shape.sizes.dim
        kv = sizes.n_kv_heads * sizes.head_dim
        widths = {
            "wq": (dim, dim), "wk": (kv, dim), "wv": (kv, dim), "wo": (dim, dim),
            "w1": (sizes.hidden_dim, dim), "w2": (dim, sizes.hidden_dim),
            "w3": (sizes.hidden_dim, dim),
        }  # fmt: skip
        dtype = getattr(torch, shape.dtype)

        def weight(*size: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(0.02 * torch.randn(size, dtype=dtype))

        def ones() -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.ones(dim, dtype=dtype))

        self.embedding, self.head = weight(sizes.vocab_size, dim), weight(sizes.vocab_size, dim)
        self.last_norm = ones()
        self.layers = torch.nn.ModuleList(
            torch.nn.ParameterDict(
                {name: weight(*size) for name, size in widths.items()}
                | {"attention_norm": ones(), "feed_forward_norm": ones()}
            )
            for _ in range(shape.layers)
        )
        self.layer = torch.compile(self._layer, dynamic=False) if compiled else self._layer

    def forward(self, ids_BL: torch.Tensor, labels_R: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of the tokens."""
        others = FUNCTIONS["rope_halves"].others(self.sizes, ids_BL.device)
        x_BLD = F.embedding(ids_BL, self.embedding)
        weights: Any
        for weights in self.layers:
            x_BLD = self.layer(x_BLD, *others, **weights)
        x_RD = self.functions["rms_norm"](x_BLD, self.last_norm, EPS).flatten(0, 1)
        loss: torch.Tensor = self.functions["linear_cross_entropy"](x_RD, self.head, labels_R)
        return loss / labels_R.numel()

    def _layer(
        self, x_BLD: torch.Tensor, cache: torch.Tensor, positions_BL: torch.Tensor, **w: Any
    ) -> torch.Tensor:
        norm, sizes = self.functions["rms_norm"], self.sizes
        h_BLD = norm(x_BLD, w["attention_norm"], EPS)
        q, k, v = (
            F.linear(h_BLD, w[name]).unflatten(-1, (-1, sizes.head_dim))
            for name in ("wq", "wk", "wv")
        )
        q, k = self.functions["rope_halves"](q, k, cache, positions_BL)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x_BLD = x_BLD + F.linear(attended.transpose(1, 2).flatten(-2), w["wo"])
        h_BLD = norm(x_BLD, w["feed_forward_norm"], EPS)
        h_BLF = self.functions["silu_mul"](F.linear(h_BLD, w["w1"]), F.linear(h_BLD, w["w3"]))
        return x_BLD + F.linear(h_BLF, w["w2"])


class UnfitError(Exception):
    """A kernel does not fit this device."""


def functions_of(variant: Variant, kind: str, shape: Shape) -> dict[str, Callable[..., Any]]:
    """Return the functions of a variant.

    Raises:
        UnfitError: a kernel does not fit this device.
    """
    host, found = Host.load(), {}
    where = situation(device.describe(kind), shape.dtype, shape.sizes)
    for name in FUNCTION_NAMES:
        kernel = variant.kernel if name in variant.functions else REFERENCE
        for subject in chosen(host, [name], [kernel]):
            if (subject.function, subject.kernel.name) == (name, kernel):
                if reason := misfit(subject.kernel, where):
                    raise UnfitError(f"{name}/{kernel} {reason}")
                assert subject.reference is not None
                found[name] = resolve(subject.reference, subject.component)
    return found


def train(variant: Variant, kind: str) -> dict[str, Any]:
    """Train on one batch; return speed, memory and losses."""
    shape, cuda = SHAPES[kind], kind == "cuda"
    functions = functions_of(variant, kind, shape)
    torch.manual_seed(0)
    with torch.device(kind):
        model = Decoder(shape, functions, variant.compiled)
        ids_BL = torch.randint(shape.sizes.vocab_size, (shape.sizes.batch, shape.sizes.length))
    labels_R = ids_BL.roll(-1, dims=1).flatten()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=cuda)
    losses, seconds = [], []
    for step in range(shape.warm + shape.steps):
        began = time.perf_counter()
        loss = model(ids_BL, labels_R)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())  # waits for the device, as a trainer that logs does
        if cuda:
            torch.cuda.synchronize()
        if step >= shape.warm:
            seconds.append(time.perf_counter() - began)
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {
        "parameters": sum(each.numel() for each in model.parameters()),
        "tokens_per_second": shape.sizes.rows / median,
        "seconds": {"median": median, "low": low, "high": high},
        "peak_memory": torch.cuda.max_memory_allocated() if cuda else None,
        "losses": losses,
    }


def measured(n: int, kind: str, limit: float) -> dict[str, Any]:
    """Train a variant in a process of its own; return its row."""
    row: dict[str, Any] = {"kernels": VARIANTS[n].name}
    command = [sys.executable, "-P", __file__, f"--device={kind}", f"--variant={n}"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return row | {"reason": f"stopped after {limit:.0f} s", "failed": True}
    if done.returncode:
        return row | {"reason": f"ended with exit code {done.returncode}", "failed": True}
    found: dict[str, Any] = json_data.loads(done.stdout.splitlines()[-1])
    return row | found


def compared(row: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """Return the row with its speed and its losses beside those of the first."""
    if "losses" not in row or "losses" not in first:
        return row
    differences = [abs(a - b) for a, b in zip(row["losses"], first["losses"], strict=True)]
    return row | {
        "speedup": row["tokens_per_second"] / first["tokens_per_second"],
        "largest_difference": max(differences),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--within", type=float, default=math.inf, help="seconds")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--variant", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    kind = device.pick(options.device)
    if options.variant is not None:
        try:
            found = train(VARIANTS[options.variant], kind)
        except UnfitError as error:
            found = {"reason": str(error)}
        print(json_data.dumps(found))
        return 0
    until = time.monotonic() + min(options.within, 24 * 3600)
    rows: list[dict[str, Any]] = []
    for n, variant in enumerate(VARIANTS):
        left = until - time.monotonic()
        if left > 0:
            row = measured(n, kind, max(left / 2, min(left, LEAST)))
        else:
            row = {"kernels": variant.name, "reason": "the time given was over"}
        rows.append(compared(row, rows[0] if rows else row))
        print(rows[-1], flush=True)
        if options.write is not None:
            write_json(options.write, {"shape": asdict(SHAPES[kind]), "rows": rows})
    return 1 if any(row.get("failed") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
