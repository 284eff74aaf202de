"""Windows that are lost, one way each. ``windowed`` is the example of docs/plugins/architecture.md,
which ``tests/test_conformance_mutants_model.py`` puts beside this file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torchtitan.config.override import derive

from atom.plugin import ArchitectureContext, ModelParts
from atom.titan.contracts.small_models import llama_model
from mutants_model.windowed import WindowedBlock, WindowedModel, windowed

WINDOWS = (12, None)


def _model(context: ArchitectureContext) -> Any:
    model = llama_model(vocab_size=context.vocab_size)
    return windowed(model, [WINDOWS[number % 2] for number in range(len(model.layers))])


def windowed_twin(_config: None, context: ArchitectureContext) -> ModelParts:
    return ModelParts(model=_model(context))


class _Whole(WindowedModel):
    """Its masks have no windows."""

    @dataclass(kw_only=True, slots=True)
    class Config(WindowedModel.Config):
        pass

    def get_attention_masks(self, positions: Any) -> Any:
        masks = super().get_attention_masks(positions)
        return dict.fromkeys(masks, masks["None"])


class _Takes(WindowedBlock):
    """Takes the mask of another layer."""

    @dataclass(kw_only=True, slots=True)
    class Config(WindowedBlock.Config):
        pass

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.mask = str(WINDOWS[0])


def loses_the_window(_config: None, context: ArchitectureContext) -> ModelParts:
    return ModelParts(model=derive(_model(context), _Whole.Config))


def takes_the_wrong_mask(_config: None, context: ArchitectureContext) -> ModelParts:
    model = _model(context)
    return ModelParts(
        model=dataclasses.replace(
            model, layers=[derive(layer, _Takes.Config) for layer in model.layers]
        )
    )


def removes_the_window(_config: None, context: ArchitectureContext) -> ModelParts:
    """Here and in the masks alike: only who knows of it can tell."""
    model = llama_model(vocab_size=context.vocab_size)
    return ModelParts(model=windowed(model, [None] * len(model.layers)))
