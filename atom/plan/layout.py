"""Describe a run's layout for plans: degrees, batch, precision, activation checkpointing."""

from __future__ import annotations

from dataclasses import dataclass, field

from atom.plan.execution import ZERO1, Execution
from atom.plan.model import NONE, Count
from atom.plan.pipeline import Schedule

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The layout of a model over ranks.

    Attributes:
        dp_replicate … ep: degrees under torchtitan's names. FSDP shards over dp_shard x cp; expert
            parallelism takes its ranks from dp_shard, cp and tp.
        local_batch_size: sequences of one forward and backward pass of a data-parallel rank.
        accumulation: local batches per step.
        sequence_parallel: whether TP shards the residual stream along the sequence.
        reshard: whether FSDP frees gathered parameters after forward.
        stages: parts of each pipeline stage, in order of the stages; without a pipeline, one stage.
        stages_of: stages of each pipeline rank.
        in_flight: for each pipeline rank, by its stage, micro-batches with live activations at the
            rank's peak.
        checkpointing: mode of activation checkpointing.
        parameter_dtype: dtype of the parameters that the optimizer updates, and of their gradients.
        compute_dtype: dtype of parameters gathered by FSDP, and of activations.
        reduce_dtype: dtype of gradient reduction.
        state_bytes: bytes of optimizer state per parameter element.
        matrix_state_bytes: the same for the layers' matrices, if it differs.
        loss_chunks: chunks of the sequence that logits are computed in.
        z_loss: whether the loss has a penalty, which needs the logits again.
        offload: whether parameters, gradients and optimizer states are in the memory of the CPU.
        averages: number of callbacks that average the weights, in float32.
        execution: kernels, precision of products, sharding, overlap.
        order: actions of the pipeline's ranks; None without a pipeline.
    """

    dp_replicate: int = 1
    dp_shard: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    seq_len: int
    local_batch_size: int = 1
    microbatch_size: int = 1
    accumulation: int = 1
    sequence_parallel: bool = True
    reshard: bool = True
    schedule: str = "1F1B"
    stages: tuple[tuple[str, ...], ...]
    stages_of: tuple[tuple[int, ...], ...] = ((0,),)
    in_flight: tuple[dict[int, int], ...] = ({0: 1},)
    bubble: float = 0.0
    checkpointing: str = NONE
    parameter_dtype: str = "float32"
    compute_dtype: str = "bfloat16"
    reduce_dtype: str = "float32"
    state_bytes: float = 8
    matrix_state_bytes: float | None = None
    loss_chunks: int = 1
    z_loss: bool = False
    offload: bool = False
    averages: int = 0
    execution: Execution = field(default_factory=Execution)
    order: Schedule | None = None

    def optimizer_bytes(self, every: Count, matrices: Count) -> int:
        """Return the bytes of optimizer state for ``every``, including ``matrices``."""
        of_matrices = 0.0
        if self.matrix_state_bytes is not None:
            of_matrices = matrices.numel * self.matrix_state_bytes
            every = Count(every.numel - matrices.numel, every.parameters - matrices.parameters)
        # AdamW counts its steps in a float32 for each parameter.
        steps = BYTES["float32"] * every.parameters
        return round(every.numel * self.state_bytes + steps + of_matrices)

    @property
    def ranks(self) -> int:
        return self.dp_replicate * self.fsdp * self.tp * self.pp

    @property
    def fsdp(self) -> int:
        """Return the ranks that shard a dense parameter."""
        return self.dp_shard * self.cp

    @property
    def expert_fsdp(self) -> int:
        """Return the ranks that shard an expert."""
        return max(self.fsdp * self.tp // self.ep, 1)

    @property
    def expert_split(self) -> int:
        """Return the ranks that split the experts' weights, FSDP aside."""
        return self.ep * self.expert_tp

    @property
    def expert_stride(self) -> int:
        """Return the distance of the ranks that exchange tokens for experts."""
        return self.expert_tp

    @property
    def expert_tp(self) -> int:
        """Return the ranks that split one expert.

        torchtitan's expert parallelism takes the ranks of tensor parallelism, Megatron's does not.
        """
        return self.tp if self.ep == 1 or self.execution.sharding == ZERO1 else 1

    @property
    def dp(self) -> int:
        return self.dp_replicate * self.dp_shard

    @property
    def sequences(self) -> int:
        """Return the sequences of one forward pass: those of a micro-batch under PP."""
        return self.microbatch_size if self.pp > 1 else self.local_batch_size

    @property
    def tokens(self) -> float:
        """Return the tokens of one forward pass on a rank."""
        return self.sequences * self.seq_len / self.cp

    @property
    def microbatches(self) -> int:
        return self.local_batch_size // self.microbatch_size if self.pp > 1 else 1

    @property
    def passes(self) -> int:
        """Return the forward passes of a step."""
        return self.microbatches * self.accumulation
