"""A plugin of components each of which breaks one promise, beside unbroken twins.

``tests/test_conformance_mutants_model.py`` installs it in a temporary folder and runs the
conformance kit on it.
"""

from collections.abc import Iterator

from atom.plugin import Architecture, Callback, Kernel, Needs, Optimizer, Parallelism, hookimpl

ARCHITECTURES = (
    "twin",
    "leaks_the_future",
    "averages_the_sequence",
    "ignores_documents",
    "detaches_a_parameter",
    "leaves_a_parameter_uninitialised",
    "starts_too_loud",
    "drops_out",
    "climbs_the_gradient",
    "miscounts_parameters",
    "makes_tensors_on_the_cpu",
    "exports_wrong_weights",
    "loses_exported_names",
    "depends_on_local_heads",
    "keeps_state_out_of_checkpoints",
    "forgets_a_sharding",
    "forgets_a_weights_sharding",
    "breaks_on_ranks",
)
WINDOWED = ("windowed_twin", "loses_the_window", "takes_the_wrong_mask", "removes_the_window")
PARALLELISMS = ("twin", "other_degrees", "too_few_ranks", "crashes", "forgets_gradients")
CALLBACKS = (
    "twin",
    "scales_gradients",
    "draws_random_numbers",
    "forgets_its_state",
    "logs_its_shard",
)
OPTIMIZERS = (
    "twin",
    "decays_all",
    "hides_its_state",
    "moves_at_rest",
    "norms_its_shard",
    "counts_steps_itself",
)
KERNELS = (
    "twin",
    "wrong_gradient",
    "wrong_for_odd_sizes",
    "ignores_strides",
    "ignores_strides_of_gradients",
    "rounds_too_much",
    "leaves_the_node",
    "loses_the_sharding",
    "triton_without_mask",
    "triton_changes_type",
)
STEPS = {
    "optimizer_step": ("twin", "without_correction"),
    "gradient_clipping": ("twin", "of_matrices"),
    "newton_schulz": ("twin", "stops_early"),
}


@hookimpl
def atom_architectures() -> Iterator[Architecture]:
    for name in ARCHITECTURES:
        yield Architecture(
            name=name, summary=f"a decoder: {name}", build=f"mutants_model.models:{name}"
        )
    for name in WINDOWED:
        yield Architecture(
            name=name, summary=f"a decoder: {name}", build=f"mutants_model.windows:{name}"
        )


@hookimpl
def atom_parallelisms() -> Iterator[Parallelism]:
    for name in PARALLELISMS:
        yield Parallelism(
            name=name, summary=f"a strategy: {name}", build=f"mutants_model.strategies:{name}"
        )


@hookimpl
def atom_optimizers() -> Iterator[Optimizer]:
    for name in OPTIMIZERS:
        yield Optimizer(
            name=name,
            summary=f"momentum: {name}",
            build=f"mutants_model.optimizers:{name}",
            state=("mean",),
        )


@hookimpl
def atom_callbacks() -> Iterator[Callback]:
    for name in CALLBACKS:
        yield Callback(
            name=name, summary=f"a callback: {name}", callback=f"mutants_model.callbacks:{name}"
        )


@hookimpl
def atom_kernels() -> Iterator[Kernel]:
    for name in KERNELS:
        yield Kernel(
            operation="rms_norm",
            name=f"mutant_{name}",
            summary=f"a norm: {name}",
            override=f"mutants_model.norms:{name}",
            needs=Needs(devices=("cuda",) if "triton" in name else ("cpu", "cuda")),
            tolerance={"float32": 1e-5},
            priority=-1,
            functions={"rms_norm": "mutants_model.norms:function"} if name == "twin" else {},
        )
    for name, functions in {
        "wrong_function": {"rms_norm": "mutants_model.norms:wrong_function"},
        "unknown_function": {"rmsnorm": "mutants_model.norms:function"},
    }.items():
        yield Kernel(
            operation="rms_norm",
            name=f"mutant_{name}",
            summary=f"a norm: {name}",
            override="mutants_model.norms:twin",
            tolerance={"float32": 1e-5},
            priority=-1,
            functions=functions,
        )
    yield Kernel(
        operation="rms_norm",
        name="mutant_needs_more_than_it_says",
        summary="a norm that says it runs everywhere",
        override="mutants_model.norms:cuda_only",
        priority=-1,
    )
    yield Kernel(
        operation="rms_norm",
        name="mutant_needs_nonsense",
        summary="a norm with a requirement that nobody can read",
        override="mutants_model.norms:twin",
        needs=Needs(packages=("liger kernel, the new one",)),
        priority=-1,
    )
    yield Kernel(
        operation="attention",
        name="mutant_ignores_windows",
        summary="attention: ignores_windows",
        override="mutants_model.attentions:ignores_windows",
        tolerance={"float32": 1e-5},
        priority=-1,
    )
    for name in ("of_parts_twin", "takes_a_part_for_the_whole"):
        yield Kernel(
            operation="rms_norm",
            name=f"mutant_triton_{name}",
            summary=f"a norm: {name}",
            override=f"mutants_model.norms:triton_{name}",
            needs=Needs(triton=True),
            tolerance={"float32": 1e-5},
            priority=-1,
        )
    for operation, names in STEPS.items():
        for name in names:
            yield Kernel(
                operation=operation,
                name=f"mutant_{name}",
                summary=f"a step: {name}",
                override=f"mutants_model.steps:{operation}_{name}",
                tolerance={"bfloat16": 5e-2} if operation == "newton_schulz" else {"float32": 1e-5},
                priority=-1,
            )
