"""Multi-token prediction (DeepSeek-AI, 2024, https://arxiv.org/abs/2412.19437, section 2.2).

Layers after those of the model predict one token further each, from the hidden state of the layer
before them and the embedding of the next token. They share the embedding and the output layer, and
are left out when the model is not in training mode, so that they only change the gradients.

Shape suffixes: B = sequences, L = tokens per sequence, D = width, V = vocabulary.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, fields
from typing import Any

import spmd_types as spmd
import torch
from torch.distributed.tensor import DTensor
from torchtitan.components.loss import IGNORE_INDEX, BaseLoss, CrossEntropyLoss
from torchtitan.config import CompileConfig
from torchtitan.models.common import Linear, RMSNorm
from torchtitan.models.common.attention import AttentionMasksType
from torchtitan.models.common.decoder_sharding import (
    dense_activation_placement,
    dense_param_placement,
    dense_sequence_parallel_placement,
    norm_config,
    pre_lm_head_norm_config,
)
from torchtitan.models.deepseek_v3 import DeepSeekV3Model
from torchtitan.models.deepseek_v3.model import DeepSeekV3TransformerBlock
from torchtitan.models.deepseek_v3.mtp import roll_mtp_sequence
from torchtitan.protocols.sharding import ShardingConfig

from atom.errors import UserError

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]


class PredictingBlock(DeepSeekV3TransformerBlock):
    """A block that predicts one token further than the one before it."""

    @dataclass(kw_only=True, slots=True)
    class Config(DeepSeekV3TransformerBlock.Config):
        enorm: RMSNorm.Config
        hnorm: RMSNorm.Config
        eh_proj: Linear.Config
        mtp_norm: RMSNorm.Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.enorm = config.enorm.build()
        self.hnorm = config.hnorm.build()
        self.eh_proj = config.eh_proj.build()
        self.mtp_norm = config.mtp_norm.build()

    def forward(
        self,
        x: torch.Tensor,
        attention_masks: AttentionMasksType | None,
        positions: torch.Tensor | None = None,
        embedded: torch.Tensor | None = None,
    ) -> Any:
        """Return the hidden states, and these normalized for the output layer.

        Args:
            x: the hidden states of the layer before.
            attention_masks: as in other blocks.
            positions: as in other blocks.
            embedded: the embeddings of the tokens ahead; None: ``x``, and only the second result,
                to measure the block.
        """
        ahead = self.enorm(x if embedded is None else embedded)
        h = self.eh_proj(torch.cat([ahead, self.hnorm(x)], dim=-1))
        h = super().forward(h, attention_masks, positions)
        normed = self.mtp_norm(h)
        return normed if embedded is None else (h, normed)


def predicting(
    block: Any, dim: int, eps: float, linear: dict[str, Any], norm: dict[str, Any]
) -> Any:
    """Return the config of a :class:`PredictingBlock` like the block of a config."""
    same = {each.name: deepcopy(getattr(block, each.name)) for each in fields(block) if each.init}

    def normed() -> RMSNorm.Config:
        return RMSNorm.Config(normalized_shape=dim, eps=eps, param_init=norm)

    return PredictingBlock.Config(
        **same,
        enorm=normed(),
        hnorm=normed(),
        eh_proj=Linear.Config(in_features=2 * dim, out_features=dim, param_init=linear),
        mtp_norm=normed(),
    )


class PredictingModel(DeepSeekV3Model):
    """DeepSeek-V3; in training, its output is a list: logits, and those of each token ahead."""

    @dataclass(kw_only=True, slots=True)
    class Config(DeepSeekV3Model.Config):
        def update_from_config(self, *, config: Any, **arguments: Any) -> None:
            """Apply the run's settings; called by torchtitan's trainer.

            Raises:
                UserError: the layout divides what several layers share.
            """
            _check(config.parallelism)
            DeepSeekV3Model.Config.update_from_config(self, config=config, **arguments)
            for layer in self.layers:
                if isinstance(layer, PredictingBlock.Config):
                    _shard(layer, sequence=config.parallelism.enable_sequence_parallel)

        @property
        def outputs(self) -> int:
            """How often the output layer is computed for a token."""
            return 1 + sum(isinstance(layer, PredictingBlock.Config) for layer in self.layers)

        def get_nparams_and_flops(self, model: torch.nn.Module, seq_len: int) -> tuple[int, int]:
            """Return torchtitan's numbers, with the output layer of each token ahead."""
            size, flops = DeepSeekV3Model.Config.get_nparams_and_flops(self, model, seq_len)
            return size, flops + 6 * (self.outputs - 1) * self.dim * self.vocab_size

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.depth = config.outputs - 1

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor | None = None,
        attention_masks: AttentionMasksType | None = None,
    ) -> Any:
        """Return logits [B, L, V]; in training, a list of them."""
        layers = list(self.layers.values())
        count = len(layers) - self.depth
        h = self.tok_embeddings(tokens)
        for layer in layers[:count]:
            h = layer(h, attention_masks, positions)
        outputs = [self.norm(h)]
        for depth, layer in enumerate(layers[count:] if self.training else (), 1):
            tokens_ahead = roll_mtp_sequence(tokens, shift=depth, positions=positions, fill_value=0)
            embedded = self.tok_embeddings(tokens_ahead)
            h, output = layer(h, attention_masks, positions, embedded)
            outputs.append(output)
        if self._skip_lm_head:
            return outputs[0] if len(outputs) == 1 else outputs
        logits = [self.lm_head(output) for output in outputs]
        return logits if self.training else logits[0]


