"""Probe what importing torchtitan imports. Call these before any other probe, in this order."""

from __future__ import annotations

import sys
from importlib import import_module

from atom.testing.probes.records import records_of


def attention_imports_inductor() -> bool:
    return _imports("torchtitan.models.common.attention", "torch._inductor.compile_fx")


def validation_imports_datasets() -> bool:
    return _imports("torchtitan.components.validate", "datasets")


def torchao_warns() -> bool:
    assert "torchao" not in sys.modules
    with records_of("torch.utils._pytree") as records:
        import_module("torchao.float8")
    return any("register_constant() on Enum" in record.getMessage() for record in records)


def _imports(module: str, unwanted: str) -> bool:
    assert unwanted not in sys.modules, f"{unwanted} has been imported before"
    import_module(module)
    return unwanted in sys.modules
