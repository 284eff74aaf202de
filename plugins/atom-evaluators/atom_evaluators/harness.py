"""Score a model on tasks of EleutherAI's harness, the package ``lm-eval``.

The harness builds prompts and computes metrics; the model answers its requests. Texts are encoded
as the harness's own model ``hf`` does it with an export, so that scores are equal.
"""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

from atom.errors import UserError
from atom.io import json_data
from atom.io.files import make_folder, write_text
from atom.plugin import EvaluatorContext, Measured, SourceContext
from atom_evaluators import task_folder
from atom_evaluators.config import LmEval
from atom_evaluators.hub import offline_if_needed

PACKAGE = "lm_eval"


def tasks(config: LmEval, context: SourceContext) -> Collection[str]:
    """Return the tasks, groups and tags of the harness, and those of the user's folder."""
    found = _own_names(context.cache)
    if config.include is not None:
        names = task_folder.names(Path(config.include).expanduser(), _folder())
        found = found | names.tasks | names.others
    return found


def evaluate(config: LmEval, context: EvaluatorContext) -> Iterable[Measured]:
    """Score the model on one task, or on each task of a group."""
    _folder()
    import datasets
    from lm_eval import evaluator

    from atom_evaluators.harness_model import HarnessModel

    datasets.disable_progress_bars()
    model = HarnessModel(context.model)
    manager = _manager(config.include, context.task)
    with (
        offline_if_needed() as unreachable,
        _sandbox() if config.include else nullcontext(),
        redirect_stderr(io.StringIO()),
    ):
        try:
            loaded = manager.load([context.task])
        # Data is loaded by many libraries, each with exceptions of its own.
        except Exception as error:
            why = f", and {unreachable} cannot be reached" if unreachable else ""
            raise UserError(
                f"the task {context.task} cannot be loaded{why}: {_words(error)}"
            ) from error
        for task in loaded["tasks"].values():
            _prepare(task, config, context.seed)
        try:
            found = evaluator.evaluate(
                lm=model,
                task_dict=loaded,
                limit=context.limit,
                bootstrap_iters=config.bootstrap,
                log_samples=False,
            )
        except ValueError as error:
            raise UserError(
                f"lm-eval cannot evaluate the task {context.task}: {_words(error)}"
            ) from error
    yield from _measured(found, context.task)


def _prepare(task: Any, config: LmEval, seed: int) -> None:
    """Set the number of examples, and what draws them, as ``simple_evaluate`` does."""
    fixed = task.get_config("num_fewshot")
    if fixed is None:
        task.set_config(key="num_fewshot", value=config.num_fewshot or 0)
    elif config.num_fewshot is not None and fixed != 0:
        task.set_config(key="num_fewshot", value=config.num_fewshot)
    task.set_fewshot_seed(seed=seed)


def _measured(found: Any, asked: str) -> Iterator[Measured]:
    subtasks = found.get("group_subtasks", {})
    counts = {name: each["effective"] for name, each in found["n-samples"].items()}

    def samples(name: str) -> int:
        if name in counts:
            return int(counts[name])
        return sum(samples(part) for part in subtasks.get(name, ()))

    for task, values in found["results"].items():
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = values.get(f"{metric}_stderr,{kind}")
            better = found.get("higher_is_better", {}).get(task, {}).get(metric)
            version = found.get("versions", {}).get(task)
            shots = found.get("n-shot", {}).get(task)
            yield Measured(
                task=None if task == asked else task,
                metric=metric if kind == "none" else f"{metric},{kind}",
                value=value,
                stderr=stderr if isinstance(stderr, int | float) else None,
                samples=samples(task),
                higher_is_better=better if isinstance(better, bool) else None,
                version=_version(version),
                few_shot=shots if isinstance(shots, int) else None,
            )


def _version(of_task: object) -> str:
    """Return the version of a task and that of the harness."""
    harness = f"lm-eval {metadata.version(PACKAGE)}"
    return harness if of_task in (None, "Yaml") else f"{of_task}, {harness}"


def _words(error: BaseException) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) < 300 else f"{words[:300]}…"


# ---------------------------------------------------------------------------- tasks


def _folder() -> Path:
    """Return the harness's own folder of tasks.

    Raises:
        UserError: the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            "the evaluator lm_eval needs the package lm-eval, which is not installed",
            valid="`pip install 'atom-evaluators[lm-eval]'`",
        )
    return Path(next(iter(found.submodule_search_locations))) / "tasks"


def _own_names(folder: Path) -> frozenset[str]:
    """Return the names in the harness; reading its thousands of files takes seconds, once."""
    harness = _folder()
    version = metadata.version(PACKAGE)
    file = folder / f"tasks-{version}.json"
    try:
        told = json_data.read(file)
        if told["folder"] == str(harness):
            return frozenset(map(str, told["tasks"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = sorted(_manager(None, "").all_tasks)
    try:
        make_folder(folder)
        write_text(file, json.dumps({"folder": str(harness), "tasks": found}))
    except OSError:  # the next call reads them again
        pass
    return frozenset(found)


def _manager(include: str | None, task: str) -> Any:
    """Return the harness's index of tasks."""
    if include is None:
        return _index(None, own=True)
    folder = Path(include).expanduser()
    # A group or a tag can have tasks of the harness; reading those takes seconds.
    own = task not in task_folder.names(folder, _folder()).tasks
    return _index(folder, own=own)


@cache
def _index(folder: Path | None, *, own: bool) -> Any:
    from lm_eval.api import metrics  # registers the metrics
    from lm_eval.api.registry import metric_registry
    from lm_eval.tasks import TaskManager

    del metrics
    if folder is None:
        return TaskManager()
    task_folder.check_metrics(folder, _folder(), set(metric_registry))
    return TaskManager(include_path=str(folder), include_defaults=own)


@contextmanager
def _sandbox() -> Iterator[None]:
    """Render the templates of tasks in Jinja's sandbox: those of a folder may be anyone's."""
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval import utils

    environment = ImmutableSandboxedEnvironment(
        loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters.update(utils.env.filters)
    with mock.patch.object(utils, "env", environment):
        yield
