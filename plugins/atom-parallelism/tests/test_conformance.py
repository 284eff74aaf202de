"""Each strategy keeps the promises of its kind, the mesh in each layout that the package names."""

from atom.testing import conformance, partners

PIPELINE = {"pipeline_parallel_degree": 2, "pipeline_parallel_schedule": "1F1B"}

TestSingle = conformance("parallelism:mesh", data_parallel_shard_degree=1)
TestUnsharded = conformance("parallelism:unsharded", data_parallel_shard_degree=1)
TestFsdp = conformance("parallelism:mesh", data_parallel_shard_degree=-1)
TestHsdp = conformance(
    "parallelism:mesh", data_parallel_replicate_degree=2, data_parallel_shard_degree=-1
)
TestTp = conformance("parallelism:mesh", data_parallel_shard_degree=1, tensor_parallel_degree=2)
TestPp = conformance("parallelism:mesh", data_parallel_shard_degree=1, **PIPELINE)
TestCp = conformance("parallelism:mesh", data_parallel_shard_degree=1, context_parallel_degree=2)
Test4d = conformance(
    "parallelism:mesh",
    data_parallel_shard_degree=-1,
    tensor_parallel_degree=2,
    context_parallel_degree=2,
    **PIPELINE,
).having(architectures=({"name": f"{partners.PACKAGE}:llama"},))
"""On 16 ranks, and so on one architecture: each is laid out in 4D on 8 ranks by its own suite."""
TestAuto = conformance("parallelism:auto")
