"""The suite of a launcher: planning a submission returns text and has no side effects."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from atom.errors import UserError
from atom.launch.looked_at import LookedAt
from atom.plugin import LaunchContext, LaunchJob, Submission
from atom.recipe.sections import Launcher
from atom.registry.host import Component, Host
from atom.testing.applicable import where
from atom.testing.opened import opened
from atom.testing.options import Options
from atom.testing.suites.component import ComponentSuite

FEATURES = ("gpus", "cpus", "sweeps", "nodes", "time", "image", "mounts", "environment", "before")
"""Features that a launcher's system can lack."""

COMMAND = ("/usr/bin/python3", "-P", "-m", "atom.launch.node")
_MISSED = "the plan has not looked at this resource, so that ATOM refuses it; valid: unsupported="
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class LauncherSuite(Options, ComponentSuite):
    """The contract of a launcher. The planned submission is checked; nothing is submitted.

    Options, given by ``conformance(…).having(…)``:

    Attributes:
        unsupported: feature that the launcher's system lacks (``gpus``, ``cpus``, ``sweeps``,
            ``nodes``, ``time``, ``image``, ``mounts``, ``environment`` or ``before``) -> why. The
            launcher refuses it in a sentence; the other tests request all other features.
    """

    kind = "launcher"
    options = ("unsupported",)
    unsupported: ClassVar[Mapping[str, str]] = {}

    def check_section(self, section: Mapping[str, Any], component: Component, host: Host) -> None:
        shared = {key: value for key, value in section.items() if key in Launcher.model_fields}
        resources = Launcher.model_validate(shared).model_dump()
        defaults = Launcher(name=resources["name"]).model_dump()
        for key, value in resources.items():
            if value != defaults[key]:
                raise UserError("a file chooses a launcher, not resources", key=key, value=value)
        own = {key: value for key, value in section.items() if key not in Launcher.model_fields}
        super().check_section({"name": section.get("name"), **own}, component, host)

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """An empty folder, which is also the current one."""
        place = tmp_path / "empty"
        place.mkdir()
        monkeypatch.chdir(place)
        return place

    def planned(
        self, component: Component, config: BaseModel | None, context: LaunchContext
    ) -> Submission:
        """Return what the launcher would submit.

        Raises:
            UserError: the launcher refuses it, or did not read a requested resource.
        """
        submission = opened(component, config).call("plan", context)
        assert isinstance(submission, Submission), "plan returns no Submission"
        for name in context.resources.missed():
            raise UserError(f"{_MISSED} {name}", key=f"launcher.{name}")
        return submission

    def asked(self, folder: Path, *, jobs: int = 1, device: str | None = None) -> LaunchContext:
        """Return a request for all features that the launcher's system has."""
        unknown = set(self.unsupported) - set(FEATURES)
        assert not unknown, f"unsupported={unknown}; valid: {', '.join(FEATURES)}"
        device = device or ("cuda" if "cpus" in self.unsupported else "cpu")
        return context(folder, jobs=jobs, device=device, without=self.unsupported)

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    @pytest.mark.parametrize("jobs", [1, 3])
    def test_every_run_is_in_what_would_be_submitted(
        self, device: str, jobs: int, component: Component, config: Any, folder: Path
    ) -> None:
        """One run, and the runs of a sweep, on CPUs and on GPUs."""
        for feature, asked in {
            "gpus": device == "cuda",
            "cpus": device == "cpu",
            "sweeps": jobs > 1,
        }.items():
            if asked and feature in self.unsupported:
                pytest.skip(f"{self.name} has no {feature}: {self.unsupported[feature]}")
        given = self.asked(folder, jobs=jobs, device=device)
        text = written(self.planned(component, config, given))
        missing = [str(job.folder) for job in given.jobs if str(job.folder) not in text]
        assert not missing, "runs that nobody would start"

    @where(lambda suite, _: suite.unsupported)
    def test_refuses_what_its_system_lacks(
        self, component: Component, config: Any, folder: Path
    ) -> None:
        """An unsupported feature is refused in one sentence that names the key; all others are
        planned.
        """
        for feature in self.unsupported:
            others = set(self.unsupported) - {feature}
            device = "cuda" if feature == "gpus" or "cpus" in others else "cpu"
            jobs = 3 if feature == "sweeps" else 1
            given = context(folder, jobs=jobs, device=device, without=others)
            with pytest.raises(UserError) as refused:
                self.planned(component, config, given)
            assert "\n" not in refused.value.sentence()
            assert refused.value.key, f"no key is named: {refused.value.sentence()}"

    def test_planning_writes_nothing(self, component: Component, config: Any, folder: Path) -> None:
        """``launcher.dry_run=true`` requires that planning has no side effects."""
        before = dict(os.environ)
        self.planned(component, config, self.asked(folder))
        assert not list(folder.iterdir()), "files that ATOM has not written"
        assert dict(os.environ) == before, "the environment has changed"

    def test_the_same_run_is_the_same_submission(
        self, component: Component, config: Any, folder: Path
    ) -> None:
        first, again = (self.planned(component, config, self.asked(folder)) for _ in range(2))
        assert (first.files, first.commands, first.advice) == (
            again.files,
            again.commands,
            again.advice,
        )

    def test_files_and_commands_are_data(
        self, component: Component, config: Any, folder: Path
    ) -> None:
        """File names stay within their folder, and commands are not split by a shell."""
        jobs = 1 if "sweeps" in self.unsupported else 2
        submission = self.planned(component, config, self.asked(folder, jobs=jobs))
        strange = [name for name in submission.files if not _NAME.fullmatch(name)]
        assert not strange, "names of files"
        assert all(isinstance(text, str) for text in submission.files.values())
        for command in submission.commands:
            assert isinstance(command, tuple)
            assert command
            assert all(isinstance(word, str) for word in command)

    def test_resources_are_handed_on(self, component: Component, config: Any, folder: Path) -> None:
        """The environment and the setup commands of a run reach its ranks."""
        text = written(self.planned(component, config, self.asked(folder)))
        words = {"environment": ("ATOM_CONFORMANCE", "level 3"), "before": ("echo before",)}
        for feature, its in words.items():
            for word in () if feature in self.unsupported else its:
                assert word in text, f"{word!r} is lost"


