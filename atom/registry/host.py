"""Find and check plugins; look up their components, and explain why a plugin is broken.

Every entry point is loaded separately, so that a broken plugin does not affect others.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from atom import plugin as interface
from atom.errors import UserError, nearest
from atom.io import notices
from atom.plugin import HOOKS, Declaration, Hooks, Kernel
from atom.registry.installed import Plugin, extra_with, installed, names_in_files, normalized
from atom.registry.trust import Trust

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_LONGEST_REASON = 300


@dataclass(frozen=True)
class Component:
    """One declaration of a plugin."""

    plugin: Plugin
    declaration: Declaration

    @property
    def kind(self) -> str:
        return self.declaration.kind

    @property
    def name(self) -> str:
        """The name, unique per kind within a plugin; ``operation/name`` for a kernel."""
        if isinstance(self.declaration, Kernel):
            return f"{self.declaration.operation}/{self.declaration.name}"
        return self.declaration.name

    @property
    def summary(self) -> str:
        """The declaration's summary, followed by where the component has never run."""
        return self.declaration.described

    @property
    def address(self) -> str:
        """The name with its package: ``atom_llama:llama3``."""
        return f"{self.plugin.import_package}:{self.name}"

    @property
    def owner(self) -> str:
        """The kind and name with package and version, for errors."""
        return f"{self.kind} {self.name} of {self.plugin.package} {self.plugin.version}"


@dataclass(frozen=True)
class Host:
    """The installed plugins, and the components of those that are not broken.

    ``blocked`` are the plugins that the user does not trust: nothing of them has been imported, and
    their ``reason`` says what blocks them. ``trust`` holds the rules.
    """

    plugins: tuple[Plugin, ...]
    components: tuple[Component, ...]
    blocked: tuple[Plugin, ...] = ()
    trust: Trust = field(default_factory=Trust)

    @classmethod
    def load(cls, trust: Trust | None = None) -> Host:
        """Import the declaring module of every permitted plugin, and call its hooks.

        Args:
            trust: which plugins are permitted; None for the user's file and the environment.

        Raises:
            UserError: an installed package differs from the lock; nothing has been imported then.
        """
        trust = Trust.gather() if trust is None else trust
        trusted, blocked = trust.divided(installed())
        if trust.locked is not None:
            from atom.registry import lock as plugin_lock

            plugin_lock.check(trust.locked, trusted, blocked, partly=trust.only is not None)
        notices.know(plugin.import_package for plugin in trusted)
        plugins: list[Plugin] = []
        components: list[Component] = []
        for plugin in trusted:
            plugin, declarations = _loaded(plugin)
            plugins.append(plugin)
            components += [Component(plugin, declaration) for declaration in declarations]
        return cls(tuple(plugins), tuple(components), tuple(blocked), trust)

    @property
    def warnings(self) -> list[str]:
        """Deprecation warnings: one sentence each, which names the package."""
        return [f"{p.package} {p.version} {words}" for p in self.plugins for words in p.warnings]

    def find(self, kind: str, name: str, *, key: str | None = None) -> Component:
        """Return the component of a kind with a name.

        Args:
            kind: one of the kinds of :data:`atom.plugin.KINDS`.
            name: ``NAME``, or ``PACKAGE:NAME`` with an import package or a distribution; a kernel's
                is ``OPERATION/NAME``.
            key: the configuration key that holds ``name``, for the error.

        Raises:
            UserError: no plugin offers it, several plugins do, or the named plugin is broken.
        """
        package, colon, bare = name.rpartition(":")
        if not bare or (colon and not package):
            raise UserError("must be NAME or PACKAGE:NAME", key=key, value=name)
        found = [c for c in self.components if c.kind == kind and c.name == bare]
        if package:
            found = [component for component in found if component.plugin.is_called(package)]
        if len(found) == 1:
            return found[0]
        problem = _ambiguous(found, key) if found else self._missing(kind, package, bare)
        raise UserError(problem, key=key, value=name)

    def kernels(self, operation: str) -> list[Component]:
        """Return the kernels of an operation, by descending priority, then by name."""
        found = [
            ((-c.declaration.priority, c.name, c.plugin.package), c)
            for c in self.components
            if isinstance(c.declaration, Kernel) and c.declaration.operation == operation
        ]
        return [component for _, component in sorted(found, key=lambda entry: entry[0])]

    def _missing(self, kind: str, package: str, name: str) -> str:
        broken = [plugin for plugin in self.plugins if plugin.reason is not None]
        for plugins, state in ((broken, "broken"), (self.blocked, "blocked")):
            for plugin in plugins:
                if plugin.is_called(package) if package else name in names_in_files(plugin, kind):
                    return f"its plugin {plugin.package} is {state}: {plugin.reason}"
        offered = [component for component in self.components if component.kind == kind]
        if offered:
            problem = f"there is no {kind} {name}; {_nearest(name, offered)}"
        else:
            problem = f"no plugin offers any {kind}; install a package that does"
        if broken:
            problem += f"; {_listed(broken, 'broken')}"
        if self.blocked:
            problem += f"; {_listed(list(self.blocked), 'blocked')}"
        return problem


