"""Check a folder of tasks for EleutherAI's harness, which may come from someone else.

The harness imports what a file names with ``!function``, ``class`` or ``process_docs``, downloads
and runs a metric that it does not know, and renders templates without restrictions. In a folder
that the user names, a task is data: such files are refused, and templates run in Jinja's sandbox.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atom.errors import UserError, nearest
from atom.io import strangers, yaml_data
from atom.io.files import read_text

KEYS = frozenset(
    {
        *("task", "group", "tag", "include", "task_alias", "group_alias", "metadata"),
        *("dataset_path", "dataset_name", "dataset_kwargs"),
        *("training_split", "validation_split", "test_split", "fewshot_split"),
        *("doc_to_text", "doc_to_target", "doc_to_choice", "description", "gen_prefix"),
        *("target_delimiter", "fewshot_delimiter", "fewshot_config", "num_fewshot"),
        *("output_type", "generation_kwargs", "repeats", "metric_list", "filter_list"),
        *("should_decontaminate", "doc_to_decontamination_query"),
        *("aggregate_metric_list", "weight_by_size"),
    }
)
"""The keys of a task that name no code."""


@dataclass(frozen=True)
class Names:
    """The names in a folder.

    Attributes:
        tasks: single tasks.
        others: groups and tags, whose tasks can be those of the harness.
    """

    tasks: frozenset[str]
    others: frozenset[str]


def names(folder: Path, harness: Path) -> Names:
    """Return the names of the tasks, groups and tags in a folder.

    Args:
        folder: the folder.
        harness: the harness's own folder of tasks, whose files may be included.

    Raises:
        UserError: a file is no task, or names code.
    """
    tasks, others = set(), set()
    for content in _contents(folder, harness):
        if isinstance(group := content.get("group"), str):
            others.add(group)
        elif isinstance(task := content.get("task"), str):
            tasks.add(task)
        tags = content.get("tag")
        others |= {str(tag) for tag in (tags if isinstance(tags, list) else [tags]) if tag}
    return Names(frozenset(tasks), frozenset(others))


def check_metrics(folder: Path, harness: Path, known: Collection[str]) -> None:
    """Refuse a metric that the harness would look for elsewhere, and run.

    Args:
        folder, harness: as for :func:`names`.
        known: the metrics of the harness.
    """
    for content in _contents(folder, harness):
        for entry in content.get("metric_list") or ():
            name = entry.get("metric") if isinstance(entry, dict) else None
            if name not in known or "hf_evaluate" in entry:
                raise UserError(
                    f"{content[_FILE]} names a metric that lm-eval does not have: {name}; "
                    f"{nearest(str(name), known)}",
                    key="evaluator.include",
                    value=str(folder),
                )


_FILE = " file"


def _contents(folder: Path, harness: Path) -> Iterator[dict[str, Any]]:
    """Yield the content of each file of tasks, with its path under :data:`_FILE`."""
    if not folder.is_dir():
        raise UserError("there is no such folder", key="evaluator.include", value=str(folder))
    strangers.check(folder)
    for file in sorted(folder.rglob("*.yaml")):
        content = yaml_data.load(read_text(file, most=yaml_data.BYTES), str(file))
        if not isinstance(content, dict):
            raise UserError(f"{file} holds no task", key="evaluator.include", value=str(folder))
        if code := sorted(str(key) for key in content if key not in KEYS):
            raise UserError(
                f"{file} sets {code[0]}, which a task in a folder of its own must not: only keys "
                "that name no code are read",
                key="evaluator.include",
                value=str(folder),
            )
        included = content.get("include") or []
        for name in included if isinstance(included, list) else [included]:
            place = (file.parent / str(name)).resolve()
            if not any(place.is_relative_to(root.resolve()) for root in (folder, harness)):
                raise UserError(
                    f"{file} includes a file elsewhere: {name}",
                    key="evaluator.include",
                    value=str(folder),
                )
        yield content | {_FILE: str(file)}
