"""Define Qwen3.5 without its vision encoder, also for devices without FLA's kernels."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor
from torchtitan.models.common import Conv1d
from torchtitan.models.common.decoder import Decoder
from torchtitan.models.common.decoder_sharding import (
    dense_sequence_parallel_placement,
    set_decoder_sharding_config,
)
from torchtitan.models.common.moe import MoE

from atom.errors import UserError
from atom_qwen3_5 import delta
from atom_qwen3_5.divided import Parts

with warnings.catch_warnings():
    # On every rank without a GPU for Triton, FLA warns about it.
    warnings.filterwarnings("ignore", message="Triton is not supported")
    from torchtitan.models.qwen3_5.model import (
        GatedDeltaKernel,
        GatedDeltaNet,
        Qwen35Model,
        _causal_conv1d_varlen,
    )
    from torchtitan.models.qwen3_5.sharding import _set_qwen35_layer_sharding


class GatedDeltaRule(GatedDeltaKernel):
    """The gated delta rule: FLA's kernel on a GPU, plain PyTorch elsewhere.

    Attributes:
        parts: the ranks that a sequence is divided among; None: this rank has it whole.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(GatedDeltaKernel.Config):
        pass

    parts: Parts | None = None

    def forward(
        self,
        xq_BLNK: torch.Tensor,
        xk_BLNK: torch.Tensor,
        xv_BLNV: torch.Tensor,
        g_BLN: torch.Tensor,
        beta_BLN: torch.Tensor,
        *,
        cu_seqlens: torch.Tensor | None = None,
        cu_seqlens_cpu: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the outputs of the states; the arguments are torchtitan's."""
        if self.parts is None:
            return self._of_whole(
                xq_BLNK, xk_BLNK, xv_BLNV, g_BLN, beta_BLN, cu_seqlens, cu_seqlens_cpu
            )
        if xq_BLNK.shape[2] % self.parts.count:
            groups = xv_BLNV.shape[2] // xq_BLNK.shape[2]
            xq_BLNK, xk_BLNK = (x.repeat_interleave(groups, dim=2) for x in (xq_BLNK, xk_BLNK))
        given = (xq_BLNK, xk_BLNK, xv_BLNV, g_BLN, beta_BLN)
        q_BLNK, k_BLNK, v_BLNV, g_BLN, beta_BLN = (self.parts.gather(x, 2) for x in given)
        out_BLNV = self._of_whole(
            q_BLNK, k_BLNK, v_BLNV, g_BLN, beta_BLN, cu_seqlens, cu_seqlens_cpu
        )
        return self.parts.scatter(out_BLNV, 2)

    def _of_whole(
        self,
        xq_BLNK: torch.Tensor,
        xk_BLNK: torch.Tensor,
        xv_BLNV: torch.Tensor,
        g_BLN: torch.Tensor,
        beta_BLN: torch.Tensor,
        cu_seqlens: torch.Tensor | None,
        cu_seqlens_cpu: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the outputs for whole sequences."""
        if xv_BLNV.is_cuda:
            result: torch.Tensor = GatedDeltaKernel.forward(
                self,
                xq_BLNK,
                xk_BLNK,
                xv_BLNV,
                g_BLN,
                beta_BLN,
                cu_seqlens=cu_seqlens,
                cu_seqlens_cpu=cu_seqlens_cpu,
            )
            return result
        groups = xv_BLNV.shape[2] // xq_BLNK.shape[2]
        q_BLNK, k_BLNK = (x.repeat_interleave(groups, dim=2) for x in (xq_BLNK, xk_BLNK))
        return delta.gated_delta_rule(q_BLNK, k_BLNK, xv_BLNV, g_BLN, beta_BLN, cu_seqlens)


class DeltaLayer(GatedDeltaNet):
    """A linear layer; its convolution is FLA's on a GPU and plain PyTorch elsewhere.

    Attributes:
        parts: the ranks that a sequence is divided among; None: this rank has it whole.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(GatedDeltaNet.Config):
        pass

    parts: Parts | None = None

    def _causal_conv(
        self,
        x_BLD: torch.Tensor,
        conv: Conv1d,
        cu_seqlens: torch.Tensor | None = None,
        cu_seqlens_cpu: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self.parts is not None and cu_seqlens is not None:
            return self._divided_conv(x_BLD, conv, cu_seqlens, cu_seqlens_cpu)
        if x_BLD.is_cuda or cu_seqlens is None:
            whole: torch.Tensor = GatedDeltaNet._causal_conv(
                self, x_BLD, conv, cu_seqlens, cu_seqlens_cpu
            )
            return whole
        if isinstance(x_BLD, DTensor):
            mapped: torch.Tensor = self._local_map_conv(x_BLD, conv, delta.causal_conv, cu_seqlens)
            return mapped
        result: torch.Tensor = delta.local_causal_conv(x_BLD, conv.weight, cu_seqlens)
        return result

    def _divided_conv(
        self,
        x_BLD: torch.Tensor,
        conv: Conv1d,
        cu_seqlens: torch.Tensor,
        cu_seqlens_cpu: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the convolution of this rank's tokens of divided sequences."""
        parts = self.parts
        assert parts is not None

        def convolved(
            x_BLW: torch.Tensor, weight_W1T: torch.Tensor, starts: torch.Tensor
        ) -> torch.Tensor:
            whole_BLW, own_W1T = parts.gather(x_BLW, 2), parts.share(weight_W1T)
            if x_BLW.is_cuda:
                out_BLW = _causal_conv1d_varlen(whole_BLW, own_W1T, starts, cu_seqlens_cpu)
            else:
                out_BLW = delta.causal_conv(whole_BLW, own_W1T, starts)
            return parts.scatter(out_BLW, 2)

        if isinstance(x_BLD, DTensor):
            mapped: torch.Tensor = self._local_map_conv(x_BLD, conv, convolved, cu_seqlens)
            return mapped
        return convolved(x_BLD, conv.weight, cu_seqlens)

    def with_state(
        self,
        state: tuple[torch.Tensor, ...] | None,
        x_BLD: torch.Tensor,
        attention_masks: Any = None,  # noqa: ARG002
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return the outputs of a document's next tokens, and the state after them.

        Args:
            state: the last inputs of the three convolutions, and the state of the delta rule; None
                at the beginning of the document.
            x_BLD: the tokens.
            attention_masks: not used; there are no other documents.
        """
        *inputs, rule = state or (None,) * 4
        mixed, kept = [], []
        for name, before_BTW in zip("qkv", inputs, strict=True):
            width = self.value_head_dim if name == "v" else self.key_head_dim
            projected_BLW = getattr(self, f"in_proj_{name}")(x_BLD)
            weight_W1T = getattr(self, f"conv_{name}").weight
            out_BLW, before_BTW = delta.continued_conv(projected_BLW, weight_W1T, before_BTW)
            mixed.append(out_BLW.unflatten(-1, (-1, width)))
            kept.append(before_BTW)
        q_BLNK, k_BLNK, v_BLNV = mixed
        groups = v_BLNV.shape[2] // q_BLNK.shape[2]
        q_BLNK, k_BLNK = (x.repeat_interleave(groups, dim=2) for x in (q_BLNK, k_BLNK))
        decay_BLN = F.softplus(self.in_proj_a(x_BLD).float() + self.dt_bias)
        out_BLNV, rule = delta.continued(
            q_BLNK,
            k_BLNK,
            v_BLNV,
            -self.A_log.float().exp() * decay_BLN,
            self.in_proj_b(x_BLD).sigmoid(),
            None,
            rule,
        )
        z_BLNV = self.in_proj_z(x_BLD).unflatten(-1, (-1, self.value_head_dim))
        out_BLD: torch.Tensor = self.out_proj(self.norm(out_BLNV, z_BLNV).flatten(2))
        return out_BLD, (*kept, rule)


class Mixture(MoE):
    """A mixture of experts for tokens with the strides of a rank's part of a sequence.

    torchtitan's takes views that need contiguous tokens. Its other norms return those; this model's
    keeps the strides that sequence parallelism leaves.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(MoE.Config):
        pass

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        out_BLD: torch.Tensor = MoE.forward(self, x_BLD.contiguous())
        return out_BLD


class Qwen35Text(Qwen35Model):
    """The decoder."""

    @dataclass(kw_only=True, slots=True)
    class Config(Qwen35Model.Config):
        vision_encoder: Any = None

        def update_from_config(self, *, config: Any, **arguments: Any) -> None:
            """Apply the run's settings; called by torchtitan's trainer.

            Raises:
                UserError: linear layers do not support the layout.
            """
            Decoder.Config.update_from_config(self, config=config, **arguments)
            _check(self, config.parallelism)
            # torchtitan's sharding, without the vision encoder's. Its linear layers support
            # sequence parallelism only.
            set_decoder_sharding_config(self, enable_sp=True)
            for layer in self.layers:
                _set_qwen35_layer_sharding(
                    layer,
                    attention_input_layout=dense_sequence_parallel_placement(),
                    enable_ep=config.parallelism.expert_parallel_degree > 1,
                )

    def __init__(self, config: Config) -> None:
        Decoder.__init__(self, config)
        self.vision_encoder = None
        self.parts: Parts | None = None
        """The ranks that sequences are divided among."""

    def get_attention_masks(self, positions: torch.Tensor) -> Any:
        """Return torchtitan's masks; if sequences are divided, that of attention, as they are."""
        if self.parts is None:
            return super().get_attention_masks(positions)
        return {"quadratic_attention": Decoder.get_attention_masks(self, positions)}

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor | None = None,
        attention_masks: Any = None,
    ) -> Any:
        """Return the decoder's output."""
        if self.parts is not None:
            # Here and not in a layer, which may be compiled.
            assert positions is not None
            attention_masks = attention_masks | {"deltanet": self.parts.documents(positions)}
        return Decoder.forward(self, tokens, positions, attention_masks)


def _check(model: Qwen35Text.Config, parallelism: Any) -> None:
    layer = next(layer.delta_net for layer in model.layers if layer.delta_net is not None)
    heads = {
        "key": layer.in_proj_q.out_features // layer.key_head_dim,
        "value": layer.in_proj_v.out_features // layer.value_head_dim,
    }
    tensor, context = parallelism.tensor_parallel_degree, parallelism.context_parallel_degree
    if context > 1 and heads["value"] % (tensor * context):
        raise UserError(
            f"must divide the {heads['value']} value heads of linear layers"
            + (f" with tensor_parallel_degree={tensor}" if tensor > 1 else ""),
            key="parallelism.context_parallel_degree",
            value=context,
        )
    if context > 1 and parallelism.context_parallel_load_balancer == "ptrr":
        raise UserError(
            "divides sequences otherwise in each batch, and linear layers read them in order",
            valid="headtail, null",
            key="parallelism.context_parallel_load_balancer",
            value="ptrr",
        )
    if tensor == 1:
        return
    if not parallelism.enable_sequence_parallel:
        raise UserError(
            "torchtitan's Qwen3.5 has tensor parallelism with sequence parallelism only",
            valid="true",
            key="parallelism.enable_sequence_parallel",
            value=False,
        )
    for what, number in heads.items():
        if number % tensor:
            raise UserError(
                f"must divide the {number} {what} heads of linear layers",
                key="parallelism.tensor_parallel_degree",
                value=tensor,
            )
