"""The architecture is right, alone and under every parallelism that it has."""

from atom.testing import conformance

TestGatedLinearAttention = conformance(
    "architecture:gated_linear_attention",
    dim=64,
    n_layers=4,
    n_heads=4,
    key_dim=32,
    value_dim=64,
    ffn_dim=96,
).having(unsupported={"cp": "its state goes from token to token, which CP splits"})
