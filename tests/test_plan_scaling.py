"""From a budget to a model: scaling laws, rules and ladders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from planted import PLANTED

from atom.errors import UserError
from atom.plan import budget, scaling
from atom.plan.device import named as device
from atom.plan.hyperparameters import RULES
from atom.plan.ladder import ladder, parameters
from atom.plan.law_fit import Point, fit
from atom.plan.scaling import LossLaw

# ---------------------------------------------------------------------------- laws


@pytest.mark.parametrize("name", ["besiroglu", "hoffmann", "muennighoff"])
def test_the_optimum_is_the_lowest_loss(name: str) -> None:
    law = scaling.named(name)
    assert isinstance(law, LossLaw)
    best = law.optimum(1e23)
    sizes = np.geomspace(1e9, 1e12, 20_001)
    losses = law.loss(sizes, 1e23 / 6 / sizes)
    assert best.parameters == pytest.approx(sizes[losses.argmin()], rel=1e-3)
    assert best.loss == pytest.approx(losses.min(), rel=1e-9)
    assert law.tokens_for(best.parameters) == pytest.approx(best.tokens, rel=1e-9)


PUBLISHED = {
    # Besiroglu et al.: about 20 tokens a parameter at Chinchilla's budget; Hoffmann et al.'s own
    # fit finds 40 B parameters best for Gopher's 5.76e23 FLOPs.
    "besiroglu": (5.76e23, 70e9, 0.05),
    "hoffmann": (5.76e23, 40e9, 0.05),
    # 402 B parameters and 16.55 T tokens, whose product is 5 % above 3.8e25 / 6.
    "llama3": (3.8e25, 402e9, 0.06),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_optima_are_met(name: str) -> None:
    flops, size, tolerance = PUBLISHED[name]
    assert scaling.named(name).optimum(flops).parameters == pytest.approx(size, rel=tolerance)


def test_deepseeks_two_laws_agree() -> None:
    """Their law of model scale, 0.1715 C^0.5243, is in FLOPs a token; the product must be C."""
    for flops in (1e20, 1e24):
        found = scaling.named("deepseek").optimum(flops)
        assert 6 * found.parameters == pytest.approx(0.1715 * flops**0.5243, rel=1e-3)


def test_repeated_tokens_lose_value() -> None:
    law = scaling.named("muennighoff")
    assert isinstance(law, LossLaw)
    for epochs, share in {1: 1, 2: 0.984, 4: 0.931, 16: 0.661}.items():
        _, worth = law._effective(1e9, 1e10 * epochs, 1e10)
        assert worth / (1e10 * epochs) == pytest.approx(share, abs=1e-3)
    free, bound = law.optimum(1e23), law.optimum(1e23, 1e11)
    assert bound.tokens > free.tokens  # more passes rather than more parameters
    assert bound.loss is not None
    assert free.loss is not None
    assert bound.loss > free.loss
    assert law.optimum(1e23, 1e12) == free


def test_deepseeks_models_follow_its_rule() -> None:
    """Table 2 of the paper: 7B 4.2e-4 and 2,304 sequences, 67B 3.2e-4 and 4,608."""
    for layers, width, lr, batch in [(30, 4096, 4.2e-4, 2304), (95, 8192, 3.2e-4, 4608)]:
        own = (72 * layers * width**2 + 12 * layers * width * 4096) / 6
        assert RULES["deepseek"].lr(own, 2e12) == pytest.approx(lr, rel=0.03)
        assert RULES["deepseek"].batch(own, 2e12) / 4096 == pytest.approx(batch, rel=0.1)


def test_the_step_law() -> None:
    assert RULES["step"].lr(1e9, 1e11) == pytest.approx(1.79 * 1e9**-0.713 * 1e11**0.307)
    assert 1e6 < RULES["step"].batch(1e9, 1e11) < 1.2e6


@pytest.mark.parametrize(
    "text", ["1e23", "1E23flops", "$234056", "234056usd", "234056 dollars", "3250.8gpu_days"]
)
def test_a_budget_in_any_unit(text: str) -> None:
    """3,250.8 days at 989 TFLOP/s, 0.4 of them used, 0.9 of the time; 3 dollars an hour."""
    found = budget.read(text, device("h100"))
    assert found.flops == pytest.approx(3250.8 * 86400 * 989e12 * 0.4 * 0.9, rel=1e-4)
    assert found.flops == pytest.approx(1e23, rel=1e-4)
    assert found.gpu_days * 72 == pytest.approx(found.dollars)


# ---------------------------------------------------------------------------- ladder


@pytest.mark.parametrize("flops", [2e22, 1e23, 3.8e25])
def test_a_ladder_keeps_to_its_share(flops: float) -> None:
    rungs = ladder(flops, PLANTED, RULES["deepseek"], vocab_size=128256, seq_len=4096)
    assert 0.003 * flops < sum(rung.flops for rung in rungs) <= 0.01 * flops
    assert len({rung.name for rung in rungs}) == len(rungs)
    sizes = sorted({rung.parameters for rung in rungs})
    assert len(sizes) >= 3
    assert {rung.multiple for rung in rungs if rung.parameters == sizes[-1]} == {1, 2, 5, 10}
    for rung in rungs:
        wanted = PLANTED.tokens_for(rung.parameters) * rung.multiple
        assert rung.tokens == pytest.approx(wanted, rel=0.01)
        assert rung.batch < 8 or rung.batch % 8 == 0
    # It determines the law: a fit to losses on its rungs finds the planted constants.
    points = [
        Point(rung.name, rung.parameters, rung.tokens, PLANTED.loss(rung.parameters, rung.tokens))
        for rung in rungs
    ]
    assert fit(points, samples=2).law.alpha == pytest.approx(PLANTED.alpha, rel=1e-3)


def test_parameters_of_a_rung() -> None:
    """Llama 2 7B has this shape, and 6,738,415,616 parameters."""
    own, total = parameters(32, 32000)
    assert total == own + 2 * 32000 * 4096
    assert total == pytest.approx(6_738_415_616, rel=0.01)


# ---------------------------------------------------------------------------- the command


def test_a_plan_from_a_budget(forked: Callable, tmp_path: Path) -> None:
    """The page, its JSON, and a ladder that `atom train` composes."""
    out = forked("plan", "budget=1e23", "--ladder", str(tmp_path / "ladder"))
    assert out.returncode == 0, out.stderr
    assert "29.4 B   566 B              19.2  2.032" in out.stdout
    assert "20 runs of 144 M to 439 M parameters" in out.stdout
    found = json.loads(forked("plan", "budget=1e23", "--json").stdout)
    assert found["law"]["parameters"] == pytest.approx(29.446e9, rel=1e-3)
    assert found["rules"]["deepseek"]["training.global_batch_size"] == 2376
    assert {*found["other_laws"]} == {"deepseek", "hoffmann", "llama3", "muennighoff"}
    file = tmp_path / "ladder" / "experiment" / "ladder_04_layers_1x.yaml"
    wanted = yaml.safe_load(file.read_text())
    composed = forked(
        "train", "--config-dir", str(tmp_path / "ladder"), "+experiment=ladder_04_layers_1x",
        "architecture=llama3_8b", "tokenizer=bytes", "--cfg", "job",
    )  # fmt: skip
    run = yaml.safe_load(composed.stdout)
    for section, values in wanted.items():
        assert {key: run[section][key] for key in values} == values


WRONG = {
    "budget=1x": "budget=1x: is no budget; valid: FLOPs (1e23), dollars (2e6usd) or GPU-days",
    "budget=-1": "budget=-1: is no budget",
    "budget=1e999": "budget=1e999: is no budget",
    "budget=$5gpu_days": "budget=$5gpu_days: is no budget",
    "law=chinchila": "atom: a budget is missing",
    "budget=1e23 law=x": "law=x: there is no such law; valid: ",
    "budget=1e23 law=none.yaml": "law=none.yaml: cannot be read: No such file",
    "budget=1e23 rule=x": "rule=x: there is no such rule; valid: deepseek, step",
    "budget=1e23 device=h1": "device=h1: there is no description of such a device",
    "budget=1e23 plan.mfu=2": "plan.mfu=2 (command line): valid: a number from 1e-06 to 1",
    "budget=1e23 plan.price_gpu_hour=-1": "plan.price_gpu_hour=-1 (command line): valid: a number",
    "budget=1usd plan.price_gpu_hour=0": "plan.price_gpu_hour=0: buys any number of GPU-days",
    "budget=1e23 plan.vocab_size=1.5": "plan.vocab_size=1.5 (command line): valid: a whole number",
    "budget=1e23 plan.price=3": "did you mean plan.price_gpu_hour?",
    "budget=1e23 budget=1e24": "budget=1e24 (command line): is given twice",
    "budget=1e23 nodes": "nodes is no override; valid: KEY=VALUE",
    "budget=1e23 plan.unique_tokens=1e9": "valid: law=muennighoff",
    "budget=1e23 law=llama3 plan.unique_tokens=1e9": "does not know what repeated tokens are worth",
    "budget=1e18 --ladder new": "the smallest ladder costs 1e+20 FLOPs, 1e+02 of the budget",
    "fit none": "none",
    "fit none --budget much": "'much' is no number of FLOPs; valid: above 0",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_plans_are_refused(forked: Callable, tmp_path: Path, words: str) -> None:
    out = forked("plan", *words.split(), cwd=tmp_path)
    assert out.returncode == 2
    assert WRONG[words].removeprefix("atom: ") in out.stderr
    assert out.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("law", "said"),
    {
        "form": ("form: cubic", "is no law: form='cubic'; valid: form: loss or tokens"),
        "missing": ("form: loss\nsource: me\nE: 1.7", "lacks A, B, alpha, beta"),
        "unknown": ("form: tokens\ngamma: 1", "has the unknown key gamma"),
        "text": ("form: tokens\nexponent: much", "has exponent: much; valid: a number"),
        "range": (
            "form: tokens\nsource: me\ncoefficient: 1\nexponent: 1.2",
            "has exponent=1.2; valid: below 1",
        ),
        "negative": (
            "form: loss\nsource: me\nE: 1\nA: -1\nB: 1\nalpha: 1\nbeta: 1",
            "has A=-1; valid: a number above 0",
        ),
        "list": ("[1, 2]", "is no law"),
    }.values(),
)
def test_files_that_are_no_law_are_refused(tmp_path: Path, law: str, said: str) -> None:
    (tmp_path / "law.yaml").write_text(law)
    with pytest.raises(UserError) as caught:
        scaling.named(str(tmp_path / "law.yaml"))
    assert said in caught.value.sentence()


@pytest.mark.slow
def test_a_ladder_is_a_sweep(atom: Callable, forked: Callable, tmp_path: Path) -> None:
    """Two rungs of the printed sweep fit eight H100s, and have the parameters that were said."""
    place = str(tmp_path / "ladder")
    said = forked("plan", "budget=1e23", "plan.vocab_size=320", "--ladder", place, "--json")
    rungs = {rung["name"]: rung for rung in json.loads(said.stdout)["ladder"]}
    smallest = min(rungs.values(), key=lambda rung: rung["layers"])
    name = smallest["name"].rpartition("_")[0]
    out = atom(
        "train", "--config-dir", place, "-m", f"+experiment=glob({name}_lr_*)", "--dry-run",
        "architecture=llama3_tiny", "tokenizer=bytes", "metrics=none", "device=h100",
        "world_size=8", "parallelism=fsdp", f"run.dir={tmp_path / 'runs'}",
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    counts = [line for line in out.stdout.splitlines() if line.startswith("model")]
    assert len(counts) == 2
    for line in counts:
        count = int(line.split()[2].replace(",", ""))
        assert count == pytest.approx(smallest["parameters"], rel=0.03)
