"""Train step by step: torchtitan's trainer, with ATOM's step and its callbacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torchtitan.components.dataloader import DataloaderExhaustedError
from torchtitan.components.loss import IGNORE_INDEX
from torchtitan.distributed import ParallelDims
from torchtitan.distributed import utils as dist_utils
from torchtitan.observability import structured_logger as sl
from torchtitan.trainer import Trainer

from atom.errors import RunError
from atom.recipe.sections import Faults
from atom.run_dir import events, progress
from atom.run_dir.profile import DATA
from atom.titan import kernels
from atom.titan.checkpoint.checkpointer import VerifiedCheckpointManager
from atom.titan.checkpoint.new_rows import Added
from atom.titan.compat.register_training import SLEEP
from atom.titan.train import example_loss, stream
from atom.titan.train.callback import Callback, Decision
from atom.titan.train.callbacks import CALLBACKS
from atom.titan.train.data import DocumentLoader
from atom.titan.train.metrics import StepMetricsProcessor
from atom.titan.train.plugin_callbacks import Opened, PluginCallback
from atom.titan.train.references import ReferenceConfig
from atom.titan.train.stop import StopRequest
from atom.titan.train.teaching import TeachingConfig
from atom.titan.train.validation import ValidationConfig
from atom.titan.train.z_loss import of as penalties

Microbatch = tuple[dict[str, Any], torch.Tensor]
"""Inputs and labels of a micro-batch, as a loader yields them."""


class AtomTrainer(Trainer):
    """A trainer that calls its callbacks at every point of a step, and that can be stopped.

    The step is ATOM's own, since torchtitan's has no hook between the gradients and the optimizer.
    It performs the same computations in the same order: the losses have the same bits.
    """

    stream: torch.Tensor | None = None
    """The digest of the tokens of all steps so far; None if it is not computed."""

    _tokens: torch.Tensor | None = None
    """The digest of the tokens of the current step's global batch."""

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        faults: Faults = field(default_factory=Faults)
        callbacks: tuple[Opened, ...] = ()
        validation: ValidationConfig = field(default_factory=ValidationConfig)
        references: ReferenceConfig | None = None
        teaching: TeachingConfig | None = None
        trace_samples: bool = False
        tensor_digest: bool = True
        token_digest: bool = True
        stop_after: int | None = None
        branch: str | None = None
        data_begins: int | None = None
        added: Added | None = None
        functions: dict[str, str] = field(default_factory=dict)
        overrides: dict[str, str] = field(default_factory=dict)
        replaced: dict[str, tuple[int, int]] = field(default_factory=dict)

        def to_dict(self) -> dict[str, Any]:
            """Return torchtitan's dictionary, with the faults as plain data."""
            return Trainer.Config.to_dict(self) | {"faults": self.faults.model_dump(mode="json")}

    def __init__(self, config: Config) -> None:
        self.callbacks: list[Callback] = [
            *(callback(self) for callback in CALLBACKS),
            *(PluginCallback(self, opened) for opened in config.callbacks),
        ]
        self.run = Path(config.dump_folder)
        self.discarded = 0
        """Number of steps discarded since the run began."""
        self.rates: dict[str, Any] = {}
        """The learning rates of the current step."""
        self.ntokens_seen: int
        self.stopped = False
        """True after training has stopped early, on request."""
        self._begun = False
        super().__init__(config)
        if isinstance(self.metrics_processor, StepMetricsProcessor):
            self.metrics_processor.last_step = config.training.steps
        for callback in self.callbacks:
            callback.on_built()
            if callback.state_name is not None and self.checkpointer.enable:
                self.checkpointer.states[callback.state_name] = callback.state
        if isinstance(self.checkpointer, VerifiedCheckpointManager):
            self.checkpointer.branch = config.branch
            self.checkpointer.data_begins = config.data_begins
            self.checkpointer.tensor_digest = config.tensor_digest
            self.checkpointer.added = config.added
        self.stop_request = StopRequest()

    def init_distributed(self) -> ParallelDims:
        self._reached("imports")
        dims: ParallelDims = super().init_distributed()
        self._reached("rendezvous")
        dims.build_mesh()  # torchtitan does this on first use
        self._reached("mesh")
        return dims

    # ------------------------------------------------------------------------ the loop

    def train(self) -> None:
        # A barrier replaces torchtitan's sleep: it waits for the other ranks, and no longer.
        with SLEEP.replaced(), kernels.called(self.config.functions):
            for callback in self.callbacks:
                callback.before_load()
            super().train()
        dist.barrier()

    def should_continue_training(self) -> bool:
        for callback in self.callbacks:
            callback.between_steps()
        if not self._begun:
            self._begin()
        if not super().should_continue_training():
            return False
        signal = self.stop_request.agreed()
        if self.config.stop_after is not None and self.step >= self.config.stop_after:
            signal = f"training.stop_after={self.config.stop_after}"
        if signal is None:
            return True
        if any(callback.before_stop() for callback in self.callbacks):
            # No checkpoint covers the skipped data yet: the checkpoint of the next step will.
            return True
        self._stop(signal)
        return False

    def batch_generator(self, data_iterable: Iterable[Any]) -> Iterator[Any]:
        batches = super().batch_generator(data_iterable)
        while True:
            with torch.profiler.record_function(DATA):
                try:
                    batch = next(batches)
                except DataloaderExhaustedError:
                    # torchtitan would end here as if this had been the last step.
                    raise RunError(
                        f"the data ends in step {self.step} of {self.config.training.steps}; "
                        "valid: fewer training.steps, or a dataset that repeats"
                    ) from None
            self._reached("first_batch")
            yield batch

    # ------------------------------------------------------------------------ the step

    def train_step(self, data_iterator: Iterator[Microbatch]) -> None:
        """Do a step, or follow the decision of the callbacks."""
        try:
            self._train_step(data_iterator)
        except SystemExit as end:
            # torch would take an exit code of 0, in any code, for the end of training.
            raise RuntimeError(f"code of a plugin called sys.exit({end.code!r})") from end

    def _train_step(self, data_iterator: Iterator[Microbatch]) -> None:
        while True:
            for callback in self.callbacks:
                callback.before_step()
            self.optimizers.zero_grad(set_to_none=self.config.training.disable_cuda_graphs)
            self.rates = self.lr_schedulers.get_metrics()
            if isinstance(self.dataloader, DocumentLoader):
                self.gradient_accumulation_steps = (
                    self.dataloader.passes(self.step) // self.num_pipeline_parallel_microbatches
                )
            losses = self._compute_gradients(data_iterator)
            for callback in self.callbacks:
                callback.after_backward()
            with sl.log_trace_span("optim"):
                grad_norm = self._clip_gradients()
                decision = self._decide(grad_norm)
                if decision is Decision.TAKE:
                    self.checkpointer.maybe_wait_for_staging()
                    self.optimizers.step()
                    for callback in self.callbacks:
                        callback.after_optimizer()
            if decision is not Decision.AGAIN:
                break
            self.step += 1
        self.lr_schedulers.step()
        if decision is Decision.SKIP:
            for callback in self.callbacks:
                callback.on_skipped()
        elif losses.loss is not None:
            self._log(losses, grad_norm)
        for callback in self.callbacks:
            callback.after_step()

    def forward_backward_step(self, **inputs: Any) -> torch.Tensor:
        for callback in self.callbacks:
            callback.before_forward(inputs)
        loss = self.computed(**inputs)
        for callback in self.callbacks:
            callback.after_forward(loss)
        return loss

    def computed(self, **inputs: Any) -> torch.Tensor:
        """Return the loss of one forward and backward pass, without calling callbacks."""
        loss: torch.Tensor = super().forward_backward_step(**inputs)
        return loss

    def _compute_gradients(self, data_iterator: Iterator[Microbatch]) -> _Losses:
        """Compute the gradients of all of this rank's sequences in the step."""
        groups, valid_here = self._read_batch(data_iterator)
        if isinstance(self.dataloader, DocumentLoader) and (
            sequences := self.dataloader.sequences()
        ):
            self.expect(sequences)
            if self.example_loss is not None:
                valid_here = torch.tensor(len(sequences) // self.example_loss.sequences)
        dims = self.parallel_dims
        sums = torch.stack([valid_here, self._tokens_here()]).to(self.device)
        if dims.dp_enabled:
            # They stay on the device, so dividing a loss by them does not wait.
            sums = dist_utils.dist_sum_tensor(sums, dims.get_mesh("batch"))
        valid, self._tokens = sums.unbind()
        if self.stream is not None:
            self.stream = stream.extended(self.stream.to(self.device), self._tokens)
        should_log = self.metrics_processor.should_log(self.step)
        total: torch.Tensor | None = None
        z_loss: torch.Tensor | None = None
        further: torch.Tensor | None = None
        for group in groups:
            inputs = [self._on_device(inputs) for inputs, _ in group]
            labels = [labels.to(self.device) for _, labels in group]
            loss = self.forward_backward_step(
                input_dict=inputs if dims.pp_enabled else inputs[0],
                labels=labels if dims.pp_enabled else labels[0],
                global_valid_tokens=valid,
            )
            part = penalties(self.loss_fn, len(group))
            z_loss = part if z_loss is None or part is None else z_loss + part
            part = getattr(self.loss_fn, "further", None)
            if part is not None:
                further = part.clone() if further is None else further + part
            if should_log:
                loss = loss.detach()
                # A copy: with CUDA graphs the next pass overwrites this loss.
                total = loss.clone() if total is None else total.add_(loss)
        values = self.example_loss.take() if self.example_loss is not None else {}
        return _Losses(total, valid_here, valid, z_loss, further, values)

    def _read_batch(
        self, data_iterator: Iterator[Microbatch]
    ) -> tuple[list[list[Microbatch]], torch.Tensor]:
        """Return this rank's micro-batches, by forward and backward pass, and its valid tokens."""
        groups = []
        valid = torch.tensor(0, dtype=torch.int64)
        for _ in range(self.gradient_accumulation_steps):
            group = []
            for _ in range(self.num_pipeline_parallel_microbatches):
                with sl.log_trace_span("fetching_batch"):
                    inputs, labels = next(data_iterator)
                valid += (labels != IGNORE_INDEX).sum()
                group.append((inputs, labels))
            groups.append(group)
        sl.log_trace_scalar({"local_valid_tokens": int(valid)})
        return groups, valid

    @property
    def example_loss(self) -> example_loss.SequenceLoss | None:
        """The loss of examples, if the run's objective has one."""
        return example_loss.of(self.loss_fn)

    def expect(self, sequences: Sequence[bytes]) -> None:
        """Prepare the loss for the examples' sequences of a step, or of a validation set."""
        for callback in self.callbacks:
            callback.on_sequences(sequences)

    def another_loader(self) -> DocumentLoader:
        """Return a second loader of the run's data, at its beginning."""
        config, dims = self.config, self.parallel_dims
        mesh = dims.get_mesh("batch") if dims.dp_enabled else None
        made = config.dataloader.build(
            dp_world_size=mesh.size() if mesh is not None else 1,
            dp_rank=mesh.get_local_rank() if mesh is not None else 0,
            tokenizer=self.tokenizer,
            seq_len=config.training.seq_len,
            local_batch_size=config.parallelism.pipeline_parallel_microbatch_size
            if dims.pp_enabled
            else config.training.local_batch_size,
        )
        assert isinstance(made, DocumentLoader)
        return made

    def on_device(self, microbatch: Microbatch) -> Microbatch:
        """Return a micro-batch on this rank's device."""
        inputs, labels = microbatch
        return self._on_device(inputs), labels.to(self.device)

    def _on_device(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value.to(self.device) if isinstance(value, torch.Tensor) else value
            for name, value in inputs.items()
        }

    def _clip_gradients(self) -> torch.Tensor:
        norm: torch.Tensor = dist_utils.clip_grad_norm_(
            [parameter for part in self.model_parts for parameter in part.parameters()],
            self.config.training.max_norm,
            foreach=True,
            pp_mesh=self.parallel_dims.get_optional_mesh("pp"),
            ep_enabled=self.parallel_dims.ep_enabled,
        )
        return norm

    def _decide(self, grad_norm: torch.Tensor) -> Decision:
        decisions = (callback.before_optimizer(grad_norm) for callback in self.callbacks)
        return next((each for each in decisions if each is not Decision.TAKE), Decision.TAKE)

    def _log(self, losses: _Losses, grad_norm: torch.Tensor) -> None:
        """Log the mean over all ranks, and the maximum of the ranks' own means."""
        with sl.log_trace_span("collect_dist_metrics"):
            sl.log_trace_scalar({"global_valid_tokens": int(losses.valid)})
            loss = losses.loss
            assert loss is not None
            if self.parallel_dims.dp_cp_enabled:
                mesh = self.parallel_dims.get_optional_mesh("loss")
                own_mean = loss * losses.valid / losses.valid_here
                tokens = torch.tensor(self.ntokens_seen, dtype=torch.int64, device=self.device)
                mean = dist_utils.dist_sum(loss, mesh)
                largest = dist_utils.dist_max(own_mean, mesh)
                seen = dist_utils.dist_sum(tokens, mesh)
            else:
                mean = largest = float(loss.item())
                mesh, seen = None, self.ntokens_seen
            self._log_apart(z_loss=losses.z_loss, mtp_loss=losses.further)
            values = {
                name: dist_utils.dist_sum(value / losses.valid, mesh)
                for name, value in losses.values.items()
            }
        if isinstance(self.metrics_processor, StepMetricsProcessor):
            self.metrics_processor.data = self._shown(self._tokens)
            self.metrics_processor.stream = self._shown(self.stream)
            self.metrics_processor.objective = values
        self.metrics_processor.log(
            self.step,
            mean,
            largest,
            float(grad_norm.item()),
            extra_metrics={"n_tokens_seen": seen, **self.rates},
        )

    def _log_apart(self, **shares: torch.Tensor | None) -> None:
        """Add losses to the row of this step, apart from the loss, from this rank's shares."""
        dims = self.parallel_dims
        mesh = dims.get_optional_mesh("loss") if dims.dp_cp_enabled else None
        for name, share in shares.items():
            if share is None:
                continue
            value = dist_utils.dist_sum(share.to(self.device), mesh)
            if isinstance(self.metrics_processor, StepMetricsProcessor):
                self.metrics_processor.apart[name] = value

    def _tokens_here(self) -> torch.Tensor:
        """Return the digest of the tokens of this rank's sequences in the step."""
        loader = self.dataloader
        digest = loader.digest if isinstance(loader, DocumentLoader) else 0
        return torch.tensor(digest, dtype=torch.int64)

    def _shown(self, digest: torch.Tensor | None) -> str | None:
        if self.stream is None or digest is None:
            return None
        return f"{int(digest) % 2**64:016x}"

    # ------------------------------------------------------------------------ for callbacks

    def tokens_seen(self) -> int:
        """Return the tokens that all ranks have trained on since the run began."""
        return self.ntokens_seen * self._sharers()

    def gone_back(self, step: int, *, discarded: int) -> None:
        """Roll back to ``step``, which was loaded.

        Args:
            step: the last valid step; later ones are repeated.
            discarded: number of later steps that had been done.
        """
        self.discarded += discarded
        if isinstance(self.dataloader, DocumentLoader):
            self.dataloader.follow(step)
        if isinstance(self.metrics_processor, StepMetricsProcessor):
            self.metrics_processor.go_back(step, self.tokens_seen(), self.discarded)
        for callback in self.callbacks:
            callback.on_gone_back(step)

    def fail(self, event: str, reason: str) -> NoReturn:
        """End the run: record an event with the reason, and raise.

        Raises:
            RunError: always.
        """
        if dist.get_rank() == 0:
            events.record(self.run, event, step=self.step, reason=reason)
        raise RunError(reason)

    # ------------------------------------------------------------------------ state and end

    def state_dict(self) -> dict[str, Any]:
        """Return torchtitan's state, with the tokens of all ranks in place of this rank's.

        The run may resume on other ranks.
        """
        state = super().state_dict()
        return state | {"ntokens_seen": state["ntokens_seen"] * self._sharers()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        tokens = state_dict["ntokens_seen"]
        super().load_state_dict(state_dict | {"ntokens_seen": tokens // self._sharers()})

    def close(self) -> None:
        if isinstance(loader := getattr(self, "dataloader", None), DocumentLoader):
            loader.close()
        if hasattr(self, "stop_request"):
            self.stop_request.close()
            for callback in self.callbacks:
                callback.close()
        super().close()

    def _begin(self) -> None:
        """Discard logged values after the loaded step."""
        discarded: list[int | None] = [None]
        if dist.get_rank() == 0:
            discarded[0] = progress.discarded(events.read(self.run), self.step)
        dist.broadcast_object_list(discarded, src=0)
        assert discarded[0] is not None
        self._begun = True
        self.gone_back(self.step, discarded=discarded[0])

    def _stop(self, signal: str) -> None:
        for callback in self.callbacks:
            callback.on_stop()
        saved = False
        if isinstance(self.checkpointer, VerifiedCheckpointManager) and self.step:
            saved = self.checkpointer.save_now(self.step)
        if dist.get_rank() == 0:
            events.record(
                self.run,
                events.STOPPED,
                step=self.step,
                tokens_seen=self.tokens_seen(),
                # A launcher forwards all signals as one.
                reason=events.asked_by(events.read(self.run)) or signal,
                saved=saved,
            )
        self.stopped = True

    def _reached(self, phase: str) -> None:
        for callback in self.callbacks:
            callback.on_phase(phase)

    def _sharers(self) -> int:
        """Return the number of ranks that a batch's tokens are divided among."""
        dims = self.parallel_dims
        return dims.dp_replicate * dims.dp_shard * dims.cp


@dataclass(frozen=True)
class _Losses:
    """The loss of a step, if it is logged.

    Attributes:
        loss: this rank's share of the mean over the global batch; None if the step is not logged.
        valid_here: this rank's tokens with a label, on the CPU.
        valid: those of all ranks, on the device.
        z_loss: this rank's share of z-loss; None without ``loss.z_loss``.
        further: that of the loss of tokens ahead; None if the model predicts none.
        values: this rank's sums over examples of what the objective logs.

    With an objective's loss of examples, ``valid`` counts examples instead.
    """

    loss: torch.Tensor | None
    valid_here: torch.Tensor
    valid: torch.Tensor
    z_loss: torch.Tensor | None
    further: torch.Tensor | None
    values: dict[str, torch.Tensor]
