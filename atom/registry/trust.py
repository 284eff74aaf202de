"""Decide which installed plugins may be loaded, before any of them is.

Three places can restrict this, and each can only be stricter than the others:

- the file ``plugins.yaml`` in the user's configuration folder, ``~/.config/atom``, with the keys
  ``allow`` and ``block``;
- the environment: ``ATOM_PLUGINS_ALLOW`` and ``ATOM_PLUGINS_BLOCK``, patterns separated by commas;
- the command line: ``plugins.allow=[…]``, ``plugins.block=[…]`` and ``plugins.locked=FILE``.

A package is loaded if every allow list names it and no block list does. The configuration files of
a run cannot set this: they are read after the plugins, and some come from plugins or from
strangers. A ``run.yaml`` records the lists of its author; they, too, can only be stricter than the
user's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atom.errors import UserError, nearest
from atom.io import environment as variables
from atom.io.environment import ALLOW, BLOCK
from atom.registry.installed import Plugin, normalized

if TYPE_CHECKING:
    from atom.recipe.sections import Plugins

SECTION = "plugins"

LISTS = ("allow", "block")


@dataclass(frozen=True)
class Rule:
    """A list of patterns for distribution names, and its origin.

    Patterns are those of :mod:`fnmatch`. Case is ignored, and ``-``, ``_`` and ``.`` are equal, as
    in pip.
    """

    patterns: tuple[str, ...]
    origin: str

    def matching(self, package: str) -> str | None:
        """Return the pattern that matches ``package``, or None."""
        name = normalized(package)
        return next((p for p in self.patterns if fnmatchcase(name, normalized(p))), None)


@dataclass(frozen=True)
class Trust:
    """The rules that decide which plugins may be loaded.

    Attributes:
        allow: lists that must all match a package.
        block: lists that must not match it.
        locked: the lock file that installed plugins must match; None for none.
        only: the packages that are needed; None for all. Other packages are ignored silently.
    """

    allow: tuple[Rule, ...] = ()
    block: tuple[Rule, ...] = ()
    locked: Path | None = None
    only: frozenset[str] | None = None

    @classmethod
    def gather(
        cls, given: Mapping[str, Any] | None = None, environment: Mapping[str, str] = os.environ
    ) -> Trust:
        """Return the combined rules of the user's file, the environment and a command line.

        Args:
            given: values of a command line, from :func:`atom.compose.plugin_lists.typed`.
            environment: the environment variables.

        Raises:
            UserError: one of them is invalid. Nothing is loaded then.
        """
        variables.check(environment)
        lists = dict(given or {})
        locked: str | None = lists.pop("locked", None)
        places = [*_of_user(user_file(environment)), *_of_variables(environment)]
        places += [(name, p, f"{SECTION}.{name}={_listed(p)}") for name, p in lists.items()]

        def rules(wanted: str) -> tuple[Rule, ...]:
            return tuple(Rule(tuple(p), origin) for name, p, origin in places if name == wanted)

        place = Path(locked).expanduser().absolute() if locked else None
        return cls(rules("allow"), rules("block"), place)

    @classmethod
    def of_run(cls, section: Plugins, environment: Mapping[str, str] = os.environ) -> Trust:
        """Return the combined rules of a composed run and this user, limited to the packages of the
        run.

        Raises:
            UserError: a list of the user is invalid. Nothing is loaded then.
        """
        users = cls.gather(None, environment)

        def rules(name: str, patterns: list[str] | None) -> tuple[Rule, ...]:
            if patterns is None:
                return ()
            return (Rule(tuple(patterns), f"{SECTION}.{name}={_listed(patterns)} (run.yaml)"),)

        return cls(
            users.allow + rules("allow", section.allow),
            users.block + rules("block", section.block),
            section.locked,
            None if section.used is None else frozenset(map(normalized, section.used)),
        )

    def refusal(self, package: str) -> str | None:
        """Return why ``package`` is blocked, or None if it may be loaded."""
        for rule in self.block:
            if rule.matching(package) is not None:
                return f"by {rule.origin}"
        for rule in self.allow:
            if rule.matching(package) is None:
                return f"it is not in {rule.origin}"
        return None

    def divided(self, plugins: Iterable[Plugin]) -> tuple[list[Plugin], list[Plugin]]:
        """Return the needed plugins that may be loaded, and the blocked ones with their reason.

        The lists apply to packages, so a package must not load code of another package.
        """
        refused = [(plugin, self.refusal(plugin.package)) for plugin in plugins]
        kept = {
            plugin.source: plugin.package
            for plugin, refusal in refused
            if refusal is not None and plugin.source is not None and plugin.stray is None
        }
        trusted, blocked = [], []
        for plugin, refusal in refused:
            if self.only is not None and normalized(plugin.package) not in self.only:
                continue
            if refusal is None and plugin.stray is not None:
                refusal = f"its entry point runs {plugin.stray}, which is not a file of the package"
            elif refusal is None and plugin.source in kept:
                owner = kept[plugin.source]
                refusal = f"its entry point names {plugin.module} of {owner}, which is blocked"
            if refusal is None:
                trusted.append(plugin)
            else:
                blocked.append(replace(plugin, reason=refusal))
        return trusted, blocked

    def section(self, packages: Iterable[str], used: Iterable[str]) -> dict[str, Any]:
        """Return the section ``plugins`` of a run, for its ranks.

        Args:
            packages: the loaded packages.
            used: the packages with a component that the run uses.
        """
        lists = [list(rule.patterns) for rule in self.allow]
        return {
            # Two allow lists that must both match cannot be merged into one list of patterns.
            "allow": sorted(set(packages)) if len(lists) > 1 else next(iter(lists), None),
            "block": [pattern for rule in self.block for pattern in rule.patterns],
            "locked": self.locked,
            "used": sorted(set(used)),
        }


def user_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the user's own lists; the file may not exist."""
    folder = environment.get("XDG_CONFIG_HOME")
    # Without a home folder, as in some containers, `~` remains, and that folder does not exist.
    return Path(folder or os.path.expanduser("~/.config")) / "atom" / "plugins.yaml"  # noqa: PTH111


