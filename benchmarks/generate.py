"""Compare the rates of generation and scoring with those of ``transformers``, on the same weights.

    python benchmarks/generate.py [--architectures llama3_tiny …] [--pairs 5] [--write FILE.md]

Each architecture is trained for one step and exported. ATOM and ``transformers`` then load the
export, generate greedily, and score sequences, alternately and in one process with one thread.
Times are processor seconds, which other load on the machine disturbs less than the clock. Their
tokens must be the same. The command is timed by the clock and by the processor, with all of its
imports.

Shape suffixes: B = sequences, L = tokens of each, V = vocabulary.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

PROMPT, TOKENS, SCORED = 16, 128, 256
BATCHES = (1, 8)


def command(*arguments: str, cwd: Path) -> tuple[float, float]:
    """Run ``atom …``; return its seconds by the clock and by the processor."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "atom", *arguments], cwd=cwd, check=True, stdout=subprocess.DEVNULL
    )
    clock, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def export(architecture: str, below: Path) -> Path:
    """Train a run for one step; return the folder of its export."""
    run = below / architecture
    command(
        "train",
        f"architecture={architecture}",
        "tokenizer=bytes",
        "training.seq_len=256",
        "training.global_batch_size=4",
        "training.steps=1",
        "device=cpu",
        "metrics=none",
        f"run.dir={run}",
        cwd=below,
    )
    out = below / f"{architecture}-export"
    command("export", str(run), "--to", "hf", "--out", str(out), cwd=below)
    return out


def paired(sides: dict[str, Callable[[], Any]], pairs: int) -> dict[str, list[float]]:
    """Return the processor seconds of each side, called alternately."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for pair in range(pairs + 1):
        for name, call in sorted(sides.items(), reverse=bool(pair % 2)):
            begin = time.process_time()
            call()
            if pair:  # the first call of each fills caches
                seconds[name].append(time.process_time() - begin)
    return seconds


def row(what: str, tokens: int, seconds: dict[str, list[float]]) -> str:
    """Return a row of the table."""
    ratios = sorted(
        theirs / ours for ours, theirs in zip(seconds["atom"], seconds["other"], strict=True)
    )
    rates = {name: tokens / statistics.median(values) for name, values in seconds.items()}
    line = (
        f"| {what} | {rates['other']:,.0f} | {rates['atom']:,.0f} "
        f"| {statistics.median(ratios):.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} |"
    )
    print(line, flush=True)
    return line


def measure(architecture: str, folder: Path, pairs: int) -> list[str]:
    """Return the rows of an architecture."""
    import torch

    # Where transformers finds fla, it takes kernels that need a GPU, on any device.
    sys.modules["fla"] = None  # type: ignore[assignment]
    importlib.import_module("transformers.models.qwen3_5.modeling_qwen3_5")
    del sys.modules["fla"]
    import transformers

    from atom.titan.generation.generate import generate
    from atom.titan.generation.generator import Generator
    from atom.titan.weights.forward import logits

    ours: Any = Generator(folder, step=None, kind="cpu").model
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    theirs.generation_config.eos_token_id = None
    rows = []
    for batch in BATCHES:
        prompts_BL = torch.randint(256, (batch, PROMPT), generator=torch.Generator().manual_seed(0))

        def other(ids_BL: torch.Tensor = prompts_BL) -> list[list[int]]:
            with torch.inference_mode():
                made = theirs.generate(
                    ids_BL,
                    attention_mask=torch.ones_like(ids_BL),
                    max_new_tokens=TOKENS,
                    do_sample=False,
                )
            found: list[list[int]] = made[:, PROMPT:].tolist()
            return found

        def atom(ids_BL: torch.Tensor = prompts_BL) -> list[list[int]]:
            return generate(ours, ids_BL.tolist(), tokens=TOKENS)

        if atom() != other():
            raise SystemExit(f"{architecture}: other tokens than those of transformers")
        seconds = paired({"atom": atom, "other": other}, pairs)
        what = f"{architecture}: generate {TOKENS} tokens, {batch} text{'s' * (batch > 1)}"
        rows.append(row(what, batch * TOKENS, seconds))
    ids_BL = torch.randint(256, (8, SCORED), generator=torch.Generator().manual_seed(1))
    positions_BL = torch.arange(SCORED).expand(8, -1).contiguous()

    def score(forward: Callable[[], torch.Tensor]) -> torch.Tensor:
        with torch.inference_mode():
            logprobs_BLV = forward()[:, :-1].float().log_softmax(dim=-1)
            return logprobs_BLV.gather(-1, ids_BL[:, 1:, None]).sum(dim=(1, 2))

    scored = {
        "atom": lambda: score(lambda: logits(ours, ids_BL, positions_BL)),
        "other": lambda: score(lambda: theirs(ids_BL, use_cache=False).logits),
    }
    difference = (scored["atom"]() - scored["other"]()).abs().max().item()
    rows.append(
        row(f"{architecture}: score 8 x {SCORED} tokens", 8 * SCORED, paired(scored, pairs))
    )
    print(f"{architecture}: log-likelihoods differ by {difference:.1g} at the most", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", nargs="+", default=["llama3_tiny"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        below = Path(name)
        folders = {each: export(each, below) for each in options.architectures}
        told = ("generate", str(folders[options.architectures[0]]), "def", "--tokens", str(TOKENS))
        clock, processor = min(command(*told, cwd=below) for _ in range(3))
        from atom.titan.boot import boot

        boot("cpu")
        import torch

        torch.set_num_threads(1)
        rows = [
            line
            for architecture, folder in folders.items()
            for line in measure(architecture, folder, options.pairs)
        ]
    import transformers

    table = "\n".join(rows)
    page = f"""# Generation and scoring

`python benchmarks/generate.py --architectures {" ".join(options.architectures)} --pairs \
{options.pairs}`, {date.today()}, torch {torch.__version__}, transformers \
{transformers.__version__}, {platform.processor() or platform.machine()}, \
{len(os.sched_getaffinity(0))} cores, one thread, no GPU. Tokens per processor second, in float32, \
on the same weights.

| | transformers | ATOM | ATOM / transformers, median | least to most |
| --- | ---: | ---: | ---: | ---: |
{table}

The generated tokens are the same. `atom generate` of {TOKENS} tokens with \
{options.architectures[0]} takes {clock:.1f} s by the clock and {processor:.1f} s of the \
processor, all told (best of 3), at a load average of {os.getloadavg()[0]:.0f}.
"""
    print(page)
    if options.write:
        options.write.write_text(page)


if __name__ == "__main__":
    main()
