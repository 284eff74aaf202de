"""torchtitan's gpt-oss, with windows that a kernel cannot lose."""

from __future__ import annotations

from dataclasses import dataclass

from torchtitan.models.common.attention import VarlenAttention
from torchtitan.models.gpt_oss.model import GptOssModel


class GptOssDecoder(GptOssModel):
    """The model, whose kernels may have been chosen after it was described.

    FlexAttention is given each block's window in a mask. Variable-length attention has it in its
    own configuration, which a kernel that replaces the former knows nothing to put into.
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
