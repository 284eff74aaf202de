"""Hydra's command line over ATOM's config groups, and from its result to a :class:`atom.run.Run`.

Groups come from ATOM's own ``conf/`` and from the ``conf/`` folder of every installed plugin.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from atom.errors import UserError, nearest
from atom.host import Host
from atom.run import Run, parse

CONFIG_NAME = "train"

_PACKAGE = Path(__file__).parent
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())
"""ATOM's own groups: inside the package in a wheel, beside it in a checkout."""

_ASSIGNMENT = re.compile(r"[A-Za-z_][\w.]*(?==)")
_RESERVED = re.compile(r"_\w+_")


def main(arguments: list[str], task: Callable[[DictConfig], None], host: Host) -> None:
    """Run Hydra's command line; call ``task`` with the composed config of each job.

    Raises:
        UserError: what was asked for cannot be composed, or ``task`` refuses it.
    """
    register(host)
    failures: list[BaseException] = []

    def job(config: DictConfig) -> None:
        # Kept and raised below: Hydra would print its own words about it first.
        if not failures:
            try:
                task(config)
            except (Exception, KeyboardInterrupt) as error:
                failures.append(error)

    rewritten = [_addable(argument, _groups(host, arguments)) for argument in arguments]
    saved, saved_environment = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    # Hydra then raises its errors instead of printing them and leaving with its own exit code.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = ["atom train", *rewritten, *_sweep_folder(arguments)]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=CONFIG_NAME)(job)()
    except MissingConfigException as error:
        raise _missing(error, host) from None
    except OverrideParseException as error:
        raise UserError(
            f"{error.override.lstrip('+')} (command line): is no override that Hydra can read: "
            + _one_line(Exception(error.message))
        ) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error)) from None
    finally:
        sys.argv = saved
        if saved_environment is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = saved_environment
    if failures:
        raise failures[0]


def config_loader(host: Host | None = None) -> ConfigLoaderImpl:
    """Return a loader over ATOM's and the plugins' groups, for completion."""
    register(host or Host.load())
    return ConfigLoaderImpl(create_automatic_config_search_path(None, None, str(CONF)))


