"""Find the files of recipes: ``conf/recipe/NAME.yaml`` of ATOM, of plugins and of the user."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from atom.compose.compose import CONF
from atom.compose.groups import RECIPES, SUFFIX, Groups
from atom.compose.guard import user_folder
from atom.errors import UserError, nearest
from atom.io import yaml_data
from atom.registry.host import Host


def find(name: str, host: Host, config_dir: str | None = None) -> tuple[Any, str]:
    """Return the content of a recipe's file, plain data, and the path of the file.

    Args:
        name: of the recipe, or the path of a file that ends in ``.yaml``.
        host: the plugins.
        config_dir: a folder of configuration files, which comes first.

    Raises:
        UserError: there is no such recipe, or its file cannot be read.
    """
    if name.endswith(SUFFIX):
        return _read(Path(name)), name
    places = files(host, config_dir)
    if name not in places:
        raise UserError(f"there is no recipe {name}; {nearest(name, places)}")
    return _read(places[name]), str(places[name])


def files(host: Host, config_dir: str | None = None) -> dict[str, Path]:
    """Return the file of each recipe; earlier folders hide later ones."""
    folders = [*([Path(config_dir)] if config_dir else []), user_folder()]
    found: dict[str, Path] = {}
    for folder in folders:
        found = _in(folder / RECIPES) | found
    for path, plugins in Groups(host.plugins).owners.items():
        group, _, option = path.rpartition("/")
        if group == RECIPES and plugins[0].conf is not None:
            found.setdefault(option, plugins[0].conf / f"{path}{SUFFIX}")
    return found | {name: path for name, path in _in(CONF / RECIPES).items() if name not in found}


def _in(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    names: Iterable[Path] = sorted(folder.glob(f"*{SUFFIX}"))
    return {path.stem: path for path in names if path.is_file()}


def _read(path: Path) -> Any:
    try:
        return yaml_data.load(yaml_data.text_of(path, what="a recipe"), str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
