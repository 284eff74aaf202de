"""Find plugins, check them, and answer what there is, from which package, and why one is broken.

Every entry point is loaded by itself, so that a broken plugin breaks nothing but itself.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from atom.errors import UserError, nearest
from atom.plugin import ENTRY_POINT_GROUP, HOOKS, INTERFACE, Declaration, Hooks, Kernel

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_LONGEST_REASON = 300


@dataclass(frozen=True)
class Plugin:
    """An entry point of an installed package.

    Attributes:
        entry_point: its name.
        package: the distribution that has it, as pip names it.
        version: the distribution's version.
        module: the entry point's value, the module with the hooks.
        import_package: what holds that module: ``atom_llama`` for ``atom_llama.plugin``.
        source: the folder of the import package, or the file of a module without one. It is found
            without importing anything, so a broken plugin has it too; None if there is no such
            thing.
        conf: the folder with the plugin's Hydra config groups, if it has one.
        reason: why the plugin is broken, in one line; None if it is not.
    """

    entry_point: str
    package: str
    version: str
    module: str
    import_package: str
    source: Path | None = None
    conf: Path | None = None
    reason: str | None = None


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
        """The name, unique among its kind in one plugin; ``operation/name`` for a kernel."""
        if isinstance(self.declaration, Kernel):
            return f"{self.declaration.operation}/{self.declaration.name}"
        return self.declaration.name

    @property
    def summary(self) -> str:
        return self.declaration.summary

    @property
    def address(self) -> str:
        """The name with the package it is from: ``atom_llama:llama3``."""
        return f"{self.plugin.import_package}:{self.name}"


@dataclass(frozen=True)
class Host:
    """What is installed: every plugin, and the components of those that are not broken."""

    plugins: tuple[Plugin, ...]
    components: tuple[Component, ...]

    @classmethod
    def load(cls) -> Host:
        """Import every installed plugin's declaring module and call its hooks."""
        plugins: list[Plugin] = []
        components: list[Component] = []
        for plugin in _installed():
            try:
                # The caller's output may be data for another program.
                with redirect_stdout(sys.stderr):
                    declarations = _declared(plugin)
            except _BrokenError as broken:
                plugin = replace(plugin, reason=str(broken))
                declarations = []
            plugins.append(plugin)
            components += [Component(plugin, declaration) for declaration in declarations]
        return cls(tuple(plugins), tuple(components))

    def find(self, kind: str, name: str, *, key: str | None = None) -> Component:
        """Return the component of a kind with a name.

        Args:
            kind: one of the kinds of :data:`atom.plugin.KINDS`.
            name: ``NAME``, or ``PACKAGE:NAME`` where PACKAGE is an import package or a
                distribution; a kernel's is ``OPERATION/NAME``.
            key: the configuration key that holds ``name``, for the error.

        Raises:
            UserError: no plugin offers it, or several do, or the plugin named is broken.
        """
        package, _, bare = name.rpartition(":")
        found = [c for c in self.components if c.kind == kind and c.name == bare]
        if package:
            found = [component for component in found if _is_called(package, component.plugin)]
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
        for plugin in broken:
            if package and _is_called(package, plugin):
                return f"its plugin {plugin.package} is broken: {plugin.reason}"
        offered = [component for component in self.components if component.kind == kind]
        if offered:
            problem = f"there is no {kind} {name}; {_nearest(name, offered)}"
        else:
            problem = f"no plugin offers any {kind}; install a package that does"
        if broken:
            problem += f"; {_listed(broken)}"
        return problem


def resolve(reference: str, component: Component) -> Any:
    """Import the code that ``component`` points to with ``reference`` (``module:attribute``).

    Raises:
        UserError: the module, a package that it needs, or the attribute is not there.
    """
    module, _, attribute = reference.partition(":")
    plugin = component.plugin
    owner = f"{component.kind} {component.name} of {plugin.package} {plugin.version}"
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{owner} cannot be used: {_words(error, plugin)}") from error
    try:
        return getattr(imported, attribute)
    except AttributeError:
        hint = nearest(attribute, [name for name in vars(imported) if not name.startswith("_")])
        problem = f"{owner} cannot be used: {module} has no {attribute}; {hint}"
        raise UserError(problem) from None


# ---------------------------------------------------------------------------- finding plugins


def _installed() -> list[Plugin]:
    """Return every entry point of the group once, ordered by package."""
    plugins: dict[tuple[str, str], Plugin] = {}
    first: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions():
        for plugin in _plugins(distribution):
            # Of two copies of a distribution on sys.path, Python imports and reports the first.
            if first.setdefault(_normalized(plugin.package), distribution) is distribution:
                plugins.setdefault((plugin.package, plugin.module), plugin)
    return sorted(plugins.values(), key=lambda plugin: (plugin.package, plugin.entry_point))


def _plugins(distribution: metadata.Distribution) -> list[Plugin]:
    """Return a plugin for each of a distribution's entry points in the group."""
    try:
        text = distribution.read_text("entry_points.txt") or ""
        # Most packages are no plugins, and it takes long to parse all of theirs.
        if f"[{ENTRY_POINT_GROUP}]" not in text:
            return []
        points = [p for p in distribution.entry_points if p.group == ENTRY_POINT_GROUP]
        described = distribution.metadata
    # No installer writes metadata that cannot be read.
    except Exception:
        return []
    plugins = []
    for point in points:
        import_package, source = _locate(point.value)
        conf = source / "conf" if source is not None else None
        plugin = Plugin(
            entry_point=point.name,
            package=described["Name"] or "unknown",
            version=described["Version"] or "unknown",
            module=point.value,
            import_package=import_package,
            source=source,
            conf=conf if conf is not None and conf.is_dir() else None,
        )
        plugins.append(plugin)
    return plugins


