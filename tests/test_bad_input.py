"""A user's mistake is one sentence: key, value, origin and what is valid. Exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from golden.record import Record

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mistake:
    """Overrides that are wrong, and what the sentence about them must hold."""

    overrides: tuple[str, ...]
    says: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


# Said within a second: no torch is needed to see them.
AT_ONCE = {
    "unknown option of a group": Mistake(
        ("architecture=llama3_tinny",),
        ("architecture=llama3_tinny", "command line", "llama3_tiny", "atom-llama"),
    ),
    "unknown option, nothing like it": Mistake(
        ("parallelism=qqq",), ("parallelism=qqq", "fsdp", "4d")
    ),
    "unknown section": Mistake(("trainig.steps=5",), ("trainig", "training", "command line")),
    "unknown bare key": Mistake(("devise=cpu",), ("devise=cpu", "device", "command line")),
    "unknown parameter of a component": Mistake(
        ("architecture.n_head=4",), ("architecture.n_head=4", "n_heads", "command line")
    ),
    "wrong type of a parameter": Mistake(
        ("architecture.dim=wide",), ("architecture.dim=wide", "whole number", "command line")
    ),
    "wrong type of a learning rate": Mistake(
        ("optimizer.lr=abc",), ("optimizer.lr=abc", "number", "command line")
    ),
    "negative learning rate": Mistake(
        ("optimizer.lr=-1",), ("optimizer.lr=-1", "greater than 0", "command line")
    ),
    "wrong type of torchtitan's": Mistake(
        ("training.steps=many",), ("training.steps=many", "whole number", "command line")
    ),
    "activation checkpointing": Mistake(
        ("activation_checkpoint.mode=some",),
        ("activation_checkpoint.mode=some", "selective", "command line"),
    ),
    "number of steps": Mistake(
        ("training.steps=0",), ("training.steps=0", "a whole number from 1")
    ),
    "device that is none": Mistake(("device=tpu",), ("device=tpu", "'cpu'", "command line")),
    "heads that do not divide the width": Mistake(
        ("architecture.n_heads=5",), ("dim=128", "n_heads=5")
    ),
    "no such component": Mistake(
        ("architecture.name=llama9",), ("architecture.name=llama9", "llama3", "command line")
    ),
    "missing data file": Mistake(
        ("dataset=local", "dataset.path=/no/such/file.txt"),
        ("dataset.path=/no/such/file.txt", "command line"),
    ),
    "empty dataset": Mistake(
        ("dataset=local", "dataset.path={tmp}/empty"), ("dataset.path", "command line")
    ),
    "record that is no JSON": Mistake(
        ("dataset=local", "dataset.path={tmp}/bad.jsonl"),
        ("bad.jsonl",),
        files={"bad.jsonl": '{"text": "good"}\n{"text": \n'},
    ),
    "field that no record has": Mistake(
        ("dataset=local", "dataset.path={tmp}/good.jsonl", "dataset.text_field=body"),
        ("body", "text"),
        files={"good.jsonl": '{"text": "good"}\n'},
    ),
    "tokenizer folder that is not there": Mistake(
        ("tokenizer=hf", "tokenizer.path=/no/such/folder"),
        ("tokenizer.path=/no/such/folder", "command line"),
    ),
    "vocabulary below its alphabet": Mistake(
        ("tokenizer=bpe", "tokenizer.vocab_size=100"),
        ("tokenizer.vocab_size=100", "command line"),
    ),
    "target to instantiate": Mistake(
        ("architecture._target_=os.system",), ("architecture._target_", "command line")
    ),
    "target in a file": Mistake(
        ("--config-dir", "{tmp}", "+experiment=hostile"),
        ("training._target_", "hostile.yaml"),
        files={
            "experiment/hostile.yaml": "# @package _global_\ntraining:\n  _target_: os.system\n"
        },
    ),
    "value from a file": Mistake(
        ("--config-dir", "{tmp}", "+experiment=mine"),
        ("optimizer.lr=fast", "mine.yaml", "number"),
        files={"experiment/mine.yaml": "# @package _global_\noptimizer:\n  lr: fast\n"},
    ),
    "override that cannot be parsed": Mistake(("training.steps=[1,",), ("training.steps",)),
    "interpolation to nowhere": Mistake(("training.steps=${nowhere}",), ("nowhere",)),
    "experiment that is not there": Mistake(
        ("+experiment=frist_run",), ("experiment=frist_run", "first_run", "command line")
    ),
    "run.dir that is a file": Mistake(
        ("run.dir={tmp}/file",), ("run.dir={tmp}/file", "command line"), files={"file": "x"}
    ),
    "run.dir with other things in it": Mistake(
        ("run.dir={tmp}/other",), ("run.dir={tmp}/other", "empty"), files={"other/x": "x"}
    ),
}

# torchtitan's own schema, or the model, is needed to see these.
WITH_TORCH = {
    "unknown key of torchtitan's": Mistake(
        ("training.stepz=5",), ("training.stepz=5", "steps", "command line")
    ),
    "heads by tensor parallelism": Mistake(
        ("parallelism=tp", "parallelism.tensor_parallel_degree=4"),
        ("parallelism.tensor_parallel_degree=4", "2 key and value heads", "command line"),
    ),
    "layers by pipeline": Mistake(
        ("parallelism=pp", "parallelism.pipeline_parallel_degree=16"),
        ("parallelism.pipeline_parallel_degree=16", "6 layers", "command line"),
    ),
    "sequence by context and tensor parallelism": Mistake(
        ("parallelism=4d", "training.seq_len=100"),
        ("training.seq_len=100", "multiple of 8", "command line"),
    ),
    "sequence beyond RoPE": Mistake(
        ("training.seq_len=16384",), ("training.seq_len=16384", "8192", "command line")
    ),
    "batch by data parallelism": Mistake(
        ("parallelism=fsdp", "launch.ranks=3"),
        ("training.global_batch_size=8", "multiple of 3", "train.yaml"),
    ),
    "not enough ranks": Mistake(
        ("parallelism=4d", "launch.ranks=4"), ("launch.ranks=4", "16 ranks", "command line")
    ),
    "two degrees of what is left": Mistake(
        ("parallelism=fsdp", "parallelism.tensor_parallel_degree=-1"),
        ("parallelism.tensor_parallel_degree=-1", "only one", "command line"),
    ),
    "pipeline schedule": Mistake(
        ("parallelism=pp", "parallelism.pipeline_parallel_schedule=2F2B"),
        ("parallelism.pipeline_parallel_schedule=2F2B", "1F1B", "GPipe", "command line"),
    ),
    "microbatches": Mistake(
        ("parallelism=pp", "parallelism.pipeline_parallel_microbatch_size=3"),
        ("parallelism.pipeline_parallel_microbatch_size=3", "8 sequences", "command line"),
    ),
    "tied embeddings in a pipeline": Mistake(
        ("parallelism=pp", "architecture.tie_embeddings=true"),
        ("parallelism.pipeline_parallel_degree=2", "ties its embeddings", "pp.yaml"),
    ),
    "vocabulary smaller than the tokenizer's": Mistake(
        ("tokenizer=bytes", "architecture.vocab_size=100"),
        ("architecture.vocab_size=100", "command line"),
    ),
    "kernel that does not fit": Mistake(
        ("kernels=flex", "device=cpu"), ("kernels.attention=flex", "needs cuda", "flex.yaml")
    ),
    "kernel that is not there": Mistake(
        ("kernels.attention=flexx",), ("kernels.attention=flexx", "flex", "command line")
    ),
    "operation that is not there": Mistake(
        ("kernels.atention=flex",), ("kernels.atention=flex", "attention", "command line")
    ),
    "unknown key without checkpointing": Mistake(
        ("activation_checkpoint.memory_budgt=0.5",),
        ("activation_checkpoint.memory_budgt=0.5", "did you mean memory_budget", "command line"),
    ),
    "optimizer": Mistake(
        ("optimizer.name=SGDW",), ("optimizer.name=SGDW", "AdamW", "command line")
    ),
    "moments in another dtype": Mistake(
        ("optimizer.state_dtype=bfloat16", "device=cpu"),
        ("optimizer.state_dtype=bfloat16", "GPU", "command line"),
    ),
    "device that is not here": Mistake(
        ("device=cuda",),
        ("device=cuda", "no CUDA device", "command line"),
        environment={"CUDA_VISIBLE_DEVICES": ""},
    ),
}


SENTENCES = Record("sentences")


def check(mistake: Mistake, atom: Callable, tmp_path: Path, name: str) -> None:
    for file, text in mistake.files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    (tmp_path / "empty").mkdir()
    work = tmp_path / "work"
    work.mkdir()
    overrides = [override.replace("{tmp}", str(tmp_path)) for override in mistake.overrides]
    result = atom("train", *overrides, cwd=work, **mistake.environment)
    said = result.stderr.strip()
    assert result.returncode == 2, said
    assert said.startswith("atom: "), said
    assert len(said.splitlines()) == 1, said
    for words in mistake.says:
        assert words.replace("{tmp}", str(tmp_path)) in said, said
    assert not list(work.iterdir()), "something was left behind"
    said = said.replace(str(tmp_path), "{tmp}").replace(str(ROOT), "{atom}")
    assert said == SENTENCES.value(name, said)


@pytest.mark.slow  # a table of commands: together they take seconds
@pytest.mark.parametrize("name", AT_ONCE)
def test_said_at_once(name: str, forked: Callable, tmp_path: Path) -> None:
    check(AT_ONCE[name], forked, tmp_path, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_TORCH)
def test_said_before_ranks_start(name: str, atom: Callable, tmp_path: Path) -> None:
    check(WITH_TORCH[name], atom, tmp_path, name)
