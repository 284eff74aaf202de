"""Small tasks, and a model of a table of logits."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

OLMES = ("colors_rc", "facts_bpb")
HARNESS = ("made_choice", "made_text", "made_written")

CHOICE = """
task: made_choice
tag: made
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choice.jsonl, train: {folder}/choice.jsonl}}}}
test_split: test
fewshot_split: train
num_fewshot: 1
output_type: multiple_choice
doc_to_text: "Q: {{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 3}}
"""
TEXT = """
task: made_text
tag: made
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/text.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""
WRITTEN = """
task: made_written
tag: made
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/written.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{target}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 6}}
metric_list: [{{metric: exact_match}}]
"""


def request(document: int, index: Any, label: Any, context: str, text: str) -> dict[str, Any]:
    return {
        "request_type": "loglikelihood",
        "request": {"context": context, "continuation": text},
        **{"idx": index, "doc_id": document, "label": label},
    }


def requests(folder: Path) -> dict[str, str]:
    """Write request files of OLMES into ``folder``; return the parameters that name it."""
    colors = [
        request(document + alone, index, document % 3, context, text)
        for document in range(6)
        for alone, context in ((0, f"Thing {document} is"), (1_000_000, "It is"))
        for index, text in enumerate((" réd", " blue", " as green as grass"))
    ]
    facts = [request(n, 0, [f"{n}"], f"{n} plus 0 is", f" {n}") for n in range(4)]
    for name, lines in (("colors/rc", colors), ("facts/bpb", facts)):
        (folder / name).mkdir(parents=True)
        with gzip.open(folder / name / "requests.jsonl.gz", "wt") as file:
            file.write("\n".join(map(json.dumps, lines)))
    return {"path": str(folder)}


def evaluating(folder: Path) -> tuple[str, ...]:
    """Write request files below ``folder``; return the overrides of a run whose last checkpoint is
    evaluated on them."""
    own = requests(folder / "requests")
    return (
        "evaluation.interval=500",
        "evaluation.tasks=[own:colors_rc]",
        f"evaluators.own={{name: olmes, path: {own['path']}}}",
    )


def tasks(folder: Path) -> dict[str, str]:
    """Write tasks of the harness, and their data; return the parameters that name them."""
    data: dict[str, list[Any]] = {
        "choice": [
            {
                "question": f"import o{i}\nclass A{i}",
                "choices": ["s", "(object):", "zzz"],
                "answer": i % 3,
            }
            for i in range(9)
        ],
        "text": [{"text": "def f(x):\n    return x + 1\n" * k} for k in range(1, 8)],
        "written": [{"prompt": f"import {word}", "target": "s"} for word in ("os", "re")],
    }
    for name, rows in data.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, text in (("choice", CHOICE), ("text", TEXT), ("written", WRITTEN)):
        (folder / f"{name}.yaml").write_text(text.format(folder=folder))
    return {"include": str(folder)}
