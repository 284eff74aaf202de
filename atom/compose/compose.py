"""Compose each job of a Hydra command line into a :class:`atom.recipe.run.Run`.

Groups come from ATOM's own ``conf/`` and from the ``conf/`` folder of every installed plugin.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from atom.compose import (
    averages,
    choices,
    command_line,
    hydra_words,
    plugin_lists,
    sweeps,
    users_alone,
)
from atom.compose.groups import CONFIG_NAME, HYDRA, Groups
from atom.compose.guard import (
    Loader,
    current,
    guarded,
    hide_hydra_plugins,
    refusal,
    user_folder,
)
from atom.compose.internals import create_automatic_config_search_path
from atom.compose.origins import Origins
from atom.compose.repairs import COMMAND_LINE
from atom.errors import UserError
from atom.plugin import Kernel
from atom.recipe import effects, lengths, schedules
from atom.recipe.components import MANY
from atom.recipe.run import Run, parse
from atom.recipe.sections import Plugins
from atom.recipe.settings import leaves
from atom.redaction import exposed
from atom.registry.host import Host
from atom.registry.trust import SECTION

_PACKAGE = Path(__file__).parents[1]
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())
"""ATOM's own groups: inside the package in a wheel, beside it in a checkout."""

# Errors that Hydra's own code raises on an unexpected file.
_MISTAKES = (ValueError, AssertionError, RecursionError)

_ASSIGNMENT = re.compile(r"[A-Za-z_][\w.]*(?==)")
_RECIPE = re.compile(r"\+?recipe=(.*)")
_RERUN = "--experimental-rerun"

RESOLVED = "resolved"
"""Section of ``run.yaml`` that only ATOM writes."""


def main(arguments: list[str], task: Callable[[DictConfig], float | None], host: Host) -> None:
    """Run Hydra's command line; call ``task`` with the composed config of each job.

    ``task`` returns the value by which one of Hydra's sweepers compares jobs.

    Raises:
        UserError: the configuration cannot be composed, or ``task`` refuses it.
    """
    arguments = command_line.arranged(arguments)
    for name in (match[1] for a in arguments if (match := _RECIPE.fullmatch(a))):
        raise UserError(
            "is a recipe of stages",
            key="recipe",
            value=name,
            origin="command line",
            valid=f"atom recipe run {name}",
        )
    if any(argument.startswith(_RERUN) for argument in arguments):
        raise UserError(f"{_RERUN} executes a pickle, and ATOM reads no pickles")
    groups = Groups(host.plugins)
    for warning in host.warnings:
        print(f"atom: {warning}", file=sys.stderr)
    failures: list[BaseException] = []

    made: list[bool] = []
    process = os.getpid()

    def job(config: DictConfig) -> float | None:
        if os.getpid() != process:  # a Hydra launcher runs it in another process
            with guarded(arguments, groups, str(CONF)):
                return task(config)
        # Store the error and raise it below; otherwise Hydra would print its own message first.
        if not failures:
            try:
                result = task(config)
                made.append(not (config.get("dry_run") or config.launcher.get("dry_run")))
                return result
            except (Exception, KeyboardInterrupt) as error:
                failures.append(error)
                made.append(not isinstance(error, UserError))
        return math.nan  # no sweeper accepts it as a result

    sweep = command_line.MULTIRUN in arguments
    names = groups.names | _folders(arguments)
    rewritten = [
        a
        if a.startswith("-")
        else _addable(command_line.literal(a, command_line.taken(a, host), sweep=sweep), names)
        for a in arguments
    ]
    saved_environment = os.environ.get("HYDRA_FULL_ERROR")
    # Makes Hydra raise its errors instead of printing them and exiting with its own code.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    line = ["atom train", *_sweep_folder(rewritten), *rewritten]
    hide_hydra_plugins(host.blocked)
    try:
        with (
            COMMAND_LINE.replaced(line),
            guarded(arguments, groups, str(CONF)),
            sweeps.tidied(lambda: not any(made)),
        ):
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=CONFIG_NAME)(job)()
    except MissingConfigException as error:
        if "/" not in (error.missing_cfg_file or ""):
            raise hydra_words.mistake(error, arguments, names) from None
        raise choices.missing(error, host, config_loader(host)) from None
    except OverrideParseException as error:
        raise UserError(
            f"{error.override.lstrip('+')} (command line): cannot be parsed as an override",
            valid="KEY=VALUE, or with quotes around the value, as in \"KEY='VALUE'\"",
        ) from None
    except UserError:
        raise
    # Hydra raises many error classes for faults in a file or an override.
    except (HydraException, OmegaConfBaseException, *_MISTAKES) as error:
        if failures:  # a sweeper without results
            raise failures[0] from None
        raise (refusal(error) or hydra_words.mistake(error, arguments, names)) from None
    finally:
        if saved_environment is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = saved_environment
    if failures:
        raise failures[0]


