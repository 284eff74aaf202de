"""Find the evaluators that a run can be scored by, and the tasks that a user names."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from atom.errors import UserError, nearest
from atom.io import strangers
from atom.io.files import is_regular
from atom.plugin import Evaluator
from atom.recipe.run import Run, read
from atom.registry.host import Host
from atom.registry.opening import Chosen, Opener
from atom.registry.trust import Trust
from atom.run_dir.folder import RUN_FILE

OPTION = "--tasks"
CONFIG = "config.json"
"""The file of a model in Hugging Face's format."""


@dataclass(frozen=True)
class Task:
    """A task of an evaluator.

    Attributes:
        evaluator: the evaluator.
        name: the task.
    """

    evaluator: Chosen[Evaluator]
    name: str


class Evaluators:
    """The evaluators that can be used, by name.

    They are those that the user gives, those of the run, and all installed ones that work without
    parameters.

    Args:
        host: the plugins.
        run: the run; None for a folder without one.
        given: name -> an evaluator's name, or a mapping of it and its parameters.

    Attributes:
        named: the names that the user or the run has given.

    Raises:
        UserError: an evaluator is unknown, or has an invalid parameter.
    """

    def __init__(self, host: Host, run: Run | None, given: Mapping[str, Any]) -> None:
        self._opener = Opener(host)
        self.by_name: dict[str, Chosen[Evaluator]] = {}
        sections = {} if run is None else getattr(run, Evaluator.section)
        for name, section in sections.items():
            key = f"{Evaluator.section}.{name}"
            self.by_name[name] = self._opener.of_section(Evaluator, section, key)
        for name, value in given.items():
            self.by_name[name] = self._opened(name, value)
        self.named = frozenset(self.by_name)
        for component in host.components:
            if component.kind == Evaluator.kind and component.name not in self.by_name:
                name = component.address
                chosen: Chosen[Evaluator] | None = None
                try:
                    chosen = self._opener.choose(Evaluator, name, {}, component.name)
                except UserError:  # it needs parameters
                    continue
                self.by_name[component.name] = chosen
        self._tasks: dict[str, Collection[str] | UserError] = {}

    def _opened(self, name: str, value: Any) -> Chosen[Evaluator]:
        section = {"name": value} if isinstance(value, str) else value
        key = f"{Evaluator.section}.{name}"
        if not isinstance(section, dict):
            raise UserError(
                "is no evaluator", valid="a name, or {name: NAME, parameters}", key=key, value=value
            )
        rest = {str(k): v for k, v in section.items() if k != "name"}
        return self._opener.choose(Evaluator, section.get("name", name), rest, key)

    def tasks(self, name: str) -> Collection[str]:
        """Return the tasks of an evaluator.

        Raises:
            UserError: they cannot be listed, for example because a package is missing.
        """
        if name not in self._tasks:
            try:
                self._tasks[name] = self.by_name[name].call("tasks")
            except UserError as error:
                self._tasks[name] = error
        found = self._tasks[name]
        if isinstance(found, UserError):
            raise found
        return found

    def find(self, words: Sequence[str]) -> list[Task]:
        """Return the tasks that a user names: ``TASK`` or ``EVALUATOR:TASK``, or a pattern of them.

        Raises:
            UserError: there is no such task, or several evaluators have it.
        """
        found = [task for word in words for task in self._find(word)]
        return list({(task.evaluator.key, task.name): task for task in found}.values())

    def _find(self, word: str) -> list[Task]:
        evaluator, colon, name = word.partition(":")
        if colon and evaluator in self.by_name:
            names = self._matching(evaluator, name)
            if not names:
                hint = nearest(name, self.tasks(evaluator))
                raise UserError(
                    f"the evaluator {evaluator} has no task {name}; {hint}", key=OPTION, value=word
                )
            return [Task(self.by_name[evaluator], each) for each in names]
        found: dict[str, list[str]] = {}
        for evaluator in self.by_name:
            try:
                names = self._matching(evaluator, word)
            except UserError:
                continue
            if names:
                found[evaluator] = names
        if len(found) == 1:
            ((evaluator, names),) = found.items()
            return [Task(self.by_name[evaluator], each) for each in names]
        if found:
            raise UserError(
                f"several evaluators have this task: {', '.join(found)}",
                valid=" or ".join(f"{evaluator}:{word}" for evaluator in found),
                key=OPTION,
                value=word,
            )
        raise UserError(self._missing(word), key=OPTION, value=word)

    def _matching(self, evaluator: str, name: str) -> list[str]:
        tasks = self.tasks(evaluator)
        if name in tasks:
            return [name]
        if not any(character in name for character in "*?["):
            return []
        return sorted(task for task in tasks if fnmatchcase(task, name))

    def _missing(self, word: str) -> str:
        if not self.by_name:
            return "no plugin offers any evaluator; install a package that does"
        every: set[str] = set()
        unable = []
        for evaluator in self.by_name:
            try:
                every |= set(self.tasks(evaluator))
            except UserError as error:
                unable.append(f"{evaluator} cannot list its tasks: {error.sentence()}")
        problem = f"there is no task {word}"
        if every:
            problem += f"; {nearest(word, every)}"
        return "; ".join([problem, *unable])


def of_folder(folder: Path, given: Mapping[str, Any]) -> tuple[Run | None, Evaluators]:
    """Return a run, and the evaluators that it can be scored by.

    Args:
        folder: the folder of the run or of its export; or a folder in Hugging Face's format, which
            has no run.
        given: as for :class:`Evaluators`.

    Raises:
        UserError: there is no model, or an evaluator cannot be used.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder", valid="one of a run")
    strangers.check(folder)
    if is_regular(folder / RUN_FILE):
        run = read(folder / RUN_FILE)
        # Evaluators need not be among the packages of the run.
        host = Host.load(replace(Trust.of_run(run.plugins), only=None))
        return run, Evaluators(host, run, given)
    if not is_regular(folder / CONFIG):
        raise UserError(
            f"{folder} holds neither {RUN_FILE} nor {CONFIG}",
            valid="the folder of a run, its export, or a folder in Hugging Face's format",
        )
    return None, Evaluators(Host.load(), None, given)
