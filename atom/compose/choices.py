"""Check the options that a run selects, one per group."""

from __future__ import annotations

from collections.abc import Iterable

from hydra.core.config_loader import ConfigLoader
from hydra.core.default_element import ResultDefault
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException
from omegaconf import DictConfig

from atom.compose.groups import Groups
from atom.compose.guard import current, is_name
from atom.errors import UserError, nearest
from atom.recipe.components import NAMED, ONE
from atom.registry.host import Host


def check(host: Host, config: DictConfig, defaults: Iterable[ResultDefault]) -> None:
    """Refuse an option that no package provides, and a run without a component that it needs.

    Hydra skips an unknown option if the default is optional.
    """
    loader = current()
    _refuse_lists(defaults)
    _refuse_twice(defaults)
    for group, option in HydraConfig.get().runtime.choices.items():
        if group.startswith("hydra/") or option is None:
            continue
        group = group.partition("@")[0]  # the rest is the package of the content
        offered = loader.get_group_options(group)
        if option not in offered:
            raise _unknown(group, option, offered, host)
        owners = {p.package for p in loader.groups.owners.get(f"{group}/{option}", [])}
        if len(owners) > 1:
            raise UserError(
                f"the packages {' and '.join(sorted(owners))} both ship this option; "
                "uninstall one, or copy the file under another name into a --config-dir",
                key=group,
                value=option,
            )
    for path in loader.repository.missing:  # options of a list
        group, _, option = path.rpartition("/")
        if option == "None":  # an optional default of null
            continue
        if offered := loader.get_group_options(group):
            raise _unknown(group, option, offered, host)
    for group in ONE:
        if config.get(group) is None:
            offered = [f"{group}={option}" for option in loader.get_group_options(group)]
            valid = ", ".join(offered) or "a package that has an option of it"
            raise UserError("is required and has no value", valid=valid, key=group)


def _refuse_lists(defaults: Iterable[ResultDefault]) -> None:
    """Refuse a list of options for a group with one component; Hydra would merge them."""
    places = [
        # An option elsewhere is a part of a component: dataset@dataset.sources.web.
        (str(default.config_path).partition("/")[0], default.parent)
        for default in defaults
        if default.package == str(default.config_path).partition("/")[0]
    ]
    for group in NAMED:
        # A file of the group itself may compose several files.
        parents = [p for g, p in places if g == group and not str(p).startswith(f"{group}/")]
        if len(parents) > len(set(parents)):
            raise UserError(
                "takes one option, and no list of them, which is mixed",
                valid=f"{group}=OPTION",
                key=group,
            )


def _refuse_twice(defaults: Iterable[ResultDefault]) -> None:
    """Refuse an option that a list names twice; Hydra would merge it with itself."""
    seen = set()
    for default in defaults:
        place = str(default.config_path), default.package, default.parent
        group, _, option = place[0].rpartition("/")
        if place in seen and group:
            raise UserError(
                f"names {option} twice; a second one has a name of its own, as in "
                f"+{group}.NAME={{name: {option}}}",
                key=group,
            )
        seen.add(place)


def _unknown(group: str, option: str, offered: list[str], host: Host) -> UserError:
    for plugin in Groups(host.blocked).owners.get(f"{group}/{option}", []):
        return UserError(
            f"the package {plugin.package} has this option and is blocked: {plugin.reason}",
            key=group,
            value=option,
        )
    if not offered:
        return UserError(
            "no installed package has any option of this group; `atom plugins` lists what is "
            "installed",
            key=group,
            value=option,
        )
    hint = nearest(option, offered)
    groups = Groups(host.plugins)
    named = {groups.owner(group, name) for name in offered if name in hint} - {None}
    where = f" (from {', '.join(sorted(map(str, named)))})" if named else ""
    return UserError(f"there is no such option; {hint}{where}", key=group, value=option)


def missing(error: MissingConfigException, host: Host, loader: ConfigLoader) -> UserError:
    """Return the error for a file that Hydra does not find."""
    name = error.missing_cfg_file or ""
    if not is_name(name):
        return UserError(f"{name} leads out of the config folders", valid="a file in one of them")
    group, _, option = name.rpartition("/")
    # Hydra does not say the options of a group if a list of them was chosen.
    offered = error.options or loader.get_group_options(group)
    mistake = _unknown(group, option, list(offered), host)
    mistake.origin = "command line"
    return mistake