def resolve(reference: str, component: Component) -> Any:
    """Import the code that ``component`` references with ``reference`` (``module:attribute``).

    Raises:
        UserError: the module cannot be imported, or has no such attribute.
    """
    module, _, attribute = reference.partition(":")
    owner = component.owner
    try:
        imported = importlib.import_module(module)
    except (UserError, OSError, MemoryError, KeyboardInterrupt):
        raise
    # BaseException: a plugin that calls sys.exit() must not end ATOM.
    except BaseException as error:
        raise UserError(f"{owner} cannot be used: {_words(error, component.plugin)}") from error
    try:
        return getattr(imported, attribute)
    except AttributeError:
        hint = nearest(attribute, [name for name in vars(imported) if not name.startswith("_")])
        problem = f"{owner} cannot be used: {module} has no {attribute}; {hint}"
        raise UserError(problem) from None


# ---------------------------------------------------------------------------- checking one


class _BrokenError(Exception):
    """Raised with the reason why a plugin is broken, in one line."""


def _loaded(plugin: Plugin) -> tuple[Plugin, list[Declaration]]:
    """Load a plugin; return it (with ``reason`` if broken) and its declarations."""
    warnings: list[str] = []
    try:
        # The caller's output can be data for another program.
        with redirect_stdout(sys.stderr):
            declarations = _declared(plugin, warnings)
    except _BrokenError as broken:
        return replace(plugin, reason=str(broken)), []
    return replace(plugin, warnings=tuple(dict.fromkeys(warnings))), declarations


def _declared(plugin: Plugin, warnings: list[str]) -> list[Declaration]:
    """Return the declarations of a plugin; add its deprecated features to ``warnings``.

    Raises:
        _BrokenError: it cannot be imported, or a hook is invalid.
    """
    if not _MODULE.fullmatch(plugin.module):
        raise _BrokenError(f"its entry point must name a module, not {plugin.module!r}")
    with _blaming(plugin, "cannot be imported"):
        module = importlib.import_module(plugin.module)
        spoken = getattr(module, "ATOM_INTERFACE", interface.INTERFACE)
    warnings += _of_version(spoken)
    declared: dict[tuple[str, str], Declaration] = {}
    with _blaming(plugin, "cannot be registered"):
        implementations = _implementations(module)
    for hook, function in implementations:
        warnings += _of_deprecated(hook)
        with _blaming(plugin, f"{hook} raised"):
            for declaration in _called(hook, function):
                component = Component(plugin, declaration)
                if (component.kind, component.name) in declared:
                    raise _BrokenError(f"{hook} repeats the name {component.name}")
                declared[component.kind, component.name] = declaration
                warnings += _of_fields(declaration)
    return list(declared.values())


def _of_version(spoken: object) -> list[str]:
    """Return the warning for a plugin's interface version, if any.

    Raises:
        _BrokenError: this ATOM does not support the version.
    """
    ours, oldest = interface.INTERFACE, interface.OLDEST_INTERFACE
    if type(spoken) is not int:
        raise _BrokenError(f"ATOM_INTERFACE is {_described(spoken)}; it must be a whole number")
    if not oldest <= spoken <= ours:
        which = "ATOM" if spoken > ours else "the plugin"
        raise _BrokenError(
            f"speaks interface version {spoken}; this ATOM speaks {ours}: upgrade {which}"
        )
    if spoken < ours:
        return [f"speaks interface version {spoken}, which is deprecated: this ATOM speaks {ours}"]
    return []


def _of_fields(declaration: Declaration) -> list[str]:
    """Return the warnings for deprecated fields of a declaration that differ from their
    defaults.
    """
    if not interface.DEPRECATED:
        return []
    used = [each.name for each in fields(declaration) if not _is_default(declaration, each)]
    return [
        warning
        for kind in type(declaration).__mro__
        for name in used
        for warning in _of_deprecated(f"{kind.__name__}.{name}")
    ]


def _is_default(declaration: Declaration, of: Field[Any]) -> bool:
    value = getattr(declaration, of.name)
    if of.default_factory is not MISSING:
        return bool(value == of.default_factory())
    return bool(value == of.default)


def _of_deprecated(part: str) -> list[str]:
    goes = interface.DEPRECATED.get(part)
    if goes is None:
        return []
    return [
        f"uses {part}, which is deprecated since ATOM {goes.since} and goes with interface "
        f"version {goes.until}: use {goes.instead}"
    ]


