"""Observe training: norms, attention logits, histograms, routing, alerts, and averaged weights."""

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
    yield Callback(
        name="attention",
        summary="the largest attention logit of each layer",
        config="atom_diagnostics.config:Attention",
        callback="atom_diagnostics.attention:callback",
    )
    yield Callback(
        name="histograms",
        summary="histograms of the weights, gradients and outputs of each layer",
        config="atom_diagnostics.config:Histograms",
        callback="atom_diagnostics.histograms:callback",
    )
    yield Callback(
        name="ema",
        summary="exponential moving average of the weights, saved and validated beside them",
        config="atom_diagnostics.config:Ema",
        callback="atom_diagnostics.ema:callback",
        check="atom_diagnostics.ema_steps:check",
        averages=True,
    )