# A list of one place: "allow" or "block", the patterns, and a description of the place.
_Place = tuple[str, list[str], str]


def _of_variables(environment: Mapping[str, str]) -> list[_Place]:
    found = []
    for name, variable in (("allow", ALLOW), ("block", BLOCK)):
        if (text := environment.get(variable)) is None:
            continue
        patterns = [word.strip() for word in text.split(",") if word.strip()]
        if not patterns:
            raise UserError(
                f"{variable}={text} holds no pattern of package names, such as atom-*; "
                "unset it for no list"
            )
        found.append((name, patterns, f"{variable}={','.join(patterns)}"))
    return found


def _of_user(path: Path) -> list[_Place]:
    from atom.io import yaml_data

    try:
        text = yaml_data.text_of(path)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    section = yaml_data.load(text, str(path))
    if section is None:
        return []
    if not isinstance(section, dict):
        raise UserError(f"{path} must hold lists of patterns, under allow and block")
    for name in section:
        if name not in LISTS:
            raise UserError(f"{path}: there is no key {name}; {nearest(str(name), LISTS)}")
    return [
        (name, patterns, f"{name}: {_listed(patterns)} in {path}")
        for name, value in section.items()
        if (patterns := patterns_of(value, name, str(path))) is not None
    ]


def patterns_of(value: object, key: str, origin: str) -> list[str] | None:
    """Return a value as a list of patterns; None if it is null, which removes the list."""
    if value is None:
        return None
    patterns: list[Any] = value if isinstance(value, list) else [value]
    if not all(isinstance(pattern, str) and pattern.strip() for pattern in patterns):
        valid = "valid: patterns of package names, such as [atom-*,my-net]"
        raise mistake(valid, key, value, origin)
    return [pattern.strip() for pattern in patterns]


def mistake(problem: str, key: str, value: object, origin: str = "command line") -> UserError:
    error = UserError(problem, key=key, value=value)
    error.origin = origin
    return error


def _listed(patterns: Iterable[str]) -> str:
    return f"[{','.join(patterns)}]"
