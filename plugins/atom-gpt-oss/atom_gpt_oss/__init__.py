"""The gpt-oss family: experts in every block, attention with sinks and alternating windows."""

from collections.abc import Iterator

from atom.plugin import Architecture, hookimpl

ATOM_INTERFACE = 1
"""The version of :mod:`atom.plugin` that this package is written for."""


@hookimpl
def atom_architectures() -> Iterator[Architecture]:
    yield Architecture(
        name="gpt_oss",
        summary="gpt-oss mixture of experts: attention sinks, every other layer in a window",
        config="atom_gpt_oss.config:GptOss",
        build="atom_gpt_oss.build:gpt_oss",
    )