def _implementations(module: ModuleType) -> list[tuple[str, Callable[..., object]]]:
    """Return the hooks that ``module`` implements, with their names, checked by pluggy."""
    # A separate manager per plugin, so that a fault of one cannot affect another.
    manager = pluggy.PluginManager("atom")
    manager.add_hookspecs(Hooks)
    try:
        manager.register(module)
    except pluggy.PluginValidationError as error:
        raise _BrokenError("; ".join(str(error).splitlines()[1:])) from None
    implementations: list[tuple[str, Callable[..., object]]] = []
    for caller in manager.get_hookcallers(module) or []:
        for implementation in caller.get_hookimpls():
            if caller.has_spec():
                implementations.append((caller.name, implementation.function))
            elif not implementation.optionalhook:
                raise _BrokenError(f"there is no hook {caller.name}; {nearest(caller.name, HOOKS)}")
    implemented = {hook for hook, _ in implementations}
    for hook in HOOKS:
        if callable(vars(module).get(hook)) and hook not in implemented:
            raise _BrokenError(f"{hook} is not marked with @atom.plugin.hookimpl")
    return implementations


def _called(hook: str, function: Callable[..., object]) -> Iterator[Declaration]:
    """Yield the declarations of a hook, checked to be of the hook's kind."""
    expected = HOOKS[hook]
    returned = function()
    if not isinstance(returned, Iterable):
        raise _BrokenError(
            f"{hook} returned {_described(returned)}; it must yield {expected.__name__} objects"
        )
    for declaration in returned:
        if not isinstance(declaration, expected):
            raise _BrokenError(
                f"{hook} yielded {_described(declaration)}, which is no {expected.__name__}"
            )
        yield declaration


@contextmanager
def _blaming(plugin: Plugin, what: str) -> Iterator[None]:
    """Turn any exception of a plugin's code into the reason why the plugin is broken."""
    try:
        yield
    except (KeyboardInterrupt, _BrokenError):
        raise
    # BaseException: a plugin that calls sys.exit() must not end ATOM.
    except BaseException as error:
        raise _BrokenError(f"{what}: {_words(error, plugin)}") from None


def _words(error: BaseException, plugin: Plugin) -> str:
    """Return an exception in one line, with the line of the plugin's code that raised it."""
    if isinstance(error, SyntaxError):
        words = f"{type(error).__name__}: {error}"
    else:
        # Not str(error): a plugin's own exception can raise another one there.
        words = "".join(traceback.format_exception_only(error))
    words = " ".join(words.split())
    if len(words) > _LONGEST_REASON:
        words = f"{words[:_LONGEST_REASON]}…"
    hint = ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        extra = extra_with(error.name, plugin.package)
        hint = f"; install it: pip install '{plugin.package}[{extra}]'" if extra else ""
    if plugin.source is None:
        return words + hint
    lines = [
        f" ({Path(frame.f_code.co_filename).relative_to(plugin.source.parent)}:{number})"
        for frame, number in traceback.walk_tb(error.__traceback__)
        if Path(frame.f_code.co_filename).is_relative_to(plugin.source)
    ]
    return words + (lines[-1] if lines else "") + hint


def _described(thing: object) -> str:
    if isinstance(thing, Declaration):
        return f"the {type(thing).__name__} {thing.name!r}"
    return "None" if thing is None else f"an object of type {type(thing).__name__}"


def _nearest(name: str, offered: list[Component]) -> str:
    """Return a hint that names the components with the most similar names, or all of
    them if few.
    """
    close = difflib.get_close_matches(name, sorted({c.name for c in offered}), n=3)
    named = sorted(
        f"{component.name} ({component.plugin.package})"
        for component in offered
        if not close or component.name in close
    )
    if close:
        return f"did you mean {' or '.join(named)}?"
    return f"valid: {', '.join(named[:12])}" + (", …" if len(named) > 12 else "")


def _listed(plugins: list[Plugin], what: str) -> str:
    named = [f"{plugin.package} ({plugin.reason})" for plugin in plugins[:3]]
    rest = [f"{len(plugins) - 3} more (see `atom plugins`)"] if len(plugins) > 3 else []
    count = f"1 plugin is {what}" if len(plugins) == 1 else f"{len(plugins)} plugins are {what}"
    return f"{count}: {', '.join(named + rest)}"


def _ambiguous(found: list[Component], key: str | None) -> str:
    """Return a sentence that names the packages, and how to select one of them."""
    where = " and ".join(f"{c.plugin.package} {c.plugin.version}" for c in found)
    problem = f"{found[0].kind} {found[0].name} is offered by {where}"
    field = key.rpartition(".")[2] if key else "name"
    for owners in (
        [component.plugin.import_package for component in found],
        [component.plugin.package for component in found],
    ):
        if len(set(map(normalized, owners))) == len(found):
            choices = " or ".join(f"`{field}: {owner}:{found[0].name}`" for owner in owners)
            return f"{problem}; choose one with {choices}"
    return f"{problem}, under equal names; uninstall one"