def register(host: Host) -> None:
    """Put the groups of every plugin on Hydra's search path."""

    class PluginGroups(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for plugin in host.plugins:
                if plugin.conf is not None:
                    search_path.append(plugin.package, f"file://{plugin.conf}")

    Plugins.instance().register(PluginGroups)


def run_of(config: DictConfig, host: Host) -> Run:
    """Return the run that a job's composed config describes.

    Raises:
        UserError: with ``origin`` set to where the value at fault came from.
    """
    origins = Origins(config)
    try:
        _refuse_instantiation(config)
        _check_choices(host)
        for key in sorted(OmegaConf.missing_keys(config)):
            raise UserError("is required and has no value", key=key)
        sections = OmegaConf.to_container(config, resolve=True)
        assert isinstance(sections, dict)
        return parse({str(name): section for name, section in sections.items()})
    except UserError as error:
        origins.attach(error)
        raise
    except OmegaConfBaseException as error:
        mistake = UserError(_one_line(error), key=error.full_key or None)
        origins.attach(mistake)
        raise mistake from None


class Origins:
    """Where the values of a job's config came from. Hydra does not keep it; it can be found."""

    def __init__(self, config: DictConfig) -> None:
        # Unresolved: an override may hold an interpolation, which is the config's and not Hydra's.
        task = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        self._overrides = [str(override) for override in task or ()]
        self._config = config

    def attach(self, error: UserError) -> None:
        """Give ``error`` the ``origin`` of its key, once."""
        if error.key is not None and getattr(error, "origin", None) is None:
            error.origin = self.of(error.key)  # type: ignore[attr-defined]

    def of(self, key: str) -> str:
        """Return ``command line``, a file, or ``default`` for a value that nobody has set."""
        for override in self._overrides:
            name = override.lstrip("+~").partition("=")[0]
            if key == name or (key.startswith(f"{name}.") and not _is_group(name)):
                return "command line"
        for path, config in self._files():
            if OmegaConf.select(config, key, throw_on_missing=False) is not None:
                return path
        group = key.partition(".")[0]
        if any(o.lstrip("+").startswith(f"{group}=") for o in self._overrides):
            return "command line"
        return "default"

    def _files(self) -> Iterator[tuple[str, Any]]:
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        repository = CachingConfigRepository(loader.repository)
        defaults = loader.compute_defaults_list(CONFIG_NAME, self._overrides, RunMode.RUN)
        for default in reversed(defaults.defaults):
            if default.config_path is None or default.config_path.startswith("hydra/"):
                continue
            loaded = loader._load_single_config(default, repository)
            folder = str(loaded.path).removeprefix("file://")
            path = Path(folder) if folder.endswith(".yaml") else Path(folder, default.config_path)
            yield str(path.with_suffix(".yaml")), loaded.config


def _is_group(name: str) -> bool:
    loader = GlobalHydra.instance().config_loader()
    return bool(loader.list_groups("")) and name in loader.list_groups("")


def _groups(host: Host, arguments: list[str]) -> set[str]:
    folders = [CONF, *(plugin.conf for plugin in host.plugins if plugin.conf is not None)]
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if option in ("--config-dir", "-cd"):
            folders.append(Path(value))
        elif option.startswith("--config-dir="):
            folders.append(Path(option.partition("=")[2]))
    return {
        child.name
        for folder in folders
        if folder.is_dir()
        for child in folder.iterdir()
        if child.is_dir()
    }


def _addable(argument: str, groups: set[str]) -> str:
    """Let ``KEY=VALUE`` set a key that no file has written down: the schemas check all keys."""
    match = _ASSIGNMENT.match(argument)
    if match is None or match[0] in groups or match[0].startswith("hydra."):
        return argument
    return f"++{argument}"


def _sweep_folder(arguments: list[str]) -> list[str]:
    """Let ``run.dir`` name the folder of a sweep: its runs are numbered folders in it."""
    places = [a.partition("=")[2] for a in arguments if a.lstrip("+").startswith("run.dir=")]
    if not places or not {"-m", "--multirun"} & set(arguments):
        return []
    return [f"hydra.sweep.dir={places[-1]}"]


def _refuse_instantiation(node: Any, path: str = "") -> None:
    if not isinstance(node, DictConfig):
        return
    for key in node:
        key = str(key)
        name = f"{path}.{key}" if path else key
        if _RESERVED.fullmatch(key):
            raise UserError(
                "a configuration names what plugins have registered and cannot instantiate "
                "anything else; remove this key",
                key=name,
            )
        if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
            _refuse_instantiation(node[key], name)


def _check_choices(host: Host) -> None:
    """Refuse an option that no package has (Hydra skips it where the default is optional)."""
    loader = GlobalHydra.instance().config_loader()
    for group, option in HydraConfig.get().runtime.choices.items():
        if group.startswith("hydra/") or option is None:
            continue
        offered = loader.get_group_options(group)
        if option not in offered:
            raise _unknown_option(group, option, offered, host)
        owners = [
            plugin.package
            for plugin in host.plugins
            if plugin.conf is not None and (plugin.conf / group / f"{option}.yaml").is_file()
        ]
        if len(set(owners)) > 1:
            raise UserError(
                f"the packages {' and '.join(sorted(set(owners)))} both ship this option; "
                "uninstall one, or copy the file under another name into a --config-dir",
                key=group,
                value=option,
            )


def _unknown_option(group: str, option: str, offered: list[str], host: Host) -> UserError:
    owners = {
        file.stem: plugin.package
        for plugin in host.plugins
        if plugin.conf is not None and (plugin.conf / group).is_dir()
        for file in (plugin.conf / group).glob("*.yaml")
    }
    if not offered:
        return UserError(
            "no installed package has any option of this group; `atom plugins` lists what is "
            "installed",
            key=group,
            value=option,
        )
    hint = nearest(option, offered)
    named = {owners[name] for name in offered if name in owners and name in hint}
    where = f" (from {', '.join(sorted(named))})" if named else ""
    return UserError(f"there is no such option; {hint}{where}", key=group, value=option)


def _missing(error: MissingConfigException, host: Host) -> UserError:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return UserError(_one_line(error))
    missing = _unknown_option(group, option, list(error.options or []), host)
    missing.origin = "command line"  # type: ignore[attr-defined]
    return missing


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