def config_loader(host: Host, config_dir: str | None = None) -> Loader:
    """Return a loader over the groups of ATOM, the plugins and a folder, for completion."""
    hide_hydra_plugins(host.blocked)
    search_path = create_automatic_config_search_path(None, None, str(CONF))
    if config_dir is not None:
        place = f"file://{Path(config_dir).absolute()}"
        search_path.prepend("command-line", place, SearchPathQuery(provider="schema"))
    return Loader(search_path, groups=Groups(host.plugins), own=str(CONF))


def run_of(config: DictConfig, host: Host, origins: Origins | None = None) -> Run:
    """Return the run that a job's composed config describes.

    Raises:
        UserError: with ``origin`` set to the source of the faulty value.
    """
    origins = origins or Origins(config)
    try:
        _check_trust(config)
        choices.check(host, config, origins.defaults)
        _check_others(config, host, origins)
        run = _parsed(config)
        _check_removals(run)
        averages.check(run, host)
        sweeps.check(run, host)
        schedules.check(run, origins.given)
        packages = [plugin.package for plugin in host.plugins]
        section = host.trust.section(packages, _packages_used(run, host))
        strategy = host.find("parallelism", run.parallelism.name, key="parallelism.name")
        chooses = getattr(strategy.declaration, "choose", None) is not None
        where = effects.composed(run, chooses=chooses)
        effects.check(run, where, origins.given)
        lengths.check(run, where.degrees.get("context_parallel_degree"))
        return run.model_copy(update={"plugins": Plugins(**section)})
    except UserError as error:
        origins.attach(error)
        raise
    except OmegaConfBaseException as error:
        mistake = hydra_words.unresolved(error)
        origins.attach(mistake)
        raise mistake from None


def _parsed(config: DictConfig) -> Run:
    for key in sorted(OmegaConf.missing_keys(config)):
        raise UserError("is required and has no value", key=key)
    sections = OmegaConf.to_container(config, resolve=True)
    assert isinstance(sections, dict)
    sections.pop(SECTION, None)
    _check_secrets({str(name): section for name, section in sections.items()})
    if (found := sections.get(RESOLVED)) is not None:
        below = f"{RESOLVED}.{next(iter(found))}" if isinstance(found, dict) and found else RESOLVED
        raise UserError("is determined by ATOM before a run", valid="leave it out", key=below)
    return parse({str(name): _at_home(section, str(name)) for name, section in sections.items()})


def _check_secrets(sections: dict[str, Any]) -> None:
    """Refuse a secret where it would be stored; in the launcher section secrets are redacted."""
    others = {name: section for name, section in sections.items() if name != "launcher"}
    for found in exposed(others, ""):
        raise UserError(
            f"holds {found.what}, which would be written to run.yaml",
            valid=f"{found.instead}",
            key=found.key,
            value=found.shown,
        )


def _typed() -> list[str]:
    """Return the overrides of the command line as typed, without Hydra's."""
    # Unresolved: a reference in one of them is to the run, and not to this list.
    overrides = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return [str(override) for override in overrides or ()]


def _check_removals(run: Run) -> None:
    """Refuse each ``~KEY`` that removes nothing."""
    typed = _typed()
    for removal in typed:
        if not removal.startswith("~") or removal.startswith(f"~{SECTION}."):
            continue
        others = [
            *HydraConfig.get().overrides.hydra,
            *(override for override in typed if override != removal),
        ]
        try:
            without = current().load_configuration(CONFIG_NAME, others, RunMode.RUN)
            same = (
                _parsed(OmegaConf.masked_copy(without, [str(k) for k in without if k != HYDRA]))
                == run
            )
        except (UserError, HydraException, OmegaConfBaseException):
            continue  # the run requires it
        if same:
            raise UserError(
                f"{removal.removesuffix('=null')} (command line): removes nothing: the run is the "
                "same without it",
                valid=f"{removal[1:].partition('=')[0]}=VALUE, or leave it out",
            )


