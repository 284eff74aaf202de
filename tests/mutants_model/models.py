"""Each function describes a small Llama with one fault."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torchtitan.config.override import derive
from torchtitan.models.common.attention import get_causal_mask_mod, get_document_mask_mod
from torchtitan.models.common.feed_forward import FeedForward
from torchtitan.models.common.param_init import skip_param_init
from torchtitan.models.llama3.model import Llama3Model, Llama3TransformerBlock
from torchtitan.models.llama3.state_dict_adapter import Llama3StateDictAdapter

from atom.plugin import ArchitectureContext, ModelParts
from atom.titan.contracts.small_models import llama_model


def _model(context: ArchitectureContext, kind: type = Llama3Model) -> Any:
    return derive(llama_model(vocab_size=context.vocab_size), kind.Config)


def twin(_config: None, context: ArchitectureContext) -> ModelParts:
    return ModelParts(model=_model(context), state_dict_adapter=Llama3StateDictAdapter)


# ---------------------------------------------------------------------------- masks


class _Masked(Llama3Model):
    @dataclass(kw_only=True, slots=True)
    class Config(Llama3Model.Config):
        pass

    def masks(self, positions: torch.Tensor) -> list[Any]:
        raise NotImplementedError

    def get_attention_masks(self, positions: torch.Tensor) -> Any:
        attention = self.config.first_attention
        return self._create_flex_attention_mask(positions, attention, self.masks(positions))


class _Future(_Masked):
    @dataclass(kw_only=True, slots=True)
    class Config(_Masked.Config):
        pass

    def masks(self, positions: torch.Tensor) -> list[Any]:
        return [get_document_mask_mod(positions)]


class _OneDocument(_Masked):
    @dataclass(kw_only=True, slots=True)
    class Config(_Masked.Config):
        pass

    def masks(self, _positions: torch.Tensor) -> list[Any]:
        return [get_causal_mask_mod()]


def leaks_the_future(_config: None, context: ArchitectureContext) -> ModelParts:
    return ModelParts(model=_model(context, _Future))


def ignores_documents(_config: None, context: ArchitectureContext) -> ModelParts:
    return ModelParts(model=_model(context, _OneDocument))


# ---------------------------------------------------------------------------- blocks


class _Block(Llama3TransformerBlock):
    """``fault`` says what is wrong with it."""

    @dataclass(kw_only=True, slots=True)
    class Config(Llama3TransformerBlock.Config):
        fault: str

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.fault = config.fault
        if self.fault == "cpu":
            self.register_buffer("table", torch.ones(3, device="cpu"), persistent=False)
        if self.fault == "state":
            self.register_buffer("steps", torch.zeros(()), persistent=False)

    def _init_self_buffers(self, **_arguments: Any) -> None:
        if self.fault == "state":
            self.steps = torch.zeros_like(self.steps)

    def forward(
        self, x: torch.Tensor, attention_masks: Any, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        normed = self.attention_norm(x)
        if self.fault == "detach":
            normed = normed.detach()
        if self.fault == "ranks" and torch.distributed.is_initialized():
            raise ValueError("a layer of the mutant broke")
        if self.fault == "average":
            normed = normed + 0.1 * normed.mean(dim=1, keepdim=True)
        h = x + self.attention(normed, attention_masks, positions)
        out = h + self.feed_forward(self.ffn_norm(h))
        if self.fault == "dropout":
            out = F.dropout(out, 0.1, training=self.training)
        if self.fault == "state":
            out = out * (1 + 0.1 * self.steps)
            self.steps += 1
        return out


def _with_blocks(context: ArchitectureContext, fault: str) -> ModelParts:
    model = _model(context)
    model.layers = [derive(layer, _Block.Config, fault=fault) for layer in model.layers]
    return ModelParts(model=model)


def averages_the_sequence(_config: None, context: ArchitectureContext) -> ModelParts:
    return _with_blocks(context, "average")


def detaches_a_parameter(_config: None, context: ArchitectureContext) -> ModelParts:
    return _with_blocks(context, "detach")


def drops_out(_config: None, context: ArchitectureContext) -> ModelParts:
    return _with_blocks(context, "dropout")


def makes_tensors_on_the_cpu(_config: None, context: ArchitectureContext) -> ModelParts:
    return _with_blocks(context, "cpu")


def keeps_state_out_of_checkpoints(_config: None, context: ArchitectureContext) -> ModelParts:
    return _with_blocks(context, "state")


def breaks_on_ranks(_config: None, context: ArchitectureContext) -> ModelParts:
    return _with_blocks(context, "ranks")


class _LocalHeads(FeedForward):
    """Scales by the share of the hidden width that is here: all of it on one rank."""

    @dataclass(kw_only=True, slots=True)
    class Config(FeedForward.Config):
        pass

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.hidden_dim = config.w1.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.silu(self.w1(x)) * self.w3(x)
        return self.w2(hidden * (hidden.shape[-1] / self.hidden_dim))


def depends_on_local_heads(_config: None, context: ArchitectureContext) -> ModelParts:
    model = _model(context)
    for layer in model.layers:
        layer.feed_forward = derive(layer.feed_forward, _LocalHeads.Config)
    return ModelParts(model=model)


class _Ascending(Llama3Model):
    @dataclass(kw_only=True, slots=True)
    class Config(Llama3Model.Config):
        pass

    def forward(self, *arguments: Any, **options: Any) -> torch.Tensor:
        logits = super().forward(*arguments, **options)
        if logits.requires_grad:
            logits.register_hook(torch.neg)
        return logits


def climbs_the_gradient(_config: None, context: ArchitectureContext) -> ModelParts:
    return ModelParts(model=_model(context, _Ascending))


# ---------------------------------------------------------------------------- initialisation


def starts_too_loud(_config: None, context: ArchitectureContext) -> ModelParts:
    model = _model(context)
    model.lm_head = dataclasses.replace(
        model.lm_head, param_init={"weight": partial(nn.init.normal_, std=1.0)}
    )
    return ModelParts(model=model)


def leaves_a_parameter_uninitialised(_config: None, context: ArchitectureContext) -> ModelParts:
    model = _model(context)
    model.norm = dataclasses.replace(model.norm, param_init={"weight": skip_param_init})
    return ModelParts(model=model)


class _Miscounted(Llama3Model):
    @dataclass(kw_only=True, slots=True)
    class Config(Llama3Model.Config):
        def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, int]:
            count, flops = Llama3Model.Config.get_nparams_and_flops(self, model, seq_len)
            return count - self.vocab_size * self.dim, flops


def miscounts_parameters(_config: None, context: ArchitectureContext) -> ModelParts:
    return ModelParts(model=_model(context, _Miscounted))


# ---------------------------------------------------------------------------- shardings


class _Unsharded(Llama3Model):
    @dataclass(kw_only=True, slots=True)
    class Config(Llama3Model.Config):
        whole: bool

        def update_from_config(self, *, config: Any, **options: Any) -> None:
            Llama3Model.Config.update_from_config(self, config=config, **options)
            norm = self.layers[1].ffn_norm
            if self.whole:
                norm.sharding_config = None
            else:
                norm.sharding_config = dataclasses.replace(norm.sharding_config, state_shardings={})


def forgets_a_sharding(_config: None, context: ArchitectureContext) -> ModelParts:
    model = llama_model(vocab_size=context.vocab_size)
    return ModelParts(model=derive(model, _Unsharded.Config, whole=True))


def forgets_a_weights_sharding(_config: None, context: ArchitectureContext) -> ModelParts:
    model = llama_model(vocab_size=context.vocab_size)
    return ModelParts(model=derive(model, _Unsharded.Config, whole=False))


# ---------------------------------------------------------------------------- Hugging Face


class _OneWay(Llama3StateDictAdapter):
    """Permutes queries and keys on the way out and not on the way back."""

    def _reverse_permute(self, w: Any, *_arguments: Any, **_options: Any) -> Any:
        return w


class _Forgetful(Llama3StateDictAdapter):
    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        exported = super().to_hf(state_dict)
        del exported["model.norm.weight"]
        return exported


def exports_wrong_weights(_config: None, context: ArchitectureContext) -> ModelParts:
    return ModelParts(model=_model(context), state_dict_adapter=_OneWay)


def loses_exported_names(_config: None, context: ArchitectureContext) -> ModelParts:
    return ModelParts(model=_model(context), state_dict_adapter=_Forgetful)
