"""Llama 3 keeps the promises of an architecture, with and without tied embeddings."""

from atom.testing import conformance

SIZES = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 32}

TestLlama3 = conformance("architecture:llama3", **SIZES, rope_theta=10_000.0).having(
    parameter_count=131_392
)
TestTied = conformance("architecture:llama3", **SIZES, tie_embeddings=True)
