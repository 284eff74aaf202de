"""Serve the config group files of all plugins to Hydra as one source.

Hydra queries every source for every file, and copies all sources for each composition. With a
source per plugin, a thousand plugins would dominate the time to compose; one source with an index
does not.
"""

from __future__ import annotations

import copy
import io
import os
import re
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from atom.compose.internals import FileConfigSource
from atom.errors import UserError
from atom.io import yaml_data
from atom.plugin import KINDS
from atom.registry.host import Plugin

CONFIG_NAME = "train"
"""Name of the primary config."""

HYDRA = "hydra"
SUFFIX = ".yaml"

RECIPES = "recipe"
"""Folder of recipes (:mod:`atom.compose.recipe_files`), which are no part of a run."""

_HYDRA_GROUP = re.compile(rf"\s*((optional|override)\s+)*/*{HYDRA}(?![\w-])")


class Groups:
    """An index from paths without suffix, such as ``architecture/llama3_8b``, to plugins."""

    def __init__(self, plugins: tuple[Plugin, ...]) -> None:
        self._plugins = plugins

    @cached_property
    def owners(self) -> dict[str, list[Plugin]]:
        """The plugins with a file of that name; the file of the first one is used."""
        found: dict[str, list[Plugin]] = {}
        for plugin in self._plugins:
            if plugin.conf is not None:
                for name in _files(str(plugin.conf), ""):
                    found.setdefault(name, []).append(plugin)
        return found

    @cached_property
    def options(self) -> dict[str, set[str]]:
        """The options of each group, subgroups included: ``{"": …, "architecture": …}``."""
        found: dict[str, set[str]] = {"": set()}
        for name in self.owners:
            group, _, option = name.rpartition("/")
            if group.partition("/")[0] == RECIPES:
                continue
            found.setdefault(group, set()).add(option)
            while group:
                group = group.rpartition("/")[0]
                found.setdefault(group, set())
        return found

    @property
    def names(self) -> set[str]:
        """The top-level groups: ``architecture``, ``tokenizer``, …"""
        return {group for group in self.options if group and "/" not in group}

    def owner(self, group: str, option: str) -> str | None:
        """Return the package that provides an option, or None."""
        plugins = self.owners.get(f"{group}/{option}")
        return plugins[0].package if plugins else None


class PluginSource(ConfigSource):
    """A Hydra config source with the files of plugins: ``atom://plugins``."""

    PROVIDER = "plugins"

    def __init__(self, groups: Groups) -> None:
        super().__init__(provider=self.PROVIDER, path=f"{self.scheme()}://plugins")
        self.groups = groups

    def __deepcopy__(self, memo: Any) -> PluginSource:
        return self  # immutable; Hydra copies its sources for each composition

    @staticmethod
    def scheme() -> str:
        return "atom"

    def load_config(self, config_path: str) -> ConfigResult:
        name = config_path.removesuffix(SUFFIX)
        if name not in self.groups.owners:
            raise ConfigLoadError(f"Config not found : {config_path}")
        plugin = self.groups.owners[name][0]
        assert plugin.conf is not None
        return loaded(plugin.conf, config_path, self.provider)

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path.strip("/") in self.groups.options

    def is_config(self, config_path: str) -> bool:
        return config_path.removesuffix(SUFFIX) in self.groups.owners

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        group = config_path.strip("/")
        found: set[str] = set()
        if results_filter != ObjectType.GROUP:
            found |= self.groups.options.get(group, set())
        if results_filter != ObjectType.CONFIG:
            found |= {
                below.rpartition("/")[2]
                for below in self.groups.options
                if below and below.rpartition("/")[0] == group
            }
        return sorted(found)


