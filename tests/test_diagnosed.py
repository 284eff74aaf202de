"""A router, a layer and an attention that are broken on purpose are named, by the real command."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

Command = Callable[..., subprocess.CompletedProcess[str]]

BREAKS = {
    "__init__.py": """
from atom.plugin import Callback, hookimpl

@hookimpl
def atom_callbacks():
    yield Callback(
        name="breaks",
        summary="breaks three layers before a step",
        config="breaks.code:Config",
        callback="breaks.code:callback",
        observes=False,
    )
""",
    "code.py": """
from pydantic import BaseModel
from atom.plugin import TrainerCallback

class Config(BaseModel):
    step: int = 6

def callback(config, context):
    return Breaks(config.step)

class Breaks(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def before_step(self, training):
        if training.step == self.step:
            (model,) = training.model_parts
            for name, parameter in model.named_parameters():
                if name == "layers.1.moe.router.gate.weight":
                    parameter.zero_()
                elif name == "layers.2.attention.q_norm.weight":
                    parameter.mul_(100)
                elif name == "layers.3.attention.wo.weight":
                    parameter.mul_(1000)
""",
    "conf/callbacks/breaks.yaml": "breaks:\n  name: breaks\n  step: 6\n",
}
RUN = (
    *("train", "architecture=qwen3_tiny_moe", "architecture.dim=64", "tokenizer=bytes"),
    *("architecture.moe_hidden_dim=32", "parallelism=fsdp", "launch.ranks=2", "device=cpu"),
    *("training.seq_len=64", "training.global_batch_size=4", "training.steps=7", "metrics=none"),
    *("checkpoint.enable=false", "callbacks=[breaks,norms,experts,attention]"),
    *("callbacks.norms.interval=1", "callbacks.norms.alert={}"),
    *("callbacks.experts.interval=1", "callbacks.experts.alert={}"),
    *("callbacks.attention.interval=1", "callbacks.attention.alert={}"),
)


def test_what_is_broken_is_named(
    atom: Command, install: Callable[..., Path], tmp_path: Path
) -> None:
    site = install("breaks", BREAKS)
    done = atom(*RUN, "run.dir=broken", cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (tmp_path / "broken/events.jsonl").open()]
    alerts = [event for event in events if event["event"] == "alert"]
    assert {event["step"] for event in alerts} == {6}
    told = {event["callback"]: event["reason"] for event in reversed(alerts)}
    assert told["experts"] == "6 of 8 experts of layers.1 get no token"
    assert told["attention"].startswith("attention logit above 100: layers.2 (")
    by_norms = [event["reason"] for event in alerts if event["callback"] == "norms"]
    assert by_norms[0].startswith("output runs away: layers.3 (")
    for event in alerts:
        assert event["reason"] in done.stdout
