"""torchtitan's gpt-oss, with attention windows that survive the choice of kernels."""

from __future__ import annotations

from dataclasses import dataclass

from torchtitan.models.common.attention import VarlenAttention
from torchtitan.models.gpt_oss.model import GptOssModel


class GptOssDecoder(GptOssModel):
    """The decoder; its kernels may have been chosen after it was described.

    FlexAttention gets each block's window in a mask. Variable-length attention has it in its own
    configuration, and a kernel that replaces FlexAttention does not set it there.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(GptOssModel.Config):
        pass

    def __init__(self, config: Config) -> None:
        for layer in config.layers:
            attention = layer.attention
            window, inner = attention.sliding_window_size, attention.inner_attention
            if window is not None and isinstance(inner, VarlenAttention.Config):
                inner.window_size = (window - 1, 0)
        super().__init__(config)
