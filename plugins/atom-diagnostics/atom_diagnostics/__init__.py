"""Diagnostics of training: norms of layers, routing to experts, and alerts that name them."""

from collections.abc import Iterator

from atom.plugin import Callback, hookimpl

ATOM_INTERFACE = 1
"""The version of :mod:`atom.plugin` that this package is written for."""


@hookimpl
def atom_callbacks() -> Iterator[Callback]:
    yield Callback(
        name="norms",
        summary="gradient, weight, update and activation norms of each layer",
        config="atom_diagnostics.config:Norms",
        callback="atom_diagnostics.norms:callback",
    )
    yield Callback(
        name="experts",
        summary="load and routing entropy of the experts of each layer",
        config="atom_diagnostics.config:Experts",
        callback="atom_diagnostics.experts:callback",
    )