def context(
    folder: Path, *, jobs: int = 1, device: str = "cpu", without: Container[str] = ()
) -> LaunchContext:
    """Return a request for two nodes, with eight GPUs each if the device is a GPU.

    It has an image, and a volume ``shared`` that holds the runs.

    Args:
        folder: folder of the runs.
        jobs: number of runs.
        device: their device.
        without: :data:`FEATURES` to leave out.
    """
    values: dict[str, Any] = {
        "time": "30",
        "image": "ghcr.io/lab/atom:1",
        "mounts": [f"shared:{folder}"],
        "environment": {"ATOM_CONFORMANCE": "level 3"},
        "before": ["echo before"],
        "nodes": 2,
    }
    resources = Launcher(
        gpus_per_node=8 if device == "cuda" else None,
        gpu="h100" if device == "cuda" else None,
        **{name: value for name, value in values.items() if name not in without},
    )
    ranks = resources.nodes * (8 if device == "cuda" else 2)
    places = [folder / "run"] if jobs == 1 else [folder / str(number) for number in range(jobs)]
    return LaunchContext(
        jobs=tuple(
            LaunchJob(folder=place, ranks=ranks, device=device, command=COMMAND) for place in places
        ),
        place=places[0] if jobs == 1 else folder,
        resources=LookedAt(resources),
        max_restarts=3,
        python=COMMAND[0],
    )


def written(submission: Submission) -> str:
    """Return all content of a submission as one text."""
    commands = [" ".join(command) for command in submission.commands]
    return "\n".join([*submission.files.values(), *commands, submission.advice])


CONFORMANCE = LauncherSuite
