"""Restrict configuration files, while Hydra composes, to data and references to other keys.

Hydra and OmegaConf trust their configuration files. This module removes the features that are
dangerous in a file from someone else:

- *Hydra's own section.* Callbacks, logging, launchers and search paths name code that Hydra
  imports. Files cannot set it under any name; the command line can.
- *Resolvers.* A file can use those that compute from the run itself (:data:`RESOLVERS`).
  ``oc.env`` reads a variable only if the command line contains ``${oc.env:NAME}``. Resolvers that
  evaluate text (``oc.decode``, ``oc.create``), and any that a plugin registers, are refused.
- *Paths.* Options of a group are names: ``..`` and absolute paths are refused.
- *Growth.* Interpolations that multiply are stopped, like aliases in :mod:`atom.io.yaml_data`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, cast, get_args

from hydra.conf import HydraConf
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from atom.compose import repairs
from atom.compose.groups import (
    CONFIG_NAME,
    HYDRA,
    FolderSource,
    Groups,
    PluginSource,
    refused_hydra,
)
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
from atom.recipe.run import Run
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
"""Resolvers that any file can use. They access only the run, Hydra's state and the clock."""

BUDGET = 5_000
"""Budget of all interpolations: evaluations, values, and hundreds of characters."""

USER = "user"
"""Provider name of the files below :func:`user_folder`."""

MODE = f"{HYDRA}.mode="

Overrides = tuple[tuple[str, ...], tuple[str, ...]]
"""The overrides of Hydra's section, and those of the run."""

_ENV = re.compile(r"\$\{\s*oc\.env\s*:\s*['\"]?([A-Za-z_]\w*)")
_SECTIONS = {
    name
    for name, field in Run.model_fields.items()
    if name not in ("device", "dry_run", "world_size", "launcher")  # see users_alone
    and type(None) not in get_args(field.annotation)
}
"""Sections that cannot be null."""

HYDRAS = ("pkg://hydra.", "structured://")
"""Locations of the configuration of Hydra and its plugins."""


@contextmanager
def guarded(arguments: Sequence[str], groups: Groups, own: str) -> Iterator[None]:
    """Apply the restrictions while Hydra composes within the context.

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
    """Return the output of ``--cfg``, with secrets redacted."""
    launcher = OmegaConf.to_container(config, resolve=False)["launcher"]  # type: ignore[index,call-overload]
    config = _sanitized(hydra, config, kind)
    content = OmegaConf.to_container(config, resolve=False)
    shown = without_secrets(cast(dict[str, Any], content), launcher)
    return config if shown == content else OmegaConf.create(shown)


class Loader(ConfigLoaderImpl):
    """Hydra's loader, restricted to files that are plain data."""

    def __init__(self, config_search_path: ConfigSearchPath, *, groups: Groups, own: str) -> None:
        self.groups = groups
        self.config_search_path = config_search_path
        self.own = own
        self.repository: Repository = Repository(config_search_path, groups, own)
        self.of_others: dict[str, Any] = {}
        """Content of the files that belong neither to ATOM, nor a plugin, nor the user."""
        self._composed: dict[Overrides, list[ResultDefault]] = {}
        self._last: list[ResultDefault] = []

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        # Hydra composes once more to read hydra.mode, which only the command line sets.
        if not validate_sweep_overrides and not any(MODE in override for override in overrides):
            return OmegaConf.create({HYDRA: {"mode": None}})
        config = super().load_configuration(
            config_name, overrides, run_mode, from_shell, validate_sweep_overrides
        )
        if run_mode is RunMode.RUN:
            self._composed[_overrides(config.hydra)] = self._last
        return config

    def _compose_config_from_defaults_list(
        self, defaults: list[ResultDefault], repo: IConfigRepository
    ) -> DictConfig:
        self._last = defaults
        return super()._compose_config_from_defaults_list(defaults, repo)

    def defaults(self, hydra: HydraConf) -> list[ResultDefault]:
        """Return the files of the composition that Hydra's section belongs to, in Hydra's order;
        one can be missing.
        """
        if (found := self._composed.get(_overrides(hydra))) is not None:
            return found
        # A launcher of Hydra runs the job in a process that has not composed it.
        name = hydra.job.config_name or CONFIG_NAME
        overrides = [override for part in _overrides(hydra) for override in part]
        return list(self.compute_defaults_list(name, overrides, RunMode.RUN).defaults)

    def get_group_options(
        self,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        if config_name is None and not overrides:  # no search path is added
            return self.repository.get_group_options(group_name, results_filter)
        return super().get_group_options(group_name, results_filter, config_name, overrides)

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        result = super()._load_single_config(default, repo)
        if result.path.startswith(HYDRAS) or result.path == f"file://{self.own}":
            return result
        file = f"{result.path.removeprefix('file://')}/{default.config_path}.yaml"
        # A file can also reach that section by its header or by a defaults list.
        if OmegaConf.is_dict(result.config) and HYDRA in result.config:
            raise refused_hydra(file)
        _refuse_no_sections(result.config, file)
        if result.provider not in (PluginSource.PROVIDER, USER):
            self.of_others[file] = OmegaConf.to_container(result.config, resolve=False)
        return result


def _overrides(hydra: HydraConf) -> Overrides:
    """Return the command line of a composition; unresolved, because an override can hold an
    interpolation of the run's config.
    """
    found = OmegaConf.to_container(cast(DictConfig, hydra.overrides), resolve=False)
    assert isinstance(found, dict)
    return tuple(map(str, found["hydra"])), tuple(map(str, found["task"]))


def _refuse_no_sections(config: BaseOfContainers, file: str) -> None:
    """Refuse null, a list or a value for a section: it would delete what other files set there."""
    content = OmegaConf.to_container(config, resolve=False)
    for name, value in content.items() if isinstance(content, dict) else ():
        refers = isinstance(value, str) and value.startswith(("${", "???"))
        if name in _SECTIONS and not isinstance(value, dict) and not refers:
            raise UserError("must be a section of keys", key=name, value=value, origin=file)


def current() -> Loader:
    """Return the loader of the current composition."""
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, Loader)
    return loader


