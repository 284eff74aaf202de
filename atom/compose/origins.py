"""Find the origin of each value of a composed config: the command line, or a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.default_element import ResultDefault
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from atom.compose.guard import HYDRAS, current
from atom.compose.internals import CachingConfigRepository
from atom.errors import UserError
from atom.recipe.run import COMMAND_LINE

_SHIPPED = ("main", "plugins")
"""Hydra's names of the sources of ATOM and of the plugins."""


class Origins:
    """The origins of a job's config values. Hydra does not record them, so they are
    reconstructed.
    """

    def __init__(self, config: DictConfig) -> None:
        # Unresolved, because an override can hold an interpolation of the run's config.
        task = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        self._overrides = [str(override) for override in task or ()]
        self._config = config
        # A launcher asks where its settings come from after Hydra has ended.
        self._loader = current()

    def attach(self, error: UserError) -> None:
        """Set the ``origin`` of ``error`` from its key, once."""
        if error.key is not None and error.origin is None:
            error.origin = self.of(error.key)

    def every(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the result of :meth:`of` for each key."""
        return {key: self.of(key) for key in keys}

    def of(self, key: str) -> str:
        """Return ``command line``, a file, or ``default`` for a value that is not set."""
        if self._typed(key):
            return COMMAND_LINE
        if (found := self._file(key)) is not None:
            return found[0]
        group = key.partition(".")[0]
        if any(o.lstrip("+").startswith(f"{group}=") for o in self._overrides):
            return COMMAND_LINE
        return "default"

    def given(self, key: str) -> str | None:
        """Return where the user has set a key; None if only ATOM's or a plugin's files set it."""
        if self._typed(key):
            return COMMAND_LINE
        found = self._file(key)
        return found[0] if found is not None and not found[1] else None

    @cached_property
    def defaults(self) -> list[ResultDefault]:
        """The files of the composition in Hydra's order; one can be missing."""
        return self._loader.defaults(HydraConfig.get())

    def _typed(self, key: str) -> bool:
        for override in self._overrides:
            name = override.lstrip("+~").partition("=")[0]
            if key == name or (key.startswith(f"{name}.") and not self._is_group(name)):
                return True
            if "." in key and name.startswith(f"{key}."):  # an entry of a dictionary
                return True
        return False

    def _is_group(self, name: str) -> bool:
        return name in self._groups

    @cached_property
    def _groups(self) -> list[str]:
        return self._loader.list_groups("")

    def _file(self, key: str) -> tuple[str, bool] | None:
        """Return the file that a value came from, and whether it is shipped."""
        for path, config, shipped in self.files:
            # Null in a shipped file says that there is no value.
            if _holds(config, key) or (not shipped and _is_null(config, key)):
                return path, shipped
        return None

    @cached_property
    def files(self) -> list[tuple[str, Any, bool]]:
        """Path and content of each file of the composition, the last one first, and whether it is
        shipped.
        """
        return list(self._loaded())

    def _loaded(self) -> Iterator[tuple[str, Any, bool]]:
        loader = self._loader
        repository = CachingConfigRepository(loader.repository)
        for default in reversed(self.defaults):
            if default.config_path is None:
                continue
            loaded = loader._load_single_config(default, repository)
            if str(loaded.path).startswith(HYDRAS):
                continue
            folder = str(loaded.path).removeprefix("file://")
            path = Path(folder) if folder.endswith(".yaml") else Path(folder, default.config_path)
            yield str(path.with_suffix(".yaml")), loaded.config, loaded.provider in _SHIPPED


def _holds(config: Any, key: str) -> bool:
    try:
        return OmegaConf.select(config, key, throw_on_missing=False) is not None
    except OmegaConfBaseException:
        return True  # an interpolation, resolved in the run and not in the file


def _is_null(config: Any, key: str) -> bool:
    above, _, name = key.rpartition(".")
    try:
        section = OmegaConf.select(config, above, throw_on_missing=False) if above else config
    except OmegaConfBaseException:
        return False
    return OmegaConf.is_dict(section) and name in section and section[name] is None