def do(config: DictConfig, *, host: Host, job: Callable[[Run], float | None]) -> float | None:
    """Compose ``config`` and call ``job``; attach the origin of the value to an error."""
    origins = Origins(config)
    run = run_of(config, host, origins)
    try:
        return job(
            run.with_origins(
                lambda: origins.every(leaves(run.model_dump(mode="json"))), origins.given
            )
        )
    except UserError as error:
        origins.attach(error)
        raise


def _at_home(value: Any, key: str) -> Any:
    """Return a section with ``~`` expanded; a shell expands it only at the start of a word."""
    if isinstance(value, dict):
        return {name: _at_home(child, f"{key}.{name}") for name, child in value.items()}
    if isinstance(value, list):
        return [_at_home(child, key) for child in value]
    # The launcher's folders are on other machines.
    if isinstance(value, str) and not key.startswith("launcher."):
        return command_line.home_expanded(value)
    return value


def _folders(arguments: list[str]) -> set[str]:
    """Return the groups in ATOM's own folder and in the folder that the user has named."""
    named = (a.partition("=")[2] for a in arguments if a.startswith("--config-dir="))
    folders = [CONF, user_folder(), *map(Path, named)]
    found = (child for folder in folders if folder.is_dir() for child in folder.iterdir())
    return {child.name for child in found if child.is_dir()}


def _addable(argument: str, groups: set[str]) -> str:
    """Let ``KEY=VALUE`` set a key that no file contains; the schemas check all keys."""
    match = _ASSIGNMENT.match(argument)
    if match is None or match[0].startswith("hydra."):
        return argument
    sections = match[0] in MANY and argument.startswith("={", match.end())
    if match[0] in groups and not sections:
        return argument  # an option, or a list of them
    return f"++{argument}"


def _sweep_folder(arguments: list[str]) -> list[str]:
    """Let ``run.dir`` name the folder of a sweep; its runs use numbered subfolders."""
    places = [a for a in arguments if a.lstrip("+").startswith("run.dir=")]
    if not places or command_line.MULTIRUN not in arguments:
        return []
    override = OverridesParser.create().parse_override(places[-1])
    place = override.value()
    # Several folders are one per run: see `place_of`.
    if override.is_sweep_override() or not isinstance(place, str):
        return []
    return [f"hydra.sweep.dir={command_line.quoted(command_line.home_expanded(place))}"]


def _check_trust(config: DictConfig) -> None:
    """Refuse a file that sets plugin lists: the plugins have already been loaded."""
    section = config.get(SECTION)
    if OmegaConf.is_config(section):
        section = OmegaConf.to_container(section)
    decided = plugin_lists.typed(_typed())
    for name, value in section.items() if isinstance(section, dict) else [("", section)]:
        listed = value if isinstance(value, list) or name == "locked" else [value]
        if value not in (None, []) and listed != decided.get(name):
            raise UserError(
                "a file cannot decide which plugins are loaded, because it is read after them",
                valid="the command line, the environment, or your own plugins.yaml",
                key=f"{SECTION}.{name}".rstrip("."),
                value=value,
            )


def _check_others(config: DictConfig, host: Host, origins: Origins) -> None:
    """Refuse untrusted files that set what only the user may set."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        # If a Hydra launcher has moved the job to another process, read its files again there.
        _ = origins.files
    name = OmegaConf.select(config, "launcher.name")
    users_alone.check(current().of_others, name, _typed(), host)


def _packages_used(run: Run, host: Host) -> set[str]:
    """Return the packages that a run needs: those of its components and of its
    candidate kernels.
    """
    used = {
        host.find(kind.kind, section.name, key=f"{key}.name").plugin.package
        for kind, key, section in run.components()
        if kind.in_ranks
    }
    preferences = [*run.kernels.values(), run.kernels.get("default", "auto")]
    names = {name for p in preferences for name in ([p] if isinstance(p, str) else p)}
    return used | {
        component.plugin.package
        for component in host.components
        if isinstance(component.declaration, Kernel)
        and ("auto" in names or component.declaration.name in names)
    }
