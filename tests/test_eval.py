"""``atom eval``: scores are those of ``transformers``, and each result can be computed again."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atom.launch.evaluations import Evaluations
from atom.recipe.evaluation import Evaluation
from atom.run_dir import evals, events, status

sys.path.append(str(Path(__file__).parents[1] / "plugins/atom-evaluators/tests"))

import made

pytestmark = pytest.mark.slow

TINY = (
    *("architecture=llama3_tiny", "architecture.n_layers=2", "architecture.dim=64"),
    *("tokenizer=bytes", "training.seq_len=128", "training.global_batch_size=4"),
    *("device=cpu", "metrics=none", "optimizer.lr=3e-3"),
)
QUESTIONS = [
    ("import o", ["s", "zq", "Ω"], 0),
    ("    return ", ["self", "}}", "éa"], 0),
    ("def main(", [")", "qqqq", "self"], 2),
    ("", ["class", "for"], 1),
    ("x" * 200, [" y", " xx"], 1),  # longer than a sequence
]
IN_THE_LOOP = (
    *("evaluation.interval=20", "evaluation.tasks=[own:code_rc]", "evaluation.limit=2"),
    "evaluators.own={name: olmes, path: requests}",
)
OLMES = "mine={name: olmes, path: requests}"


def requests() -> list[dict[str, Any]]:
    return [
        {
            "request_type": "loglikelihood",
            "doc": {},
            "request": {"context": context, "continuation": continuation},
            "idx": index,
            "doc_id": number,
            "label": label,
        }
        for number, (context, choices, label) in enumerate(QUESTIONS)
        for index, continuation in enumerate(choices)
    ]


def write_requests(folder: Path, lines: list[str] | None = None) -> None:
    folder.mkdir(parents=True)
    lines = [json.dumps(each) for each in requests()] if lines is None else lines
    with gzip.open(folder / "requests.jsonl.gz", "wt") as file:
        file.write("\n".join(lines))
    told = {"task_hash": "abc", "task_config": {"num_shots": 0, "version": 2}}
    (folder / "config.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def trained(atom: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two checkpoints, its export, and requests."""
    place = tmp_path_factory.mktemp("evaluated")
    write_requests(place / "requests" / "code" / "rc")
    write_requests(place / "requests" / "broken" / "rc", ['{"request_type": "generate"}'])
    steps = ("training.steps=20", "checkpoint.interval=10")
    done = atom("train", *TINY, *steps, *IN_THE_LOOP, "run.dir=run", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "evaluated step 20: code_rc acc " in done.stdout
    assert atom("export", "run", "--to", "hf", "--out", "export", cwd=place).returncode == 0
    shutil.copytree(place / "export", place / "foreign")
    (place / "foreign" / "run.yaml").unlink()
    return place


@pytest.fixture(scope="module")
def scored(atom: Callable[..., Any], trained: Path) -> dict[str, list[evals.Evaluation]]:
    """What is in ``evals.jsonl`` of the run, the export and the folder without a run."""
    for folder in ("run", "export", "foreign"):
        words = ("--tasks", "mine:code_rc", "--evaluator", OLMES)
        done = atom("eval", folder, *words, "--max-length", "128", cwd=trained)
        assert done.returncode == 0, done.stderr
        assert "2 requests are longer than 128 tokens, and lost their beginning" in done.stderr
        row = next(line for line in done.stdout.splitlines() if "len_norm" in line)
        assert row.split()[0] == "code_rc"
    found = {folder: evals.read(trained / folder) for folder in ("run", "export", "foreign")}
    return {folder: [row for row in rows if row.limit is None] for folder, rows in found.items()}


def test_the_export_and_transformers_have_the_same_scores(
    scored: dict[str, list[evals.Evaluation]],
) -> None:
    """The folder without a ``run.yaml`` is computed by ``transformers``."""
    run, export, foreign = ({row.metric: row for row in rows} for rows in scored.values())
    assert set(run) == {"acc", "len_norm", "bpb", "ce_loss"}
    for metric, row in run.items():
        assert row.value == pytest.approx(export[metric].value, abs=1e-6)
        assert row.value == pytest.approx(foreign[metric].value, abs=1e-4)
        assert row.prompts == export[metric].prompts == foreign[metric].prompts
    assert run["acc"].step == 20
    assert export["acc"].step is foreign["acc"].step is None


def test_a_result_tells_how_to_compute_it_again(
    scored: dict[str, list[evals.Evaluation]], trained: Path
) -> None:
    import hashlib

    row = scored["run"][0]
    manifest = next((trained / "run/checkpoint/step-20").glob("*manifest*.json"))
    assert row.weights == hashlib.sha256(manifest.read_bytes()).hexdigest()
    inputs = json.loads((trained / "run/inputs.json").read_text())
    assert row.tokenizer == inputs["tokenizer"]["digest"]
    assert row.parameters == {"path": "requests", "unconditional": False}
    assert (row.evaluator, row.version, row.few_shot, row.samples) == ("olmes", "2, abc", 0, 5)
    assert (row.limit, row.seed, row.truncated, row.max_length) == (None, 0, 2, 128)
    assert row.package.startswith("atom-evaluators ")


def test_another_step_and_a_limit(atom: Callable[..., Any], trained: Path) -> None:
    """Half a line, which a killed process has left, costs no other."""
    shutil.copytree(trained / "run", trained / "copy")
    (trained / "copy" / evals.FILE_NAME).write_text('{"half": ')
    words = ("--tasks", "m:*", "--evaluator", "m={name: olmes, path: good}")
    words += ("--dtype", "bfloat16", "--step", "10")
    shutil.copytree(trained / "requests" / "code", trained / "good" / "code")
    done = atom("eval", "copy", *words, "--limit", "3", "--json", cwd=trained)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    found = evals.read(trained / "copy")
    assert [row.to_json() for row in found] == told
    kept = {(row.step, row.samples, row.limit, row.dtype) for row in found}
    assert kept == {(10, 3, 3, "bfloat16")}
    assert atom("eval", "copy", *words[:-1], "20", cwd=trained).returncode == 0
    compared = atom("compare", "copy", "run", "--out", "curves.svg", cwd=trained)
    last = {row.metric: row.value for row in evals.read(trained / "copy") if row.step == 20}
    row = next(line for line in compared.stdout.splitlines() if line.startswith("code_rc acc"))
    assert float(row.split()[2]) == pytest.approx(last["acc"], abs=1e-3)
    assert atom("report", "copy", "--out", "page.html", cwd=trained).returncode == 0
    page = (trained / "page.html").read_text()
    assert 'id="evaluations"' in page
    assert page.count("<figcaption>code_rc") == 4
    assert "code_rc bpb" in (trained / "curves.svg").read_text()


@pytest.mark.parametrize("layout", ["dp_shard=2", "tp=2"])
def test_ranks_that_share_a_model_have_the_scores_of_one_process(
    layout: str,
    atom: Callable[..., Any],
    trained: Path,
    scored: dict[str, list[evals.Evaluation]],
    both: SimpleNamespace,
    tmp_path: Path,
) -> None:
    """One rank records; batches of one sequence are uneven for two ranks. Under TP, the harness
    generates, too."""
    place = tmp_path / "run"
    shutil.copytree(trained / "run", place, ignore=shutil.ignore_patterns(evals.FILE_NAME))
    words = ["--evaluator", OLMES, "--tasks", "mine:code_rc", "--max-length", "128"]
    if layout == "tp=2":
        (tmp_path / "tasks").mkdir()
        parameters = made.tasks(tmp_path / "tasks")
        words += ["--evaluator", f"h={json.dumps({'name': 'lm_eval'} | parameters)}"]
        words += ["--tasks", "h:made_written"]
    ranks = ("--layout", layout, "--batch-tokens", "1", "--device", "cpu")
    done = atom("eval", str(place), *words, *ranks, cwd=trained)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("code_rc") == 4
    found = {row.metric: row for row in evals.read(place)}
    for row in scored["run"]:
        assert found[row.metric].value == pytest.approx(row.value, abs=1e-4)
        assert found[row.metric].prompts == row.prompts
        assert found[row.metric].weights == row.weights
    assert len(evals.read(place)) == 4 + (layout == "tp=2")
    if layout == "tp=2":
        from atom.plugin import Evaluator, EvaluatorContext
        from atom.registry.host import Host
        from atom.registry.opening import Opener

        chosen = Opener(Host.load()).choose(Evaluator, "lm_eval", parameters, "evaluators.x")
        context = EvaluatorContext(model=both.scorer, task="made_written")
        (alone,) = chosen.call("evaluate", context)
        assert found["exact_match"].value == alone.value


def test_the_harness_has_the_scores_of_its_own_model(
    trained: Path, both: SimpleNamespace, tmp_path: Path
) -> None:
    """Tasks with choices, with whole texts, and with generated ones; ``hf`` is the harness's model
    of ``transformers``."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from atom.plugin import Evaluator, EvaluatorContext
    from atom.registry.host import Host
    from atom.registry.opening import Opener

    parameters = made.tasks(tmp_path)
    chosen = Opener(Host.load()).choose(Evaluator, "lm_eval", parameters, "evaluators.x")
    theirs = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(trained / "export"), "max_length": 128},
        tasks=list(made.HARNESS),
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        device="cpu",
        batch_size=3,
        **dict.fromkeys(("random_seed", "fewshot_random_seed"), 0),
    )
    for task in made.HARNESS:
        context = EvaluatorContext(model=both.scorer, task=task)
        for found in chosen.call("evaluate", context):
            expected = theirs["results"][task][f"{found.metric},none"]
            assert found.value == pytest.approx(expected, rel=1e-5), (task, found.metric)
            assert found.samples == theirs["n-samples"][task]["effective"]
            assert found.higher_is_better == theirs["higher_is_better"][task][found.metric]


# ---------------------------------------------------------------------------- while training


def test_the_last_checkpoint_was_evaluated(trained: Path) -> None:
    rows = [row for row in evals.read(trained / "run") if row.limit == 2]
    assert {(row.step, row.samples, row.asked) for row in rows} == {(20, 2, "code_rc")}
    (event,) = (e for e in events.read(trained / "run") if e["event"] == events.EVALUATED)
    assert event["numbers"] == {row.name: row.value for row in rows}
    found = status.status(trained / "run")
    assert found.evaluation == "step 20"
    times = {
        e["event"]: datetime.fromisoformat(e["time"]).timestamp()
        for e in events.read(trained / "run")
    }
    # An evaluation after the last step is not time of the run.
    assert found.wall == pytest.approx(times[events.FINISHED] - times[events.STARTED])


def test_an_evaluation_that_fails_does_not_fail_the_run(
    atom: Callable[..., Any], trained: Path
) -> None:
    words = ("evaluation.tasks=[own:broken_rc]", "training.steps=2", "checkpoint.interval=20")
    done = atom("train", *TINY, *IN_THE_LOOP, *words, "run.dir=failing", cwd=trained)
    assert done.returncode == 0, done.stderr
    reason = "line 1 of requests/broken/rc/requests.jsonl.gz is no request: its type 'generate'"
    assert f"step 2 was not evaluated ({reason}" in done.stdout
    (event,) = (
        e for e in events.read(trained / "failing") if e["event"] == events.EVALUATION_FAILED
    )
    assert event["step"] == 2
    assert event["reason"].startswith(reason)
    assert not evals.read(trained / "failing")
    told = atom("status", "failing", cwd=trained).stdout
    assert f"evaluated  step 2 failed: {reason}" in told


SUBMITTED = {
    "a job": (
        'echo "Submitted batch job $2"',
        events.EVALUATION_SUBMITTED,
        "Submitted batch job 20",
    ),
    "a refusal": (
        "echo 'sbatch: error: no time' >&2; exit 1",
        events.EVALUATION_FAILED,
        "it could not be submitted: sbatch: error: no time",
    ),
}


@pytest.mark.parametrize("name", SUBMITTED)
def test_a_scheduler_gets_each_evaluation(name: str, tmp_path: Path) -> None:
    """The command of the launcher, with the run folder and the step; the run waits for no job."""
    script, kind, words = SUBMITTED[name]
    settings = Evaluation(interval=20, tasks=["a"])
    jobs = Evaluations(tmp_path, settings, 50, ("bash", "-c", script, "evaluate"))
    for step in (10, 20, 50):
        events.record(tmp_path, events.CHECKPOINT_SAVED, step=step, seconds=1.0)
    jobs.finish()
    jobs.close()
    first, last = (e for e in events.read(tmp_path) if e["event"] != events.CHECKPOINT_SAVED)
    assert (first["event"], first["step"], last["step"]) == (kind, 20, 50)
    assert words in first.values()


REFUSED = {
    "no tasks": (["evaluation.tasks=[]"], "evaluation.interval=20: has no effect without"),
    "tasks, and no interval": (
        ["evaluation.interval=0", "evaluation.limit=null"],
        "evaluation.tasks=[own:code_rc]: has no effect with evaluation.interval=0",
    ),
    "between checkpoints": (
        ["checkpoint.interval=7"],
        "evaluation.interval=20: is no multiple of checkpoint.interval=7; valid: 7, or a multiple",
    ),
    "no checkpoints": (
        ["checkpoint.enable=false"],
        "evaluation.interval=20: evaluates checkpoints, and checkpoint.enable=false; valid: 0",
    ),
    "an unknown task": (
        ["evaluation.tasks=[own:cod_rc]"],
        "evaluation.tasks=own:cod_rc: the evaluator own has no task cod_rc; did you mean code_rc?",
    ),
    "a layout with stages": (
        ["evaluation.layout=pp=2"],
        "evaluation.layout=pp=2: stages of a pipeline (pp) cannot be scored; valid: other degrees",
    ),
    "the layout of a run with stages": (
        ["evaluation.layout=run", "parallelism.pipeline_parallel_degree=2"],
        "evaluation.layout=run: stages of a pipeline (pp) cannot be scored; valid: other degrees",
    ),
    "a layout, and no interval": (
        [
            *("evaluation.interval=0", "~evaluation.tasks", "evaluation.limit=null"),
            "evaluation.layout=tp=2",
        ],
        "evaluation.layout=tp=2: has no effect with evaluation.interval=0",
    ),
    "a container of Slurm": (
        ["launcher=slurm", "launcher.image=x"],
        "evaluation.interval: is not possible in a container, where there is no sbatch; valid: 0",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_training(name: str, forked: Callable[..., Any], trained: Path) -> None:
    words, sentence = REFUSED[name]
    steps = ("training.steps=20", "checkpoint.interval=10", "run.dir=refused")
    done = forked("train", *TINY, *IN_THE_LOOP, *steps, *words, cwd=trained)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr.splitlines()[-1].replace(" (command line)", "")
    assert not (trained / "refused").exists()


# ---------------------------------------------------------------------------- bad input

BAD = {
    "an unknown task": (
        ["run", "--tasks", "mine:cod_rc"],
        "atom: --tasks=mine:cod_rc: the evaluator mine has no task cod_rc; did you mean code_rc?",
    ),
    "an unknown evaluator": (
        ["run", "--tasks", "x", "--evaluator", "x=olms"],
        "atom: evaluators.x.name=olms: there is no evaluator olms; did you mean olmes (",
    ),
    "a wrong parameter": (
        ["run", "--tasks", "x", "--evaluator", "x={name: olmes, pth: y}"],
        "atom: evaluators.x.pth=y: pth is no key here; did you mean path?",
    ),
    "an evaluator twice": (
        ["run", "--tasks", "x", "--evaluator", "x=olmes", "--evaluator", "x=lm_eval"],
        "atom: --evaluator=x: is given twice",
    ),
    "a name that no task can have": (
        ["run", "--tasks", "x", "--evaluator", "x:y=olmes"],
        "atom: atom eval: argument --evaluator: 'x:y=olmes' is not valid; valid: NAME or NAME=",
    ),
    "no such folder of requests": (
        ["run", "--tasks", "x:a", "--evaluator", "x={name: olmes, path: nowhere}"],
        "atom: evaluators.x.path=nowhere: there is no such folder",
    ),
    "no task": (["run"], "atom: atom eval: no task is named; valid: --tasks TASK,…; --list"),
    "no such run": (["nowhere", "--tasks", "x"], "atom: nowhere: there is no such folder"),
    "no run": (["requests", "--tasks", "x"], "atom: requests holds neither run.yaml nor config"),
    "no such step": (
        ["run", "--tasks", "mine:code_rc", "--step", "7"],
        "atom: run holds no checkpoint of step 7; valid: 10, 20",
    ),
    "a step of an export": (
        ["export", "--tasks", "mine:code_rc", "--step", "7"],
        "atom: --step 7 is for the folder of a run",
    ),
    "a file of something else": (
        ["run", "--tasks", "mine:broken_rc"],
        "atom: line 1 of requests/broken/rc/requests.jsonl.gz is no request: its type 'generate'",
    ),
    "a damaged checkpoint": (
        ["damaged", "--tasks", "mine:code_rc"],
        "atom: the checkpoint damaged/checkpoint/step-20 is damaged: ",
    ),
    "a layout with stages": (
        ["run", "--tasks", "mine:code_rc", "--layout", "pp=2"],
        "atom: --layout=pp=2: stages of a pipeline (pp) cannot be scored; valid: other degrees",
    ),
    "no degree": (
        ["run", "--tasks", "mine:code_rc", "--layout", "fsdp=2"],
        "atom: --layout=fsdp=2: 'fsdp=2' is no degree; valid: dp_replicate, dp_shard, ep, tp",
    ),
    "a layout that divides no heads": (
        ["run", "--tasks", "mine:code_rc", "--layout", "tp=3"],
        "atom: --layout=tp=3: tensor_parallel 3 must divide the model's 4 query heads",
    ),
    "experts of a model without": (
        ["run", "--tasks", "mine:code_rc", "--layout", "dp_shard=2,ep=2"],
        "atom: --layout=dp_shard=2,ep=2: expert_parallel 2 this model has no experts to share out",
    ),
    "a layout of transformers": (
        ["foreign", "--tasks", "mine:code_rc", "--layout", "tp=2"],
        "atom: --layout=tp=2: is for the folder of a run or its export: transformers computes",
    ),
    "a task that a rank refuses": (
        ["run", "--tasks", "mine:broken_rc", "--layout", "dp_shard=2"],
        "atom: line 1 of requests/broken/rc/requests.jsonl.gz is no request: its type 'generate'",
    ),
    "too long": (
        ["run", "--tasks", "mine:code_rc", "--max-length", "999"],
        "atom: --max-length=999: is longer than the sequences of the model; valid: at most 128",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, atom: Callable[..., Any], trained: Path) -> None:
    """One sentence, exit code 2; nothing is recorded."""
    words, sentence = BAD[name]
    if name == "a damaged checkpoint":
        shutil.copytree(trained / "run", trained / "damaged")
        (trained / "damaged" / evals.FILE_NAME).unlink(missing_ok=True)
        shard = next((trained / "damaged/checkpoint/step-20").glob("*.distcp"))
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    before = {path: path.read_bytes() for path in trained.glob("*/evals.jsonl")}
    done = atom("eval", *words, "--evaluator", OLMES, cwd=trained)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(sentence), done.stderr
    assert {path: path.read_bytes() for path in trained.glob("*/evals.jsonl")} == before


# ---------------------------------------------------------------------------- the scorer


@pytest.fixture(scope="module")
def both(trained: Path) -> SimpleNamespace:
    """The scorer of the run, and the model and tokenizer of ``transformers``."""
    from atom.titan.boot import boot

    boot("cpu")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from atom.titan.evaluation.evaluate import Settings, subject

    model = AutoModelForCausalLM.from_pretrained(trained / "export").eval()
    tokenizer = AutoTokenizer.from_pretrained(trained / "export")
    found = {n: subject(trained / "run", Settings(tokens=n), kind="cpu").scorer for n in (1, 4096)}
    return SimpleNamespace(scorer=found[4096], single=found[1], model=model, tokenizer=tokenizer)


TEXTS = ["def main(self):\n    return", "é", "import os, sys\n", "x" * 127]


def test_log_likelihoods_are_those_of_transformers(both: SimpleNamespace) -> None:
    import torch

    pairs = [both.scorer.pair(text[:-3], text[-3:]) for text in TEXTS]
    assert [len(context) for context, _ in pairs] == [24, 1, 13, 125]
    for (context, continuation), found in zip(pairs, both.scorer.loglikelihood(pairs), strict=True):
        ids = torch.tensor([[*context, *continuation]])
        assert (
            ids[0].tolist() == both.tokenizer(TEXTS[pairs.index((context, continuation))]).input_ids
        )
        with torch.no_grad():
            logprobs = both.model(ids).logits[0].log_softmax(dim=-1)
        places = range(len(context) - 1, ids.shape[1] - 1)
        expected = sum(logprobs[i, ids[0, i + 1]].item() for i in places)
        greedy = all(logprobs[i].argmax() == ids[0, i + 1] for i in places)
        assert found.logprob == pytest.approx(expected, abs=1e-4)
        assert found.is_greedy == greedy


def test_bfloat16_is_that_of_transformers(both: SimpleNamespace, trained: Path) -> None:
    """Up to its own precision: both round each layer, in another order."""
    import torch
    from transformers import AutoModelForCausalLM

    from atom.titan.evaluation.evaluate import Settings, subject

    scorer = subject(trained / "run", Settings(dtype="bfloat16"), kind="cpu").scorer
    model = AutoModelForCausalLM.from_pretrained(trained / "export", dtype=torch.bfloat16).eval()
    pairs = [scorer.pair(text[:-3], text[-3:]) for text in TEXTS]
    exact = both.scorer.loglikelihood(pairs)
    for (context, continuation), found, other in zip(
        pairs, scorer.loglikelihood(pairs), exact, strict=True
    ):
        ids = torch.tensor([[*context, *continuation]])
        with torch.no_grad():
            logprobs = model(ids).logits[0].float().log_softmax(dim=-1)
        places = range(len(context) - 1, ids.shape[1] - 1)
        expected = sum(logprobs[i, ids[0, i + 1]].item() for i in places)
        assert found.logprob == pytest.approx(expected, abs=0.1)
        assert found.logprob != other.logprob, "float32 was computed"
        assert found.logprob == pytest.approx(other.logprob, abs=0.2)


def test_batches_change_nothing(both: SimpleNamespace) -> None:
    pairs = [both.scorer.pair(text[:-3], text[-3:]) for text in TEXTS]
    one, many = (each.loglikelihood(pairs) for each in (both.single, both.scorer))
    assert [x.logprob for x in one] == pytest.approx([x.logprob for x in many], abs=1e-5)


def test_windows_add_up(both: SimpleNamespace) -> None:
    """A text of three windows: each token is predicted once, after at most 128 others."""
    text = "".join(chr(97 + i * i % 26) for i in range(300))
    ids = [256, *text.encode()]
    windows = [(ids[:1], ids[1:129]), (ids[128:129], ids[129:257]), (ids[172:257], ids[257:301])]
    expected = sum(found.logprob for found in both.scorer.loglikelihood(windows))
    assert both.scorer.loglikelihood_rolling([text])[0] == pytest.approx(expected, abs=1e-4)


def test_generation_is_greedy(both: SimpleNamespace) -> None:
    import torch

    prompts = [both.scorer.encode(text, bos=True) for text in ("def ", "import os\nimport ")]
    found = both.scorer.generate_until(prompts, until=["\n\n"], tokens=12)
    for prompt, text in zip(prompts, found, strict=True):
        with torch.no_grad():
            made = both.model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
        expected = both.tokenizer.decode(made[0][len(prompt) :], skip_special_tokens=True)
        assert text == expected.split("\n\n")[0]
