"""What a configuration file may do while Hydra composes: hold data, and refer to other keys.

Hydra and OmegaConf were made for configurations of one's own. This module takes away what a
stranger's would be a danger with:

- *Hydra's own section.* Callbacks, logging, launchers and search paths name code, which Hydra
  imports. Files cannot set it, under any name; the command line can.
- *Resolvers.* A file may use those that compute from the run itself (:data:`RESOLVERS`).
  ``oc.env`` reads a variable only if the command line has it, as ``${oc.env:NAME}``. Those that
  evaluate text (``oc.decode``, ``oc.create``), and any that a plugin registers, are refused.
- *Paths.* The options of a group are names: ``..`` and absolute paths lead nowhere.
- *Growth.* Interpolations that multiply are stopped, as aliases are by :mod:`atom.io.yaml_data`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, cast

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from atom.compose import repairs
from atom.compose.groups import HYDRA, FolderSource, Groups, PluginSource, refused_hydra
from atom.compose.internals import (
    BaseContainer,
    ConfigLoaderImpl,
    ConfigRepository,
    IConfigRepository,
    hide,
    hydra_internal,
    oc,
    register_default_resolvers,
)
from atom.compose.internals import Container as BaseOfContainers
from atom.errors import UserError
from atom.redaction import without_secrets
from atom.registry.installed import Plugin, recorded
from atom.registry.trust import user_file

RESOLVERS = (
    "hydra",
    "now",
    "oc.deprecated",
    "oc.dict.keys",
    "oc.dict.values",
    "oc.select",
    "python_version",
)
"""What any file may use. None of them sees anything but the run, Hydra's state and the clock."""

BUDGET = 5_000
"""What all interpolations may come to: evaluations, values, and hundreds of characters."""

USER = "user"
"""The provider of the files below :func:`user_folder`."""

_ENV = re.compile(r"\$\{\s*oc\.env\s*:\s*['\"]?([A-Za-z_]\w*)")
HYDRAS = ("pkg://hydra.", "structured://")
"""Where Hydra's own configuration is, and that of its plugins."""


@contextmanager
def guarded(arguments: Sequence[str], groups: Groups, own: str) -> Iterator[None]:
    """Let Hydra compose in here, and nowhere else.

    Args:
        arguments: the command line.
        groups: the files of plugins.
        own: the folder of ATOM's own files.
    """
    loader = partial(Loader, groups=groups, own=own)
    with (
        repairs.LOADER.replaced(loader),
        repairs.GROWTH.replaced(_counted()),
        repairs.RESOLVERS.replaced({}) as others,
        repairs.SHOWN.replaced(_shown),
    ):
        _register(arguments, others)
        yield


_sanitized = hydra_internal.Hydra.get_sanitized_cfg


def _shown(hydra: hydra_internal.Hydra, config: DictConfig, kind: str) -> DictConfig:
    """Return what ``--cfg`` shows: without secrets."""
    launcher = OmegaConf.to_container(config, resolve=False)["launcher"]  # type: ignore[index,call-overload]
    config = _sanitized(hydra, config, kind)
    content = OmegaConf.to_container(config, resolve=False)
    shown = without_secrets(cast(dict[str, Any], content), launcher)
    return config if shown == content else OmegaConf.create(shown)


class Loader(ConfigLoaderImpl):
    """Hydra's loader, over files that are data."""

    def __init__(self, config_search_path: ConfigSearchPath, *, groups: Groups, own: str) -> None:
        self.groups = groups
        self.config_search_path = config_search_path
        self.own = own
        self.repository = Repository(config_search_path, groups, own)
        self.of_others: dict[str, Any] = {}
        """What was read from files that neither ATOM, nor a plugin, nor the user has written."""

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        result = super()._load_single_config(default, repo)
        if result.path.startswith(HYDRAS) or result.path == f"file://{self.own}":
            return result
        file = f"{result.path.removeprefix('file://')}/{default.config_path}.yaml"
        # A file comes to stand there by its header or by a defaults list, too.
        if OmegaConf.is_dict(result.config) and HYDRA in result.config:
            raise refused_hydra(file)
        if result.provider not in (PluginSource.PROVIDER, USER):
            self.of_others[file] = OmegaConf.to_container(result.config, resolve=False)
        return result


def current() -> Loader:
    """Return the loader of the configuration that is being composed."""
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, Loader)
    return loader


