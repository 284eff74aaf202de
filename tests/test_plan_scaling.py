"""From a budget to a model: scaling laws, rules, ladders, and the fit of a law to runs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.optimize import minimize
from scipy.special import huber, logsumexp

from atom.errors import UserError
from atom.plan import budget, scaling
from atom.plan.device import named as device
from atom.plan.hyperparameters import RULES
from atom.plan.ladder import ladder, parameters
from atom.plan.law_fit import CONSTANTS, Fit, Point, fit
from atom.plan.scaling import LossLaw
from atom.watch import law_points

PLANTED = scaling.named("besiroglu")
assert isinstance(PLANTED, LossLaw)


def runs(noise: float, seed: int = 0, law: LossLaw = PLANTED) -> list[Point]:
    """A ladder of 6 sizes on 1, 2, 5 and 10 times their best tokens."""
    random = np.random.default_rng(seed)
    return [
        Point(f"{size:.0e}-{multiple}", size, tokens, float(law.loss(size, tokens) * off))
        for size in (2e7, 5e7, 1e8, 2e8, 4e8, 8e8)
        for multiple in (1, 2, 5, 10)
        for tokens in [law.tokens_for(size) * multiple]
        for off in [math.exp(noise * random.standard_normal())]
    ]


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


# ---------------------------------------------------------------------------- fit


def test_planted_constants_are_found_exactly() -> None:
    found = fit(runs(0), samples=2)
    for name in CONSTANTS:
        assert getattr(found.law, name) == pytest.approx(getattr(PLANTED, name), rel=1e-6)
    assert found.held_out == pytest.approx(found.largest.loss, rel=1e-6)


def test_planted_constants_are_within_bands_and_extrapolate() -> None:
    found = fit(runs(2e-3), samples=300)
    for name in CONSTANTS:
        low, high = found.band(name)
        assert low < getattr(PLANTED, name) < high
    truth, bands = PLANTED.optimum(1e23), found.optimum_bands(1e23)  # 100 times the largest run
    best = found.optimum(1e23)
    assert best.loss == pytest.approx(truth.loss, rel=0.01)
    for name in ("parameters", "tokens", "loss"):
        low, high = bands[name]
        assert low < getattr(best, name) < high
        assert low < getattr(truth, name) < high
    assert found.error == pytest.approx(2e-3, rel=0.5)
    assert found.held_out == pytest.approx(found.largest.loss, rel=0.01)


def test_an_outlier_hardly_counts() -> None:
    points = runs(5e-4)
    points[7] = Point("spoiled", points[7].parameters, points[7].tokens, points[7].loss * 1.2)
    found = fit(points, samples=2)
    assert found.optimum(1e23).loss == pytest.approx(PLANTED.optimum(1e23).loss, rel=0.01)


def test_scipy_finds_nothing_lower() -> None:
    points = runs(2e-3, seed=1)
    n, d, y = (np.log([getattr(p, x) for p in points]) for x in ("parameters", "tokens", "loss"))

    def objective(theta: Any) -> float:
        e, a, b, alpha, beta = theta
        residual = logsumexp([a - alpha * n, b - beta * d, e + 0 * n], axis=0) - y
        return float(1e6 * huber(1e-3, residual).sum())

    law = fit(points, samples=2).law
    ours = [*np.log([law.E, law.A, law.B]), law.alpha, law.beta]
    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10}
    lowest = min(
        minimize(objective, start, method="L-BFGS-B", options=options).fun
        for start in ([0.5, 6, 7, 0.35, 0.35], [0.6, 5, 8, 0.3, 0.4], ours)
    )
    assert objective(ours) <= lowest * (1 + 1e-4)


@pytest.mark.slow
def test_bands_cover_the_truth() -> None:
    truth = PLANTED.optimum(1e23).loss
    covered = 0
    for seed in range(20):
        low, high = fit(runs(2e-3, seed), samples=100).optimum_bands(1e23)["loss"]
        covered += low < truth < high
    assert covered >= 15  # at a true coverage of 0.95, fewer with probability 3e-4


SAME = [Point(f"{n}", 1e7 * 2**n, 2e8 * 2**n, 3.0 - 0.1 * n) for n in range(8)]


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (runs(0)[:5], "5 runs cannot determine the law's 5 constants"),
        (SAME, "tokens grow with parameters in the same way in all runs"),
        ([*runs(0)[:8]], "the runs have fewer than 3 numbers of parameters"),
        ([Point(p.name, p.parameters, p.tokens, math.nan) for p in runs(0)], "has loss=nan"),
        (
            [Point(p.name, p.parameters, p.tokens, 8 - p.loss) for p in runs(0)],
            "does not fall with both parameters and tokens",
        ),
    ],
    ids=["too few", "on a line", "two sizes", "nan", "rising"],
)
def test_runs_that_determine_no_law_are_refused(points: list[Point], said: str) -> None:
    with pytest.raises(UserError, match=said):
        fit(points)


def test_seeds_repeat() -> None:
    def bands(seed: int) -> tuple[float, float]:
        found: Fit = fit(runs(2e-3), samples=50, seed=seed)
        return found.band("alpha")

    assert bands(0) == bands(0) != bands(1)


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


# ---------------------------------------------------------------------------- run folders


@pytest.fixture(scope="module")
def finished(atom: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of three steps."""
    place = tmp_path_factory.mktemp("finished") / "run"
    out = atom(
        "train", "tokenizer=bytes", "architecture=llama3_tiny", "architecture.dim=64",
        "architecture.n_layers=2", "training.seq_len=64", "training.global_batch_size=4",
        "training.steps=3", "device=cpu", "metrics=none", f"run.dir={place}",
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    return place


@pytest.fixture(scope="module")
def planted(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Copies of the run with the parameters, tokens and losses of a planted law."""
    place, folders = tmp_path_factory.mktemp("planted"), []
    for point in runs(0)[::2]:
        folder = place / point.name
        shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("checkpoint", "logs"))
        run = (folder / "run.yaml").read_text()
        (count,) = [line for line in run.splitlines() if line.startswith("  parameters: ")]
        mine = f"  parameters: {point.parameters:.0f}"
        (folder / "run.yaml").write_text(run.replace(count, mine))
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            row["loss"] = point.loss + 3 - row["step"]
            row["tokens_seen"] = round(point.tokens) * row["step"] // rows[-1]["step"]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        folders.append(folder)
    return folders


@pytest.mark.slow
def test_a_run_records_its_parameters(finished: Path) -> None:
    """Embedding and output layer, and two blocks of width 64 with 4 query and 2 key heads."""
    run = yaml.safe_load((finished / "run.yaml").read_text())
    vocab, hidden = run["resolved"]["vocab_size"], 192
    block = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * hidden + 2 * 64
    assert run["resolved"]["parameters"] == 2 * vocab * 64 + 2 * block + 64


@pytest.mark.slow
def test_fit_of_run_folders(forked: Callable, planted: list[Path], tmp_path: Path) -> None:
    places, law = [str(folder) for folder in planted], tmp_path / "law.yaml"
    out = forked("plan", "fit", *places, "--out", str(law), "--budget", "1e23")
    assert out.returncode == 0, out.stderr
    assert "12 runs, training loss; residuals 0.00%" in out.stdout
    told = json.loads(forked("plan", "fit", *places, "--json", "--budget", "1e23").stdout)
    for name in CONSTANTS:
        value = told["constants"][name]["value"]
        assert value == pytest.approx(getattr(PLANTED, name), rel=1e-3)
        assert yaml.safe_load(law.read_text())[name] == value
    (at,) = told["budgets"]
    assert at["loss"] == pytest.approx(PLANTED.optimum(1e23).loss, rel=1e-4)
    used = json.loads(forked("plan", "budget=1e23", f"law={law}", "--json").stdout)
    assert used["law"]["tokens"] == pytest.approx(at["tokens"], rel=1e-6)


def _edited(name: str, line: str, other: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines(keepends=True)
        assert any(line in each for each in lines)
        kept = (other if line in each else each for each in lines)
        (folder / name).write_text("".join(kept))

    return edit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "loss", "said"),
    [
        (_edited("events.jsonl", '"finished"', ""), None, "is interrupted; valid: finished runs"),
        (
            _edited("run.yaml", "  parameters: ", ""),
            None,
            "does not record its number of parameter",
        ),
        (_edited("run.yaml", "pad_to: 64", "  pad_to: 32\n"), None, "has another tokenizer than"),
        (lambda _: None, "code", "has no validation set code; valid: loss"),
    ],
    ids=["unfinished", "an earlier ATOM's", "another tokenizer", "no such set"],
)
def test_runs_that_cannot_be_compared_are_refused(
    planted: list[Path], tmp_path: Path, spoil: Any, loss: str | None, said: str
) -> None:
    shutil.copytree(planted[0], tmp_path / "run")
    spoil(tmp_path / "run")
    with pytest.raises(UserError, match=said):
        law_points.points([planted[1], tmp_path / "run"], loss)
