"""The suite of a kernel: as accurate as its operation's reference, wherever it declares to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any, ClassVar

import pytest
from packaging.requirements import Requirement

from atom.errors import UserError, nearest
from atom.plugin import Kernel
from atom.registry.host import Component, Host, resolve
from atom.testing import (
    capping,
    compiler,
    interpreter,
    kernel_fit,
    kernel_where,
    models,
    partners,
    runs,
)
from atom.testing.applicable import where
from atom.testing.options import Options
from atom.testing.suites.component import ComponentSuite
from atom.titan.contracts import cases, comparing
from atom.titan.contracts import comparison as kernels
from atom.titan.contracts.cases import Case
from atom.titan.contracts.comparison import REFERENCE, Implementation
from atom.titan.contracts.contract import Contract
from atom.titan.contracts.functions import FUNCTIONS, functions_of
from atom.titan.contracts.sizes import ODD, REGULAR, Sizes

SHARDED_TOLERANCE = 1e-3
"""Maximum |difference in loss| in float32 between a sharded run with the kernel and one rank with
the reference; two kernels may differ slightly more than two layouts."""


class KernelSuite(Options, ComponentSuite):
    """The contract of a kernel.

    The kernel named ``reference`` of an operation is compared with the operation's formula; any
    other kernel with that reference.

    Options, given by ``conformance(…).having(…)``:

    Attributes:
        operation: the contract of an operation that the kit does not know.
        benchmark: sizes to time the kernel at; None for small ones on a CPU, and those of an
            8-billion-parameter model on a GPU.
    """

    kind = "kernel"
    options = ("operation", "benchmark")

    operation: ClassVar[Contract | None] = None
    benchmark: ClassVar[Sizes | None] = None

    def check_section(
        self,
        section: Mapping[str, Any],
        component: Component,  # noqa: ARG002
        host: Host,
    ) -> None:
        """Refuse a preference for an unknown operation or kernel."""
        declared = [c.declaration for c in host.components if isinstance(c.declaration, Kernel)]
        for operation, preference in section.items():
            offered = {
                kernel.name for kernel in declared if operation in ("default", kernel.operation)
            }
            for name in [preference] if isinstance(preference, str) else preference:
                if name not in {*offered, "auto"}:
                    key = f"kernels.{operation}"
                    raise UserError("there is no such kernel", key=key, value=name)

    @pytest.fixture(autouse=True)
    def one_thread(self) -> Iterator[None]:
        """With tensors this small, more threads only add contention."""
        with models.one_thread():
            yield

    @pytest.fixture
    def kernel(self, component: Component) -> Kernel:
        declaration = component.declaration
        assert isinstance(declaration, Kernel)
        return declaration

    @pytest.fixture
    def contract(self, component: Component, kernel: Kernel) -> Contract:
        pytest.importorskip("torchtitan", reason="its module is torchtitan's")
        contract = kernel_where.contract(self, component)
        if contract is None:
            pytest.skip(
                f"the kit has no contract of {kernel.operation}; give one with "
                "conformance(…).having(operation=atom.titan.contracts.contract.Contract(…))"
            )
        return contract

    @pytest.fixture
    def device(self) -> str:
        """The device of this process: a GPU if there is one."""
        from atom.titan.boot import settled

        return settled()

    @pytest.fixture
    def fitting(self, component: Component, device: str) -> str:
        """The device, if the kernel declares to run on it."""
        if reason := kernel_fit.refusal(component, device):
            pytest.skip(reason)
        return device

    @pytest.fixture
    def subject(
        self, component: Component, contract: Contract, fitting: str, host: Host
    ) -> Callable[[Iterator[Case]], list[str]]:
        """A function of cases that returns how the kernel disagrees with its reference."""
        reference = kernels.reference_of(component, contract, host)
        tested = Implementation(contract, component)
        kernel = component.declaration
        assert isinstance(kernel, Kernel)

        def disagreements(cases: Iterator[Case]) -> list[str]:
            taken = [case for case in cases if kernel_fit.takes(kernel, case)]
            if not taken:
                pytest.skip(f"{component.name} says that it takes none of these sizes")
            return kernels.disagreements(
                tested, reference, iter(taken), dict(kernel.tolerance), fitting
            )

        return disagreements

    # ------------------------------------------------------------------------ what it declares

    def test_references_resolve(self, component: Component) -> None:
        """Every reference of the declaration exists. If an optional package is missing, the module
        that imports it exists."""
        try:
            super().test_references_resolve(component)
        except pytest.fail.Exception:
            kernel = component.declaration
            assert isinstance(kernel, Kernel)
            reason = kernel_fit.lacking(kernel)
            if reason and kernel.override and find_spec(kernel.override.partition(":")[0]):
                pytest.skip(reason)
            raise

    def test_tolerance_names_dtypes(self, kernel: Kernel) -> None:
        import torch

        assert kernel.tolerance, "a kernel that takes no dtype"
        for name, tolerance in kernel.tolerance.items():
            assert isinstance(getattr(torch, name, None), torch.dtype), f"no dtype {name}"
            assert 0 < tolerance < 1, f"tolerance {tolerance} of {name} is no relative error"

    def test_needs_are_a_reason_and_not_a_crash(self, component: Component, kernel: Kernel) -> None:
        """On every kind of device the kernel is chosen, or refused in one sentence."""
        from atom.titan.compat.device import DeviceDescription

        for package in kernel.needs.packages:
            Requirement(package)  # raises InvalidRequirement
        capabilities = [(7, 0), (8, 0), (9, 0), (10, 0), None]
        devices = [DeviceDescription("cpu")]
        devices += [DeviceDescription("cuda", capability) for capability in capabilities]
        for described in devices:
            for context_parallel in (False, True):
                reason = kernel_fit.misfit(component, described, context_parallel=context_parallel)
                assert reason is None or "\n" not in reason

    def test_needs_are_honest(
        self, component: Component, contract: Contract, kernel: Kernel, fitting: str
    ) -> None:
        """The kernel runs wherever its declared needs are met; it has no undeclared needs."""
        case = Case(Sizes(), next(iter(kernel.tolerance)))
        try:
            if kernel.override is not None:
                resolve(kernel.override, component)
            tested = Implementation(contract, component)
            kernels.worst(tested, tested, case, fitting)
        except Exception as error:
            words = " ".join(f"{type(error).__name__}: {error}".split())
            pytest.fail(
                f"its declared needs are met by this {fitting}, and it cannot run: {words[:300]}",
                pytrace=False,
            )

    @where(kernel_where.has_override)
    @where(kernel_where.has_contract)
    def test_takes_the_place_of_the_operation(
        self, component: Component, contract: Contract, kernel: Kernel, device: str
    ) -> None:
        """The override replaces the operation's node, and keeps the settings of
        torchtitan on it.
        """
        sizes = kernel_fit.divisible(kernel, Sizes())
        before = Implementation(contract, None).node(sizes)
        try:
            resolve(kernel.override or "", component)
            after = Implementation(contract, component).node(sizes)
        except (UserError, ImportError) as error:
            if reason := kernel_fit.lacking(kernel) or kernel_fit.refusal(component, device):
                pytest.skip(reason)
            pytest.fail(str(error), pytrace=False)
        assert after != before, f"{kernel.override} leaves the operation's node as it is"
        if (sharding := getattr(before, "sharding_config", None)) is not None:
            assert after.sharding_config is not None, "its sharding is lost: tensor parallelism"
            shared = (sharding.in_src_shardings or {}).keys() | (sharding.in_dst_shardings or {})
            strange = shared & set(kernel_fit.arguments(before)) - set(kernel_fit.arguments(after))
            assert not (strange and kernel.needs.tensor_parallel), (
                f"its forward has no {', '.join(strange)}, which shardings name"
            )
        if getattr(before, "param_init", None) is not None:
            assert after.param_init is not None, "its initialisation is lost"

    # ------------------------------------------------------------------------ what it computes

    @where(kernel_where.compares_here)
    def test_agrees_with_the_reference(self, kernel: Kernel, subject: Callable) -> None:
        """Forward and backward, in every dtype."""
        assert not subject(cases.regular(list(kernel.tolerance)))

    @where(kernel_where.compares_here)
    def test_odd_sizes_agree(self, kernel: Kernel, subject: Callable) -> None:
        """One token; lengths, heads and widths that are not multiples of a block size."""
        assert not subject(cases.odd(list(kernel.tolerance)))

    @where(kernel_where.compares_here)
    def test_strided_inputs_agree(self, kernel: Kernel, subject: Callable) -> None:
        """Inputs and output gradient with the strides of transposed and sliced tensors."""
        assert not subject(cases.strided(list(kernel.tolerance)))

    @where(kernel_where.compares_here)
    def test_strided_gradients_agree(self, kernel: Kernel, subject: Callable) -> None:
        """The output gradient has other strides than the inputs: transposed, sliced, or one number
        expanded to the whole shape."""
        assert not subject(cases.strided_gradients(list(kernel.tolerance)))

    @pytest.mark.gpu
    def test_real_sizes_agree(self, kernel: Kernel, subject: Callable, fitting: str) -> None:
        """On a GPU, at the sizes of an 8-billion-parameter model."""
        if fitting != "cuda":
            pytest.skip("takes a GPU")
        sizes = self.benchmark or kernel_fit.BENCHMARK[fitting]
        assert not subject(Case(sizes, dtype) for dtype in kernel.tolerance if dtype != "float32")

    @where(kernel_where.compares_here)
    def test_no_rows_agree(
        self, component: Component, contract: Contract, kernel: Kernel, fitting: str, host: Host
    ) -> None:
        """Empty input gives empty output, if the reference accepts empty input."""
        tested = Implementation(contract, component)
        reference = kernels.reference_of(component, contract, host) or tested
        case = Case(Sizes(batch=0), next(iter(kernel.tolerance)))
        if not kernels.computes(reference, case, fitting):
            pytest.skip("the reference takes no less than one sequence")
        assert not kernels.disagreements(
            tested, reference, iter([case]), dict(kernel.tolerance), fitting
        )

    @where(kernel_where.compares_here)
    @where(lambda _, component: component.declaration.operation == "linear_cross_entropy")
    def test_no_output_layer_loses_what_it_does(
        self, component: Component, contract: Contract, kernel: Kernel, fitting: str
    ) -> None:
        """A loss that computes the output layer itself either supports an output layer that does
        more than a product, such as a soft-cap on the logits, or refuses it."""
        tested = Implementation(contract, component)
        assert not capping.difference(tested, next(iter(kernel.tolerance)), fitting)

    @where(kernel_where.runs_here)
    @where(lambda _, component: bool(functions_of(component.declaration)))
    def test_functions_agree(self, component: Component, kernel: Kernel, fitting: str) -> None:
        """The declared functions fulfil their contracts, in every dtype and without torchtitan. So
        does an override that replaces a function of torchtitan."""
        functions = functions_of(kernel)
        sizes = (REGULAR[0], ODD[1])
        cases = [
            (each, dtype)
            for each in sizes
            for dtype in kernel.tolerance
            if kernel_fit.takes(kernel, Case(each, dtype))
        ]
        for name, reference in functions.items():
            assert name in FUNCTIONS, f"there is no contract {name}; {nearest(name, FUNCTIONS)}"
            function = resolve(reference, component)
            assert not comparing.disagreements(
                function, FUNCTIONS[name], cases, dict(kernel.tolerance), fitting
            )

    @where(kernel_where.compares_here)
    @where(kernel_where.has_gradients)
    def test_gradients_of_the_reference(
        self, component: Component, contract: Contract, fitting: str, host: Host
    ) -> None:
        """Compared with finite differences in float64."""
        kernels.gradcheck(
            kernels.reference_of(component, contract, host) or Implementation(contract, component),
            fitting,
        )

    @where(kernel_where.is_triton)
    @pytest.mark.slow
    def test_agrees_in_tritons_interpreter(self, component: Component) -> None:
        """A Triton kernel, on the CPU."""
        pytest.importorskip("torchtitan", reason="its module is torchtitan's")
        if self.operation is not None:
            pytest.skip("the interpreter's process knows the kit's own contracts only")
        assert not kernel_fit.of_triton(component, interpreter.disagreements)

    @where(kernel_where.is_triton)
    @pytest.mark.slow
    def test_compiles_for_gpus(self, component: Component) -> None:
        """A Triton kernel compiles for Hopper and for the oldest GPU that it declares, in every
        dtype; no GPU is needed."""
        assert not kernel_fit.of_triton(component, compiler.failures)

    # ------------------------------------------------------------------------ where it runs

    @where(kernel_where.runs_on_ranks)
    @where(kernel_where.has_override)
    @pytest.mark.slow
    @pytest.mark.parametrize("layout", ["tp", "cp"])
    def test_computes_sharded(self, layout: str, kernel: Kernel) -> None:
        """Two ranks, each with its shard of the heads (or of the sequence), train like one rank
        with the reference."""

        pytest.importorskip("torchtitan")
        architecture = {"name": f"{partners.PACKAGE}:{partners.ARCHITECTURES[0]}"}

        # Only Muon uses it.
        optimizer = {"name": "Muon" if kernel.operation == "newton_schulz" else "AdamW"}

        def chosen(name: str) -> dict[str, Any]:
            return {
                "kernels": {"default": "auto", kernel.operation: name},
                "optimizer": optimizer,
            }

        rows = runs.train(runs.sections(architecture, runs.LAYOUTS[layout], **chosen(kernel.name)))
        reference = runs.train(runs.sections(architecture, **chosen(REFERENCE)))
        runs.assert_same(rows, reference, tolerance=SHARDED_TOLERANCE)

    @where(kernel_where.is_triton)
    @where(lambda _, component, **__: component.declaration.needs.tensor_parallel)
    @pytest.mark.slow
    @pytest.mark.parametrize("backend", interpreter.BACKENDS)
    def test_computes_sharded_in_tritons_interpreter(
        self,
        backend: str,
        component: Component,
        kernel: Kernel,
        contract: Contract,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A Triton kernel trains on two ranks under tensor parallelism like one rank with the
        reference, with plain tensors and, under another backend, with DTensors."""
        from atom.titan.compat import device

        monkeypatch.setenv("TRITON_INTERPRET", "1")
        if reason := kernel_fit.misfit(component, device.describe("cpu"), context_parallel=False):
            pytest.skip(f"{reason}; the ranks of this test are on the CPU")
        architecture = {"name": f"{partners.PACKAGE}:{contract.family}"}
        layout = runs.LAYOUTS["tp"] | {"spmd_backend": backend}
        few = {"steps": 2, "seq_len": runs.SEQ_LEN // 4, "global_batch_size": 2}
        short: dict[str, Any] = {  # the interpreter is slow
            "training": runs.sections(architecture)["training"] | few,
            "validation": {},
            "checkpoint": {"enable": False},
        }
        chosen = {"default": "auto", kernel.operation: kernel.name}
        rows = runs.train(
            runs.sections(architecture, layout, kernels=chosen, **short), interpreted=True
        )
        reference = runs.train(runs.sections(architecture, **short))
        runs.assert_same(rows, reference, tolerance=SHARDED_TOLERANCE)

    @where(kernel_where.compares_here)
    def test_benchmark(
        self,
        component: Component,
        contract: Contract,
        kernel: Kernel,
        fitting: str,
        host: Host,
        record_property: Callable[[str, object], None],
    ) -> None:
        """Time forward and backward together, and the reference; results go to the JUnit report."""
        sizes = self.benchmark or kernel_fit.BENCHMARK[fitting]
        for dtype in kernel.tolerance:
            case = Case(sizes, dtype)
            record_property("case", f"{case}, {fitting}")
            taken = kernels.timed(Implementation(contract, component), case, fitting)
            record_property(f"{component.name} {dtype} ms", round(taken, 3))
            assert taken > 0
            reference = kernels.reference_of(component, contract, host)
            if reference is not None:
                expected = kernels.timed(reference, case, fitting)
                record_property(f"{REFERENCE} {dtype} ms", round(expected, 3))


CONFORMANCE = KernelSuite
