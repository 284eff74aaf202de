"""Prepare one text with one tool on one core, and count the tokens that it has written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from corpus import EOS, Corpus

DATATROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer

folder, name, tokenizer, eos, out, logs = sys.argv[1:]
reader = JsonlReader(folder, glob_pattern=name)
writer = DocumentTokenizer(
    out, tokenizer_name_or_path=tokenizer, eos_token=eos, shuffle_documents=False, save_index=True
)
LocalPipelineExecutor([reader, writer], tasks=1, workers=1, logging_dir=logs).run()
"""


def command(tool: str, python: Path, corpus: Corpus, text: Path, out: Path) -> list[str]:
    """Return the command of a tool: text in, token files in ``out``."""
    tokenizer = corpus.tokenizer / "tokenizer.json"
    if tool == "atom":
        return [
            *(sys.executable, "-m", "atom", "data", "prepare", "dataset=local"),
            *(f"dataset.path={text}", "tokenizer=hf", f"tokenizer.path={corpus.tokenizer}"),
            *("--workers", "1", "--out", str(out)),
        ]
    if tool == "datatrove":
        return [
            *(str(python), "-c", DATATROVE, str(text.parent), text.name, str(tokenizer), EOS),
            *(str(out), f"{out}-logs"),
        ]
    legacy(tokenizer, out.with_name("tokenizer.json"))
    return [
        *(str(python), "-m", "dolma.cli", "tokens", "--documents", str(text)),
        *("--destination", str(out), "--tokenizer.name_or_path"),
        str(out.with_name("tokenizer.json")),
        *("--tokenizer.eos_token_id", str(corpus.eos), "--tokenizer.pad_token_id"),
        *(str(corpus.eos), "--dtype", "uint16", "--processes", "1"),
    ]


def legacy(tokenizer: Path, path: Path) -> None:
    """Write a tokenizer as ``tokenizers`` below 0.20 reads it: with merges as texts, not pairs."""
    found = json.loads(tokenizer.read_text())
    found["model"]["merges"] = [" ".join(pair) for pair in found["model"]["merges"]]
    path.write_text(json.dumps(found))


def written(tool: str, out: Path) -> int:
    """Return the number of tokens of 2 bytes in a tool's output."""
    pattern = {"atom": "*.tokens", "datatrove": "*.ds", "dolma": "*.npy"}[tool]
    return sum(path.stat().st_size for path in out.rglob(pattern)) // 2


def measure(tool: str, python: Path, corpus: Corpus, text: Path, scratch: Path) -> dict[str, float]:
    """Return tokens, seconds and processor seconds of a whole command, without any cache."""
    shutil.rmtree(scratch, ignore_errors=True)
    out = scratch / "out"
    scratch.mkdir(parents=True)
    core = max(os.sched_getaffinity(0))
    variables = {
        "ATOM_CACHE": str(scratch / "cache"),
        "HF_HOME": str(scratch / "hub"),
        "OMP_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        ["taskset", "-c", str(core), *command(tool, python, corpus, text, out)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{tool}: {(done.stdout + done.stderr)[-2000:]}")
    tokens = written(tool, out)
    shutil.rmtree(scratch)
    return {
        "tokens": tokens,
        "seconds": seconds,
        "processor": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }
