"""Build a model for scoring on several ranks, each of which holds its shards only.

Sequence parallelism is off, so that sequences may have any length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torchtitan.config import ParallelismConfig, TrainingConfig
from torchtitan.distributed import ParallelDims
from torchtitan.distributed import utils as dist_utils
from torchtitan.models.llama3.parallelize import parallelize_llama

from atom.errors import UserError
from atom.plugin import Architecture
from atom.recipe.scoring_layout import ScoringLayout
from atom.titan import saved_model, translate
from atom.titan.checks import division, experts, tensor_parallel
from atom.titan.checks.candidate import Candidate
from atom.titan.checks.engine import refused, sharded
from atom.titan.saved_model import Trained
from atom.titan.trainer_config import set_sharding

_TIMEOUT = 10**7
"""Seconds that ranks wait for the first one, which may prepare a task; their launcher ends them."""


@dataclass(frozen=True)
class Ranks:
    """The ranks of a layout, of which this process is one.

    Attributes:
        dims: torchtitan's mesh.
    """

    dims: ParallelDims

    @property
    def first(self) -> bool:
        """Whether this rank is the first one."""
        return dist.get_rank() == 0

    @property
    def share(self) -> tuple[int, int]:
        """This rank's index among the ranks with different sequences, and their number."""
        if not self.dims.dp_enabled:
            return 0, 1
        mesh = self.dims.get_mesh("batch")
        return mesh.get_local_rank(), mesh.size()

    def tell(self, asked: tuple[Any, ...] | None) -> None:
        """Send a request of the first rank to all others; None ends them."""
        dist.broadcast_object_list([asked], src=0)

    def hear(self) -> tuple[Any, ...] | None:
        """Wait for the next request of the first rank."""
        said: list[Any] = [None]
        dist.broadcast_object_list(said, src=0)
        found: tuple[Any, ...] | None = said[0]
        return found

    def gathered(self, value: Any) -> list[Any]:
        """Return the values of all ranks."""
        values = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        return values

    def sum(self, value: float, device: str) -> float:
        """Return the sum of a value over the ranks with different sequences."""
        if not self.dims.dp_enabled:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=device)
        return float(dist_utils.dist_sum(total, self.dims.get_mesh("batch")))


def check(run: Trained, layout: ScoringLayout, *, kind: str, key: str, value: str) -> None:
    """Refuse a layout that does not divide a model, or has more ranks than there are GPUs.

    Args:
        run: the run.
        layout: the layout.
        kind: the device, ``cpu`` or ``cuda``.
        key: the option that names the layout, for errors.
        value: its value.

    Raises:
        UserError: with the number that the layout must divide.
    """
    if kind == "cuda" and layout.ranks > (gpus := torch.cuda.device_count()):
        raise UserError(
            f"needs {layout.ranks} GPUs, and this machine has {gpus}",
            valid="--device cpu, or fewer ranks",
            key=key,
            value=value,
        )
    parallelism = _parallelism(layout)
    training = translate.training(run.run.training, kind)
    parameters: Any = run.selection[Architecture].config
    candidate = Candidate(
        training=training,
        parallelism=parallelism,
        model_config=run.parts.model,
        architecture=parameters,
    )
    try:
        tensor_parallel.check(candidate)
        experts.check_division(candidate)
        shapes = division.shapes_of(saved_model.on_meta(run.parts.model))
        found = division.division(sharded(run.parts.model, training, parallelism), shapes)
        found.check(parallelism, parameters)
    except UserError as error:
        # The other keys are set here, and the user has no say in them.
        if error.key is None or not error.key.endswith("_degree"):
            raise UserError(error.problem, valid="other degrees", key=key, value=value) from None
        degree = error.key.removeprefix("parallelism.").removesuffix("_degree")
        problem = f"{degree} {error.value} {error.problem}"
        raise UserError(problem, valid=error.valid, key=key, value=value) from None


def prepare(run: Trained, layout: ScoringLayout, kind: str) -> Ranks:
    """Join the other ranks, and set the sharding of a run's model config."""
    comm = translate.config("comm", init_timeout_seconds=_TIMEOUT, trace_buf_size=0)
    dist_utils.init_distributed(comm)
    parallelism = _parallelism(layout)
    dims = ParallelDims.from_config(parallelism, layout.ranks)
    dims.build_mesh()
    dist_utils.set_spmd_backend(parallelism.spmd_backend)
    with refused():
        set_sharding(run.parts.model, translate.training(run.run.training, kind), parallelism)
    return Ranks(dims)


def parallelized(
    model: Any, run: Trained, ranks: Ranks, layout: ScoringLayout, *, kind: str, dtype: str
) -> Any:
    """Return a model on the meta device with this rank's shards as parameters; its ``forward``
    returns whole logits.

    Args:
        model: the whole model, on the meta device.
        run: its run.
        ranks: those of the layout.
        layout: the layout.
        kind: the device.
        dtype: precision of the weights in the forward pass.
    """
    parallelize: Callable[..., Any] = run.parts.parallelize_fn or parallelize_llama
    model = parallelize(
        model,
        parallel_dims=ranks.dims,
        training=_training(run, kind, dtype),
        parallelism=_parallelism(layout),
        compile_config=translate.config("compile"),
        ac_config=None,
        dump_folder="",
    )
    own, context = model.forward, dist_utils.get_spmd_context(parallel_dims=ranks.dims)

    def forward(*arguments: Any, **others: Any) -> torch.Tensor:
        with context():
            output: torch.Tensor = own(*arguments, **others)
        return _whole(output, ranks.dims)

    model.forward = forward
    return model


def _whole(logits_BLV: torch.Tensor, dims: ParallelDims) -> torch.Tensor:
    """Return logits whole, of which tensor-parallel ranks have parts of the vocabulary each."""
    if not dims.tp_enabled:
        return logits_BLV
    mesh = dims.get_mesh("tp")
    parts = [torch.empty_like(logits_BLV) for _ in range(mesh.size())]
    dist.all_gather(parts, logits_BLV.contiguous(), group=mesh.get_group())
    return torch.cat(parts, dim=-1)


def _training(run: Trained, kind: str, dtype: str) -> TrainingConfig:
    return translate.changed(
        translate.training(run.run.training, kind),
        "training",
        mixed_precision_param=dtype,
        enable_cpu_offload=False,
    )


def _parallelism(layout: ScoringLayout) -> ParallelismConfig:
    found: ParallelismConfig = translate.config(
        "parallelism", **layout.degrees, enable_sequence_parallel=False
    )
    return found
