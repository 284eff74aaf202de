"""What a plugin warns of reaches the user: once, in one line that names the plugin."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from atom.io import notices
from atom.io.process import call
from atom.launch import announcements
from atom.run_dir import events, logs

LOUD = """
import logging, warnings

log = logging.getLogger(__name__)
for _ in range(2):
    log.warning("the licence ends\\nsoon")
    warnings.warn("two of these are one", stacklevel=1)
log.info("nobody needs this")
logging.getLogger("some.library").warning("noise of a library")
"""


@pytest.mark.parametrize("command", [("plugins",), ("train", "--cfg", "job"), ("kernels",)])
def test_a_plugin_warns(
    command: tuple[str, ...], forked: Any, install: Callable[..., Path], tmp_path: Path
) -> None:
    site = install("loud", {"__init__.py": LOUD})
    result = forked(*command, cwd=tmp_path, PYTHONPATH=str(site))
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines() == [
        "atom: loud: the licence ends soon",
        "atom: loud: two of these are one",
    ]


def test_a_rank_warns(tmp_path: Path) -> None:
    """Rank 0's warnings are events of the run, which the screen shows; all are logged."""

    def warn() -> None:
        notices.know(["loud"])
        for rank in (0, 1):
            logs.setup_rank(tmp_path / "logs", rank)
            for _ in range(2):
                logging.getLogger("loud.build").warning("slow %s", rank)
            logging.getLogger("some.library").warning("noise")

    (tmp_path / "logs").mkdir()
    call(warn)
    told = [e["text"] for e in events.read(tmp_path) if e["event"] == events.WARNED]
    assert told == ["loud: slow 0"]
    assert [announcements.told(e) for e in events.read(tmp_path)] == told
    for rank in (0, 1):
        assert (tmp_path / f"logs/rank_{rank}.jsonl").read_text().count(f"slow {rank}") == 2


@pytest.mark.slow
def test_what_is_prepared_warns_once(atom: Any, tmp_path: Path) -> None:
    """``hf`` warns as it is prepared, beside what a library says."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    (tmp_path / "made").mkdir()
    tokenizer.save(str(tmp_path / "made/tokenizer.json"))
    options = (
        "tokenizer=hf", "tokenizer.path=made", "run.dir=run", "architecture=llama3_tiny",
        "architecture.dim=64", "architecture.n_layers=2", "training.seq_len=64",
        "training.global_batch_size=4", "training.steps=1", "device=cpu", "metrics=none",
        "checkpoint.enable=false",
    )  # fmt: skip
    result = atom("train", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("no eos_token") == 1
    assert [line for line in result.stderr.splitlines() if "atom: " in line] == [
        "atom: atom_tokenizers: made has no eos_token (tokenizer_config.json): nothing will mark "
        "the end of a document"
    ]
