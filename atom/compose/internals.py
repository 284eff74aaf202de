"""Import the private parts of Hydra and OmegaConf that ATOM uses; no other module does.

Check this module first against a new release of either.
"""

import sys

from hydra._internal import hydra as hydra_internal
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import (
    CachingConfigRepository,
    ConfigRepository,
    IConfigRepository,
)
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.utils import create_automatic_config_search_path, get_args_parser
from omegaconf.base import Container
from omegaconf.basecontainer import BaseContainer
from omegaconf.omegaconf import register_default_resolvers
from omegaconf.resolvers import oc

__all__ = [
    "BaseContainer",
    "CachingConfigRepository",
    "ConfigLoaderImpl",
    "ConfigRepository",
    "Container",
    "FileConfigSource",
    "IConfigRepository",
    "create_automatic_config_search_path",
    "get_args_parser",
    "hide",
    "hydra_internal",
    "oc",
    "register_default_resolvers",
]


def hide(module: str) -> None:
    """Make Python unable to find a module, so that Hydra does not import it."""
    sys.modules[module] = None  # type: ignore[assignment]
