"""The suite of a parallelism strategy: it supports any fitting number of ranks, and trains like
one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from atom.errors import UserError
from atom.plugin import ArchitectureContext, ParallelismContext, Strategy
from atom.recipe.run import DEGREES, Run, parse
from atom.registry.host import Component, Host
from atom.testing import partners, ranks, runs
from atom.testing.applicable import where
from atom.testing.opened import opened
from atom.testing.options import Options
from atom.testing.suites.component import ComponentSuite

WORLD_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 64, 100, 1024)

MOST_WORLD_SIZE = 10240
"""Simulating that many ranks takes a second for each strategy."""


class ParallelismSuite(Options, ComponentSuite):
    """The contract of a parallelism strategy with the degrees in the conformance line.

    Options, given by ``conformance(…).having(…)``:

    Attributes:
        architectures: sections of a run, each with ``name`` and parameters, to test the strategy
            on; by default two small models of torchtitan's families.
    """

    kind = "parallelism"
    options = ("architectures",)

    architectures: ClassVar[tuple[dict[str, Any], ...]] = tuple(
        {"name": f"{partners.PACKAGE}:{name}"} for name in partners.ARCHITECTURES
    )

    @classmethod
    def has_parameters(cls, component: Component) -> bool:  # noqa: ARG003
        """Return False: torchtitan's ``ParallelismConfig`` is the schema of the parameters."""
        return False

    @pytest.fixture
    def config(self) -> BaseModel | None:
        return None

    def check_section(self, section: Mapping[str, Any], component: Component, host: Host) -> None:  # noqa: ARG002
        from atom.recipe.training_sections import Parallelism
        from atom.titan import translate

        translate.parallelism(Parallelism.model_validate(section))

    @property
    def section(self) -> dict[str, Any]:
        """The section of a run."""
        return {"name": self.name} | self.parameters

    # ------------------------------------------------------------------------ the mesh

    def test_lays_out_every_number_of_ranks_that_fits(self, component: Component) -> None:
        """If the degrees divide the number of ranks, the mesh has exactly these degrees and a
        position for every rank; torch's fake process group simulates the ranks.

        A strategy can refuse some numbers in a sentence, but not all.
        """
        accepted, refusals = self._check_meshes(component, self._world_sizes())
        assert accepted, f"every number of ranks is refused: {refusals[:3]}"

    @where(lambda suite, _: suite()._fits(MOST_WORLD_SIZE))
    @pytest.mark.slow
    def test_lays_out_ten_thousand_ranks(self, component: Component) -> None:
        """10,240 simulated ranks have a mesh with these degrees too, if the strategy accepts
        them."""
        self._check_meshes(component, [MOST_WORLD_SIZE])

    def _check_meshes(self, component: Component, sizes: list[int]) -> tuple[int, list[str]]:
        """Check the mesh of each of ``sizes`` that fits; return the number of those that the
        strategy accepts, and its refusals."""
        refusals, accepted = [], 0
        for size in filter(self._fits, sizes):
            try:
                degrees, strategy = self._lay_out(component, size)
            except UserError as error:
                refusals.append(error.sentence())
                continue
            accepted += 1
            claimed = {name: getattr(strategy.parallelism, name) for name in DEGREES}
            assert claimed == degrees, f"{size} ranks: other degrees than the run's"
            for rank in {0, size - 1} if size < 1000 else {size - 1}:
                shape = _mesh(strategy.parallelism, size, rank)
                assert math.prod(shape.values()) == size, f"{size} ranks: a mesh of {shape}"
        return accepted, refusals

    def test_refuses_what_does_not_fit(self, component: Component) -> None:
        """A number of ranks that the degrees do not divide is refused in one sentence."""
        for size in self._world_sizes():
            if self._fits(size):
                continue
            with pytest.raises(UserError) as refused:
                self._lay_out(component, size)
            sentence = refused.value.sentence()
            assert "\n" not in sentence
            assert str(size) in sentence, f"the sentence does not say that there are {size} ranks"

    # ------------------------------------------------------------------------ training

    @where(lambda suite, _, number: number < len(suite.architectures))
    @pytest.mark.slow
    @pytest.mark.parametrize("number", [0, 1], ids=["first", "second"])
    def test_trains_like_one_rank(self, number: int) -> None:
        """Losses and gradient norms on real ranks equal those of one rank, on two architectures."""
        architecture = self.architectures[number]
        rows = runs.train(self._run(architecture))
        runs.assert_same(rows, runs.on_one_rank(architecture))

    @pytest.mark.slow
    def test_checkpoints_load_on_one_rank(self) -> None:
        """A checkpoint saved under the strategy resumes under ``single``."""
        architecture, steps = self.architectures[0], runs.RESUMED_STEPS
        rows = runs.train(runs.sections(architecture, steps=steps), after=self._run(architecture))
        runs.assert_same(rows, runs.on_one_rank(architecture, steps=steps))

    def _run(self, architecture: dict[str, Any]) -> dict[str, Any]:
        """Return the run under the strategy, on two ranks if the degrees are open."""
        known, open_ended = self._known()
        wanted = known * (2 if open_ended else 1)
        if wanted > ranks.MOST_RANKS:
            pytest.skip(f"the degrees need {wanted} ranks; at most {ranks.MOST_RANKS} are started")
        return runs.sections(
            architecture, self.section, launch={"ranks": wanted, "max_restarts": 0}
        )

    # ------------------------------------------------------------------------ laying out

    def _known(self) -> tuple[int, bool]:
        """Return the product of the set degrees, and whether one degree is open."""
        degrees = [self.parameters.get(name, _default(name)) for name in DEGREES]
        return math.prod(degree for degree in degrees if degree != -1), -1 in degrees

    def _world_sizes(self) -> list[int]:
        return sorted({*WORLD_SIZES, self._known()[0]})

    def _fits(self, size: int) -> bool:
        known, open_ended = self._known()
        return size % known == 0 if open_ended else size == known

    def _lay_out(self, component: Component, size: int) -> tuple[dict[str, int], Strategy]:
        """Return the degrees of a run on ``size`` ranks, and the strategy's result.

        Raises:
            UserError: the run would be refused.
        """
        from atom.titan.checks import layout

        run: Run = parse(runs.sections(self.architectures[0], self.section))
        config, found = layout.resolve(run, available=1, joined=size)
        assert found == size
        degrees = {name: getattr(config, name) for name in DEGREES}
        from atom.testing.partners.model import llama

        parts = llama(
            None, ArchitectureContext(vocab_size=partners.VOCAB_SIZE, seq_len=runs.SEQ_LEN)
        )
        context = ParallelismContext(world_size=size, parts=parts)
        strategy = opened(component, None).call("build", context, config=config)
        assert isinstance(strategy, Strategy), "build returns no atom.plugin.Strategy"
        return degrees, strategy


def _default(name: str) -> int:
    from atom.titan import translate

    degree: int = getattr(translate.config("parallelism"), name)
    return degree


def _mesh(parallelism: Any, world_size: int, rank: int) -> dict[str, int]:
    """Return the mesh that torchtitan builds on ``rank``."""
    from torchtitan.distributed import ParallelDims

    dims = ParallelDims.from_config(parallelism, world_size)
    key = repr(dims), rank
    if key not in _meshes:
        _meshes[key] = _built(dims, world_size, rank)
    return _meshes[key]


_meshes: dict[tuple[str, int], dict[str, int]] = {}
"""Meshes by degrees and rank, for strategies that choose the same."""


def _built(dims: Any, world_size: int, rank: int) -> dict[str, int]:
    with _fake_ranks(world_size, rank):
        mesh = dims.build_mesh()
        assert mesh.size() == world_size
        assert mesh.get_local_rank() == rank
        axes = ("pp", "batch", "cp", "tp")
        return {
            name: found.size() if (found := dims.get_optional_mesh(name)) is not None else 1
            for name in axes
        }


@contextmanager
def _fake_ranks(world_size: int, rank: int) -> Iterator[None]:
    """Make this process one rank of a simulated job."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


CONFORMANCE = ParallelismSuite