class FolderSource(FileConfigSource):
    """A folder of config files. If ``trusted``, as ATOM's own, its files can configure Hydra."""

    def __init__(self, provider: str, path: str, *, trusted: bool) -> None:
        super().__init__(provider, path)
        self.trusted = trusted

    def load_config(self, config_path: str) -> ConfigResult:
        folder, file = Path(self.path), Path(self.path, self._normalize_file_name(config_path))
        # A link in a folder from someone else could expose a file outside of it.
        if not self.trusted and not file.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{file} is a link out of {folder}, and is refused")
        found = loaded(folder, config_path, self.provider, trusted=self.trusted)
        if self.trusted and config_path.removesuffix(SUFFIX) == CONFIG_NAME:
            _let_choose(found.config)
        return found

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        found = super().list(config_path, results_filter)
        if not config_path.strip("/"):
            found = [name for name in found if name != RECIPES]
        return [name for name in found if not self._goes_round(Path(self.path, config_path, name))]

    @staticmethod
    def _goes_round(path: Path) -> bool:
        """Return whether a path is a link to one of its own parents."""
        return path.is_symlink() and path.resolve() in map(Path.resolve, path.parents)


def _let_choose(config: Any) -> None:
    """Add the kinds without a default in ``train.yaml`` to its list of groups."""
    groups = [_group(entry) for entry in config.defaults]
    sections = [kind.section for kind in KINDS]
    last = max(place for place, group in enumerate(groups) if group in sections)
    for section in reversed(sections):
        if section not in groups:
            config.defaults.insert(last + 1, {f"optional {section}": None})


def _group(entry: Any) -> str:
    """Return the group of an entry of a defaults list: of ``optional dataset: stdlib``, dataset."""
    return str(next(iter(entry))).split()[-1] if OmegaConf.is_dict(entry) else ""


def loaded(folder: Path, name: str, provider: str, *, trusted: bool = False) -> ConfigResult:
    """Load a file of a config folder as Hydra would, if it is plain data.

    Raises:
        UserError: it is not plain data, or it sets Hydra's own section, which can execute code,
            and is not ``trusted``.
        ConfigLoadError: the file does not exist.
    """
    file = folder / (name if name.endswith(SUFFIX) else name + SUFFIX)
    try:
        text = yaml_data.text_of(file)
    except FileNotFoundError:
        raise ConfigLoadError(f"Config not found : {file}") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    # Hydra moves nodes of the config into others.
    config = copy.deepcopy(_parsed(text, str(file)))
    header = ConfigSource._get_header_dict(text[:512])
    if not trusted and OmegaConf.is_dict(config) and (HYDRA in config or _chooses_hydra(config)):
        raise refused_hydra(str(file))
    return ConfigResult(config=config, path=f"file://{folder}", provider=provider, header=header)


@lru_cache(maxsize=512)
def _parsed(text: str, file: str) -> Any:
    """Parse a file's text; one command composes the same files several times.

    Raises:
        UserError: it is not plain data.
    """
    yaml_data.check(text, file)
    try:
        return OmegaConf.load(io.StringIO(text))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise yaml_data.unreadable(file, error) from None


def _chooses_hydra(config: Any) -> bool:
    """Return whether a defaults list selects an option of Hydra's own groups."""
    content = OmegaConf.to_container(config, resolve=False)
    defaults = content.get("defaults") if isinstance(content, dict) else None
    entries = defaults if isinstance(defaults, list) else []
    words = [w for e in entries for w in (e if isinstance(e, dict) else [e])]
    return any(isinstance(word, str) and _HYDRA_GROUP.match(word) for word in words)


def refused_hydra(file: str) -> UserError:
    """Return the error for a file that sets Hydra's own section."""
    return UserError(
        f"{HYDRA} ({file}): a configuration file must not set hydra.*, which can execute code; "
        "valid: hydra.KEY=VALUE on the command line"
    )


def _files(folder: str, prefix: str) -> Iterator[str]:
    """Yield the config files below a folder, without their suffix."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.name.endswith(SUFFIX) and entry.is_file():
            yield f"{prefix}{entry.name.removesuffix(SUFFIX)}"
        elif entry.is_dir(follow_symlinks=False) and not entry.name.startswith((".", "__")):
            yield from _files(entry.path, f"{prefix}{entry.name}/")