class Repository(ConfigRepository):
    """Hydra's search path, with the files of plugins after ATOM's own."""

    def __init__(self, config_search_path: ConfigSearchPath, groups: Groups, own: str) -> None:
        self._plugins = PluginSource(groups)
        self._own = own
        super().__init__(config_search_path)

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        super().initialize_sources(config_search_path)
        self.sources = [self._guarded(source) for source in self.sources]
        after = [n for n, source in enumerate(self.sources) if source.provider == "main"]
        self.sources.insert(after[-1] + 1 if after else len(self.sources) - 1, self._plugins)
        # In front: a file of one's own with the name of a shipped one is meant.
        if (folder := user_folder()).is_dir():
            self.sources.insert(0, FolderSource(USER, str(folder), trusted=False))

    def _guarded(self, source: ConfigSource) -> ConfigSource:
        if source.scheme() != "file":
            return source
        return FolderSource(source.provider, source.full_path(), trusted=source.path == self._own)

    def _find_object_source(
        self, config_path: str, object_type: ObjectType | None
    ) -> ConfigSource | None:
        return (
            super()._find_object_source(config_path, object_type) if is_name(config_path) else None
        )


def user_folder() -> Path:
    """Return where config files of the user's own are, if there are any."""
    return user_file().parent / "conf"


def is_name(config_path: str) -> bool:
    """Return whether a path stays in the config folders."""
    path = PurePosixPath(config_path)
    return not path.is_absolute() and ".." not in path.parts


def hide_hydra_plugins(blocked: Iterable[Plugin]) -> None:
    """Keep Hydra, which imports every module of ``hydra_plugins``, from those of blocked packages.

    The lists are about packages that are plugins of ATOM; others that extend Hydra are its own.
    """
    for plugin in blocked:
        paths = [path for _, path, _ in recorded(plugin.package)]
        if plugin.source is not None and not any(p.is_relative_to(plugin.source) for p in paths):
            paths += (plugin.source.parent / "hydra_plugins").glob("*/__init__.py")  # editable
            paths += (plugin.source.parent / "hydra_plugins").glob("*.py")
        for path in paths:
            parts = path.with_suffix("").parts
            if "hydra_plugins" in parts and path.suffix == ".py":
                below = parts[parts.index("hydra_plugins") + 1]
                hide(f"hydra_plugins.{below}")


def refusal(error: BaseException | None) -> UserError | None:
    """Return the refusal that OmegaConf or Hydra has wrapped into its own error, if one is."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _register(arguments: Sequence[str], others: Iterable[str]) -> None:
    """Fill OmegaConf's table with its own resolvers and refusals. Hydra adds its own later.

    Args:
        arguments: the command line.
        others: the names of all resolvers that were in the table.
    """
    register_default_resolvers()
    for name in {*others, "oc.create", "oc.decode"} - set(RESOLVERS):
        OmegaConf.register_new_resolver(name, partial(_refused, name), replace=True)
    typed = {name for argument in arguments for name in _ENV.findall(argument)}

    def environment(name: str, *default: str | None) -> str | None:
        if name not in typed:
            raise UserError(
                f"a file may not read the environment (here: {name}); valid: a value on the "
                f"command line, such as KEY=${name}"
            )
        return oc.env(name, *default)

    OmegaConf.register_new_resolver("oc.env", environment, replace=True)


def _refused(name: str, *_: object) -> None:
    raise UserError(
        f"the resolver {name} is refused, for a configuration is data; valid: "
        + ", ".join(RESOLVERS)
    )


def _counted() -> Callable[..., Any]:
    """Return OmegaConf's evaluation of interpolations, with an end to it."""
    spent = 0
    evaluate = BaseOfContainers.resolve_parse_tree

    def counted(self: BaseOfContainers, *arguments: Any, **keywords: Any) -> Any:
        nonlocal spent
        spent += 1
        if spent <= BUDGET:
            value = evaluate(self, *arguments, **keywords)
            spent += _size(value)
            if spent <= BUDGET:
                return value
        # OmegaConf puts words of its own into errors of other classes.
        raise InterpolationResolutionError(
            f"the interpolations of a run may come to {BUDGET:,} values at most"
        )

    return counted


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value) // 100
    content = value._content if isinstance(value, BaseContainer) else None
    if isinstance(content, dict):
        return sum(1 + _size(child) for child in content.values())
    if isinstance(content, list):
        return sum(1 + _size(child) for child in content)
    return 0
