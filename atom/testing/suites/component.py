"""The suite of every kind: a plugin that is cheap to list, and parameters that are data."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from atom.errors import UserError
from atom.io import yaml_data
from atom.plugin import KINDS, Declaration, Kernel
from atom.registry.configured import configured
from atom.registry.host import Component, Host, resolve
from atom.testing import isolated
from atom.testing.applicable import where
from atom.testing.conformance import Suite
from atom.testing.opened import opened

MOST_CPU_SECONDS = 3.0
"""Limit for importing the declaring module and calling its hooks. A hundredth is typical; even a
limit that a busy machine never reaches finds a model that is built while plugins are listed."""


class ComponentSuite(Suite):
    """The contract of any component. The suites of the kinds extend it.

    Attributes:
        sample: creates the component's input in a given folder, and returns parameters (a path)
            to add to those of the conformance line.
    """

    sample: ClassVar[Callable[[Path], Mapping[str, Any]] | None] = None

    @classmethod
    def has_parameters(cls, component: Component) -> bool:
        """Return whether the component has a parameter model."""
        return component.declaration.config is not None

    @classmethod
    def declared_kind(cls) -> type[Declaration]:
        """Return the class of the kind's declarations."""
        return next(kind for kind in KINDS if kind.kind == cls.kind)

    @property
    def group(self) -> str:
        """The config group with options that select components of the kind."""
        return self.declared_kind().section

    def sections(self, composed: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """Return the component sections, by key, in the composition of a file of the group."""
        if self.declared_kind().chosen != "many":
            return {self.group: composed}
        return {f"{self.group}.{name}": section for name, section in composed.items()}

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _sampled(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        if cls.sample is not None:
            cls.parameters = cls.parameters | dict(cls.sample(tmp_path_factory.mktemp("sample")))

    def check_section(self, section: Mapping[str, Any], component: Component, host: Host) -> None:
        """Validate the section composed from a config group file.

        A kind with more than a name and parameters in its section overrides this.

        Args:
            section: composed section of a run. A missing value (``???``) is ``"???"``.
            component: the component under test.
            host: the installed plugins.

        Raises:
            UserError: a run cannot have this section.
        """
        parameters = {str(key): value for key, value in section.items() if key != "name"}
        name = section.get("name")
        if not isinstance(name, str):
            raise UserError("the file names no component", key=f"{self.group}.name", value=name)
        package = "" if ":" in name else f"{component.plugin.package}:"
        named = host.find(self.kind, package + name, key=f"{self.group}.name")
        if named.name == component.name:
            given = {key: value for key, value in self.parameters.items() if key in parameters}
            parameters |= {key: given[key] for key in _unset(parameters) if key in given}
        if unset := _unset(parameters):
            _check_partly(named, parameters, unset)
        else:
            opened(named, configured(named, parameters))

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def settled_device(cls) -> None:
        """Set torchtitan's device before anything that a test resolves imports torchtitan."""
        from atom.titan.boot import settled

        settled()

    # ------------------------------------------------------------------------ the declaration

    def test_declaring_is_cheap(self, component: Component) -> None:
        """ATOM imports the declaring module whenever it lists plugins, so it must import no heavy
        package and compute nothing."""
        imports, seconds = isolated.declaring(component.plugin.module)
        assert not imports, (
            f"importing {component.plugin.module} imports {_listed(imports)}; import it in the "
            "functions that use it"
        )
        assert seconds < MOST_CPU_SECONDS, "declaring takes that many seconds of CPU time"

    def test_name_is_valid_and_unique(self, component: Component, host: Host) -> None:
        """The name is valid in a run, and unique among installed plugins."""
        Declaration.__post_init__(component.declaration)
        if isinstance(component.declaration, Kernel):
            Kernel.__post_init__(component.declaration)
        others = [
            other.plugin.package
            for other in host.components
            if other.kind == component.kind and other.name == component.name and other != component
        ]
        assert not others, f"{component.kind} {component.name} is offered by these packages too"

    def test_summary_exists(self, component: Component) -> None:
        """The summary in `atom plugins` says more than the name."""
        summary = component.summary.strip()
        assert "\n" not in summary, "the summary is one line"
        assert len(summary.split()) > 1, "the summary says nothing that the name does not say"

    def test_references_resolve(self, component: Component) -> None:
        """Every reference of the declaration exists."""
        for attribute in component.declaration.references:
            reference = getattr(component.declaration, attribute)
            if reference is None:
                continue
            try:
                code = resolve(reference, component)
            except UserError as error:
                pytest.fail(f"{attribute}: {error.sentence()}", pytrace=False)
            assert callable(code), f"{attribute} ({reference}) is nothing to call"

    def test_pickles(self, component: Component, config: BaseModel | None) -> None:
        """Declaration and parameters reach another process unchanged."""
        for thing in (component.declaration, config):
            try:
                back = pickle.loads(pickle.dumps(thing))
            # pickle propagates any exception of the object's own code.
            except Exception as error:
                pytest.fail(f"{type(thing).__name__} cannot be pickled: {error}", pytrace=False)
            assert back == thing, f"{type(thing).__name__} comes back from pickle changed"

    # ------------------------------------------------------------------------ its parameters

    @where(lambda suite, component: suite.has_parameters(component))
    def test_config_round_trips_through_yaml(
        self, component: Component, config: BaseModel | None
    ) -> None:
        """Every rank reads the parameters from ``run.yaml`` exactly as the user set them."""
        assert config is not None
        as_given = configured(component, _through_yaml(TypeAdapter(Any), self.parameters))
        assert as_given == config, "parameters as given, from the YAML of a run"
        model = type(config)
        dumped = _through_yaml(TypeAdapter(model), config)
        lost = [name for name in model.model_fields if name not in dumped]
        assert not lost, "fields that are lost in YAML"
        assert model.model_validate(dumped) == config, "the whole config, from its own YAML"

    @where(lambda suite, component: suite.has_parameters(component))
    def test_config_refuses_unknown_parameters(
        self, component: Component, config: BaseModel | None
    ) -> None:
        """A misspelled parameter is an error; the run does not use the default instead."""
        assert config is not None
        with pytest.raises(UserError):
            configured(component, self.parameters | {"no_such_parameter": 1})

    @where(lambda suite, component: suite.has_parameters(component))
    def test_every_field_is_documented(self, config: BaseModel | None) -> None:
        """Each parameter has a ``Field(description=…)``."""
        assert config is not None
        silent = [
            name for name, description in _fields(type(config)) if not (description or "").strip()
        ]
        assert not silent, "fields without a description"

    # ------------------------------------------------------------------------ its config group

    def test_config_group_files_validate(self, component: Component, host: Host) -> None:
        """Each file of the plugin in the kind's group composes, as in ``atom train``, to a valid
        section; values that the user must set are marked ``???``."""
        options = _options(component, self.group)
        if not options:
            pytest.skip(f"{component.plugin.package} has no files conf/{self.group}/*.yaml")
        for option in options:
            try:
                for section in self.sections(composed(host, self.group, option)).values():
                    self.check_section(section, component, host)
            except UserError as error:
                file = f"conf/{self.group}/{option}.yaml"
                pytest.fail(f"{file}: {error.sentence()}", pytrace=False)

    def test_config_group_files_are_its_own(self, component: Component, host: Host) -> None:
        """No other installed package has an option of the same name, because a run could select
        neither.
        """
        from atom.compose.groups import Groups

        owners = Groups(host.plugins).owners
        for option in _options(component, self.group):
            packages = {plugin.package for plugin in owners[f"{self.group}/{option}"]}
            assert packages == {component.plugin.package}, f"{self.group}={option}"

    @where(lambda suite, _: suite.declared_kind().chosen != "otherwise")
    def test_a_config_group_file_chooses_it(self, component: Component, host: Host) -> None:
        """``KIND=OPTION`` exists as soon as the package is installed."""
        sections = [
            section
            for option in _options(component, self.group)
            for section in self.sections(composed(host, self.group, option)).values()
        ]
        names = {str(section.get("name")).rpartition(":")[2] for section in sections}
        assert component.name in names, (
            f"no file conf/{self.group}/*.yaml of {component.plugin.package} has "
            f"`name: {component.name}`"
        )


@cache
def composed(host: Host, group: str, option: str) -> dict[str, Any]:
    """Return the section that ``GROUP=OPTION`` composes to.

    Missing values are ``"???"``. The test fails with the reason if Hydra cannot compose.
    """
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from atom.compose.compose import config_loader
    from atom.compose.groups import CONFIG_NAME

    try:
        config = config_loader(host).load_configuration(
            CONFIG_NAME, overrides=[f"{group}={option}"], run_mode=RunMode.RUN
        )
        section = OmegaConf.to_container(config[group], resolve=True)
    except (HydraException, OmegaConfBaseException, UserError) as error:
        pytest.fail(f"{group}={option}: {error}", pytrace=False)
    assert isinstance(section, dict), f"{group}={option} composes to no section"
    return {str(key): value for key, value in section.items()}


def _options(component: Component, group: str) -> list[str]:
    """Return the options that the plugin's own files add to a config group, sorted."""
    folder = component.plugin.conf
    if folder is None:
        return []
    files = Path(folder, group).rglob("*.yaml")
    return sorted(file.relative_to(folder / group).with_suffix("").as_posix() for file in files)


def _unset(parameters: Mapping[str, Any]) -> list[str]:
    return [key for key, value in parameters.items() if _has_no_value(value)]


def _has_no_value(value: object) -> bool:
    """Return whether the user must set a value, or one within it."""
    if isinstance(value, Mapping):
        return any(map(_has_no_value, value.values()))
    if isinstance(value, list):
        return any(map(_has_no_value, value))
    return value == "???"


def _check_partly(component: Component, parameters: dict[str, Any], unset: list[str]) -> None:
    """Validate parameters with missing values: only these may be invalid."""
    reference = component.declaration.config
    if reference is None:
        configured(component, parameters)
        return
    try:
        TypeAdapter(resolve(reference, component)).validate_python(parameters)
    except ValidationError as error:
        for mistake in error.errors():
            key = str(mistake["loc"][0]) if mistake["loc"] else ""
            if key not in unset or mistake["type"] == "extra_forbidden":
                value = parameters.get(key, ...)
                raise UserError(
                    mistake["msg"], key=f"{component.kind}.{key}".rstrip("."), value=value
                ) from None


def _through_yaml(adapter: TypeAdapter[Any], value: Any) -> Any:
    """Write and read ``value`` as in a run's ``run.yaml``."""
    text = yaml.safe_dump(adapter.dump_python(value, mode="json"), sort_keys=False)
    return yaml_data.load(text, "run.yaml")


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str | None]]:
    """Yield the name and the description of each field, including those of nested models."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field.description
        for nested in _models(field.annotation):
            yield from _fields(nested, f"{prefix}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models in a type such as ``list[Model] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models(argument)


def _listed(imports: Mapping[str, str]) -> str:
    return ", ".join(f"{package} ({place})" for package, place in imports.items())