def _locate(module: str) -> tuple[str, Path | None]:
    """Return the name of the outermost regular package or module of ``module``, and its place."""
    names = re.split(r"[.:\s]", module)
    for depth in range(1, len(names) + 1):
        name = ".".join(names[:depth])
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            break
        if spec is None:
            break
        # A namespace package has no code, and several distributions share it.
        if spec.origin is None or not spec.has_location:
            continue
        origin = Path(spec.origin)
        return name, origin.parent if spec.submodule_search_locations else origin
    return names[0], None


# ---------------------------------------------------------------------------- checking one


class _BrokenError(Exception):
    """Why a plugin is broken, in one line."""


def _declared(plugin: Plugin) -> list[Declaration]:
    """Return what a plugin declares.

    Raises:
        _BrokenError: it cannot be imported, or anything is wrong with its hooks.
    """
    if not _MODULE.fullmatch(plugin.module):
        raise _BrokenError(f"its entry point must name a module, not {plugin.module!r}")
    with _blaming(plugin, "cannot be imported"):
        module = importlib.import_module(plugin.module)
        interface = getattr(module, "ATOM_INTERFACE", INTERFACE)
    if interface != INTERFACE:
        raise _BrokenError(f"speaks interface version {interface}; this ATOM speaks {INTERFACE}")
    declared: dict[tuple[str, str], Declaration] = {}
    with _blaming(plugin, "cannot be registered"):
        implementations = _implementations(module)
    for hook, function in implementations:
        with _blaming(plugin, f"{hook} raised"):
            for declaration in _called(hook, function):
                component = Component(plugin, declaration)
                if (component.kind, component.name) in declared:
                    raise _BrokenError(f"{hook} repeats the name {component.name}")
                declared[component.kind, component.name] = declaration
    return list(declared.values())


def _implementations(module: ModuleType) -> list[tuple[str, Callable[..., object]]]:
    """Return the hooks that ``module`` implements, with their names, checked by pluggy."""
    # A manager of its own: what is wrong with one plugin cannot reach another.
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
    """Yield what a hook yields, if it is of the hook's kind."""
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
    """Turn whatever a plugin's code raises into the reason why the plugin is broken."""
    try:
        yield
    except (KeyboardInterrupt, _BrokenError):
        raise
    # BaseException: a plugin that calls sys.exit() must not end ATOM.
    except BaseException as error:
        raise _BrokenError(f"{what}: {_words(error, plugin)}") from None


def _words(error: BaseException, plugin: Plugin) -> str:
    """Return an exception in one line, with the line of the plugin's code where it came about."""
    if isinstance(error, SyntaxError):
        words = f"{type(error).__name__}: {error}"
    else:
        # Not str(error): a plugin's own exception may raise another one there.
        words = "".join(traceback.format_exception_only(error))
    words = " ".join(words.split())
    if len(words) > _LONGEST_REASON:
        words = f"{words[:_LONGEST_REASON]}…"
    if plugin.source is None:
        return words
    lines = [
        f" ({Path(frame.f_code.co_filename).relative_to(plugin.source.parent)}:{number})"
        for frame, number in traceback.walk_tb(error.__traceback__)
        if Path(frame.f_code.co_filename).is_relative_to(plugin.source)
    ]
    return words + (lines[-1] if lines else "")


def _described(thing: object) -> str:
    if isinstance(thing, Declaration):
        return f"the {type(thing).__name__} {thing.name!r}"
    return "None" if thing is None else f"an object of type {type(thing).__name__}"


def _nearest(name: str, offered: list[Component]) -> str:
    """Return a hint at the components with the nearest names, or all of them if few."""
    close = difflib.get_close_matches(name, sorted({c.name for c in offered}), n=3)
    named = sorted(
        f"{component.name} ({component.plugin.package})"
        for component in offered
        if not close or component.name in close
    )
    if close:
        return f"did you mean {' or '.join(named)}?"
    return f"valid: {', '.join(named[:12])}" + (", …" if len(named) > 12 else "")


def _listed(broken: list[Plugin]) -> str:
    named = [f"{plugin.package} ({plugin.reason})" for plugin in broken[:3]]
    rest = [f"{len(broken) - 3} more (see `atom plugins`)"] if len(broken) > 3 else []
    count = "1 plugin is broken" if len(broken) == 1 else f"{len(broken)} plugins are broken"
    return f"{count}: {', '.join(named + rest)}"


def _normalized(package: str) -> str:
    """Return a package's name in the one spelling that pip compares names in."""
    return re.sub(r"[-_.]+", "-", package).lower()


def _is_called(package: str, plugin: Plugin) -> bool:
    return _normalized(package) in map(_normalized, (plugin.import_package, plugin.package))


def _ambiguous(found: list[Component], key: str | None) -> str:
    """Return the sentence that names the packages and what to write to choose one of them."""
    where = " and ".join(f"{c.plugin.package} {c.plugin.version}" for c in found)
    problem = f"{found[0].kind} {found[0].name} is offered by {where}"
    field = key.rpartition(".")[2] if key else "name"
    for owners in (
        [component.plugin.import_package for component in found],
        [component.plugin.package for component in found],
    ):
        if len(set(map(_normalized, owners))) == len(found):
            choices = " or ".join(f"`{field}: {owner}:{found[0].name}`" for owner in owners)
            return f"{problem}; choose one with {choices}"
    return f"{problem}, and nothing tells them apart; uninstall one"