class Repository(ConfigRepository):
    """Hydra's search path, with the files of plugins after ATOM's own."""

    def __init__(self, config_search_path: ConfigSearchPath, groups: Groups, own: str) -> None:
        self._plugins = PluginSource(groups)
        self._own = own
        self.missing: list[str] = []
        """Optional files that do not exist and that Hydra skips; copies share the list."""
        super().__init__(config_search_path)

    def __deepcopy__(self, memo: Any) -> Repository:
        # Hydra copies it for each composition, to give the copy other sources; none changes.
        copied = copy.copy(self)
        copied.sources = list(self.sources)
        return copied

    def load_config(self, config_path: str) -> ConfigResult | None:
        found = super().load_config(config_path)
        if found is None:
            self.missing.append(config_path)
        return found

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        super().initialize_sources(config_search_path)
        self.sources = [self._guarded(source) for source in self.sources]
        after = [n for n, source in enumerate(self.sources) if source.provider == "main"]
        self.sources.insert(after[-1] + 1 if after else len(self.sources) - 1, self._plugins)
        # First, so that the user's file takes precedence over a shipped one of the same name.
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
    """Return the folder of the user's own config files; it may not exist."""
    return user_file().parent / "conf"


def is_name(config_path: str) -> bool:
    """Return whether a path stays within the config folders."""
    path = PurePosixPath(config_path)
    return not path.is_absolute() and ".." not in path.parts


def hide_hydra_plugins(blocked: Iterable[Plugin]) -> None:
    """Prevent Hydra, which imports every module of ``hydra_plugins``, from importing those of
    blocked packages.

    The plugin lists apply to packages that are plugins of ATOM; other extensions of Hydra are
    unaffected.
    """
    for plugin in blocked:
        paths = [path for _, path, _ in recorded(plugin.package)]
        if plugin.source is not None and not any(p.is_relative_to(plugin.source) for p in paths):
            paths += (plugin.source.parent / "hydra_plugins").glob(
                "*/__init__.py"
            )  # editable install
            paths += (plugin.source.parent / "hydra_plugins").glob("*.py")
        for path in paths:
            parts = path.with_suffix("").parts
            if "hydra_plugins" in parts and path.suffix == ".py":
                below = parts[parts.index("hydra_plugins") + 1]
                hide(f"hydra_plugins.{below}")


def refusal(error: BaseException | None) -> UserError | None:
    """Return the UserError that OmegaConf or Hydra has wrapped into its own error, or None."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _register(arguments: Sequence[str], others: Iterable[str]) -> None:
    """Fill OmegaConf's table with its own resolvers and refusals. Hydra adds its own later.

    Args:
        arguments: the command line.
        others: the names of all resolvers registered before.
    """
    register_default_resolvers()
    for name in {*others, "oc.create", "oc.decode"} - set(RESOLVERS):
        OmegaConf.register_new_resolver(name, partial(_refused, name), replace=True)
    typed = {name for argument in arguments for name in _ENV.findall(argument)}

    def environment(name: str, *default: str | None) -> str | None:
        if name not in typed:
            raise UserError(
                f"a file may not read the environment (here: {name})",
                valid=f"a value on the command line, such as KEY=${name}",
            )
        return oc.env(name, *default)

    OmegaConf.register_new_resolver("oc.env", environment, replace=True)


def _refused(name: str, *_: object) -> None:
    raise UserError(
        f"the resolver {name} is refused, because a configuration is data; valid: "
        + ", ".join(RESOLVERS)
    )


def _counted() -> Callable[..., Any]:
    """Return OmegaConf's interpolation function with a limit on its evaluations."""
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
        # OmegaConf adds its own text to errors of other classes.
        raise InterpolationResolutionError(
            f"the interpolations of a run must expand to at most {BUDGET:,} values"
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