class PredictingLoss(BaseLoss):
    """Cross-entropy, with the gradient of that of the tokens ahead, too.

    Their losses do not reach its value, so that losses of runs with and without them are
    comparable.

    Attributes:
        further: the mean of the losses of the tokens ahead, without their weight, of this rank's
            latest call in training, as its share of the mean over the tokens of the batch.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        cross_entropy: CrossEntropyLoss.Config
        weight: float

    def __init__(self, config: Config, *, compile_config: CompileConfig | None = None) -> None:
        self.inner = config.cross_entropy.build(compile_config=compile_config)
        self.weight = config.weight
        self.further: torch.Tensor | None = None

    def __call__(
        self,
        pred: Any,
        labels: torch.Tensor,
        global_valid_tokens: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        **arguments: Any,
    ) -> Loss:
        if not isinstance(pred, list):
            plain: Loss = self.inner(pred, labels, global_valid_tokens, **arguments)
            return plain
        loss, metrics = self.inner(pred[0], labels, global_valid_tokens, **arguments)
        ahead = None
        for depth, logits in enumerate(pred[1:], 1):
            labels_ahead = roll_mtp_sequence(
                labels, shift=depth, fill_value=IGNORE_INDEX, positions=positions
            )
            part, _ = self.inner(logits, labels_ahead, global_valid_tokens, **arguments)
            ahead = part if ahead is None else ahead + part
        assert ahead is not None
        with spmd.no_typecheck():
            ahead = ahead / (len(pred) - 1)
            told = ahead.detach()
            self.further = told.to_local() if isinstance(told, DTensor) else told
            loss = loss + self.weight * (ahead - ahead.detach())
        return loss, metrics


def _check(parallelism: Any) -> None:
    for kind, why in (
        ("pipeline", "needs the embedding on the last stage of a pipeline, too"),
        ("context", "reads tokens and labels ahead, which another rank has"),
    ):
        key = f"{kind}_parallel_degree"
        if (degree := getattr(parallelism, key)) > 1:
            raise UserError(
                f"multi-token prediction (architecture.mtp_depth) {why}",
                valid="1, or architecture.mtp_depth=0",
                key=f"parallelism.{key}",
                value=degree,
            )


def _shard(layer: PredictingBlock.Config, *, sequence: bool) -> None:
    """Set the sharding of what a block has beside those of others."""
    stream = (
        dense_sequence_parallel_placement() if sequence else dense_activation_placement(tp=spmd.I)
    )
    layer.enorm.sharding_config = layer.hnorm.sharding_config = norm_config(enable_sp=sequence)
    layer.mtp_norm.sharding_config = pre_lm_head_norm_config(enable_sp=sequence)
    layer.eh_proj.sharding_config = ShardingConfig(
        state_shardings={"weight": dense_param_placement(tp=spmd.R)},
        in_src_shardings={"input": stream},
        out_src_shardings=stream,
    )
