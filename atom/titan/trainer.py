"""torchtitan's trainer, which can be asked to stop at a step's end, with a checkpoint, and which
looks at what a step has computed before it takes it."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
import torch
import torch.distributed as dist
from torchtitan.trainer import Trainer

from atom import events
from atom.errors import RunError
from atom.run import Faults
from atom.titan import anomaly, replicas
from atom.titan.checkpointer import FAULTS, VerifiedCheckpointManager
from atom.titan.data import DocumentLoader
from atom.titan.metrics import StepMetricsProcessor
from atom.titan.samples import DataNotes
from atom.watch.profile import DATA

log = structlog.get_logger("atom")


class StoppableTrainer(Trainer):
    """Between two steps it looks whether it was asked to stop, and shows that it is alive.

    Between the gradients and the optimizer step it looks at loss and gradient norm. Where a step
    may still be skipped, is logged or is saved, it waits for them, as torchtitan does to log. On
    the other steps it reads them one step later, so that a GPU always has work to do.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        faults: Faults = field(default_factory=Faults)
        trace_samples: bool = False

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._notes: DataNotes | None = None
        self._run = Path(config.dump_folder)
        self._stop = StopRequest()
        self._faults = config.faults
        self._anomalies = anomaly.Anomalies(config.faults)
        self._measured = anomaly.Measured(self.device, tensor_parallel=self.parallel_dims.tp)
        self._late: anomaly.Late | None = None
        if self.checkpointer.enable:
            self.checkpointer.states[FAULTS] = self._anomalies
        if isinstance(self.dataloader, DocumentLoader) and self._reads_first():
            self._notes = DataNotes(self._run, dist.get_rank(), trace=config.trace_samples)
        self.stopped = False
        """Whether training has ended early, as it was asked to."""

    def batch_generator(self, data_iterable: Iterable[Any]) -> Iterator[Any]:
        batches = super().batch_generator(data_iterable)
        while True:
            with torch.profiler.record_function(DATA):
                batch = next(batches)
            yield batch

    def forward_backward_step(self, **inputs: Any) -> torch.Tensor:
        loss = super().forward_backward_step(**inputs)
        if not self.parallel_dims.pp_enabled or self.pp_has_last_stage:
            self._measured.add(loss)
        return loss

    def train_step(self, data_iterator: Iterator[Any]) -> None:
        """Take a step, or what the run wants instead where the step is not to be trusted."""
        done = False
        while not done:
            self._measured.begin()
            try:
                with anomaly.before_optimizer(self._check):
                    super().train_step(data_iterator)
                done = True
            except anomaly.StepRefusedError as refused:
                fault = refused.fault
            if not done:
                done = self._settle(fault)
        if self._notes is not None:
            self._notes.write(self.step, self.dataloader)
        interval = self._faults.replica_check_interval
        if interval and self.step % interval == 0:
            self._check_replicas()

    # ------------------------------------------------------------------------ faults

    def _check(self, grad_norm: torch.Tensor) -> None:
        """Look at the values of this step, or where that would mean waiting, of the last one.

        Raises:
            StepRefusedError: they are out of line.
        """
        values = self._measured.reduced(grad_norm)
        late, self._late = self._late, None
        if late is not None:
            self._judge(late.step, late.read())
        if self._waits_anyway():
            self._judge(self.step, values.tolist())
        else:
            self._late = anomaly.Late(self.step, values)

    def _judge(self, step: int, values: list[float]) -> None:
        fault = self._anomalies.judge(step, *values)
        if fault is not None:
            raise anomaly.StepRefusedError(fault)

    def _waits_anyway(self) -> bool:
        if self.device.type == "cpu" or "skip" in (self._faults.non_finite, self._faults.spike):
            return True
        last = self.step == self.config.training.steps
        saves = self.checkpointer.enable and self.checkpointer._should_save(self.step, last)
        return saves or self.metrics_processor.should_log(self.step)

    def _settle(self, fault: anomaly.Fault) -> bool:
        """Do what the run wants of a fault; return whether that ends the step.

        Raises:
            RunError: the run ends here.
        """
        decision = getattr(self._faults, fault.kind)
        why_stop = ""
        back = None
        if decision != "stop" and not self._anomalies.within_budget(fault.step):
            decision = "stop"
            why_stop = (
                f"; that is more than faults.budget={self._faults.budget} in "
                f"{self._faults.window} steps"
            )
        if decision == "rollback":
            back = self._go_back()
            if back is None:
                decision, why_stop = "stop", "; there is no checkpoint to go back to"
        self._record(fault, decision, back)
        if decision == "stop":
            raise RunError(f"{fault.reason}{why_stop}")
        if decision == "rollback":
            self.step += 1
            return False
        self._log_skipped(fault)
        return True

    def _settle_late(self) -> None:
        """End the run if its last step is not to be trusted: it must not be saved."""
        late, self._late = self._late, None
        fault = self._anomalies.judge(late.step, *late.read()) if late is not None else None
        if fault is not None:
            self._record(fault, "stop", None)
            raise RunError(fault.reason)

    def _go_back(self) -> int | None:
        """Load the newest checkpoint, and go on with the data after this step; return its step.

        What was read since the checkpoint is left out, as it may be all of it that has led here.
        """
        manager = self.checkpointer
        if not isinstance(manager, VerifiedCheckpointManager) or not manager.enable:
            return None
        manager.maybe_wait_for_saving()
        step = manager._find_load_step()
        if step < 1:
            return None
        place = self.dataloader.state_dict()
        with self._anomalies.faults_kept():
            manager.load(step)
        self.dataloader.load_state_dict(place)
        self._late = None
        if isinstance(self.metrics_processor, StepMetricsProcessor):
            self.metrics_processor.go_back(step)
        return step

    def _record(self, fault: anomaly.Fault, decision: str, back: int | None) -> None:
        """Note a fault: on every rank with its own documents, for the run with those of rank 0."""
        documents: list[str] = []
        if isinstance(self.dataloader, DocumentLoader):
            spans = [span for lane in self.dataloader.samples().values() for span in lane]
            documents = list(dict.fromkeys(name for _, name, _, _ in spans))
        log.warning(
            "numerical fault", step=fault.step, reason=fault.reason, decision=decision,
            documents=documents,
        )  # fmt: skip
        if dist.get_rank() != 0:
            return
        events.record(
            self._run,
            events.NUMERICAL_FAULT,
            step=fault.step,
            fault=fault.kind,
            reason=fault.reason,
            loss=fault.loss if math.isfinite(fault.loss) else None,
            grad_norm=fault.grad_norm if math.isfinite(fault.grad_norm) else None,
            decision=decision,
            **({} if back is None else {"to_step": back}),
            documents=documents,
        )

    def _log_skipped(self, fault: anomaly.Fault) -> None:
        """Do what torchtitan does after an optimizer step, as this step counts, too."""
        rates = self.lr_schedulers.get_metrics()
        self.lr_schedulers.step()
        if self.metrics_processor.should_log(self.step):
            tokens = self.ntokens_seen * self._sharers()
            self.metrics_processor.log(
                self.step,
                fault.loss,
                fault.loss,
                fault.grad_norm,
                extra_metrics={"n_tokens_seen": tokens, **rates},
            )

    def _check_replicas(self) -> None:
        named = [pair for part in self.model_parts for pair in part.named_parameters()]
        words = replicas.differing(named, self.parallel_dims.get_optional_mesh("dp_replicate"))
        if words is None:
            return
        reason = f"parameters that should be alike differ after step {self.step}: {words}"
        if dist.get_rank() == 0:
            events.record(self._run, events.REPLICAS_DIFFER, step=self.step, reason=reason)
        raise RunError(reason)

    # ------------------------------------------------------------------------ stopping

    def should_continue_training(self) -> bool:
        if dist.get_rank() == 0:
            (self._run / events.HEARTBEAT).touch()
        if not super().should_continue_training():
            return False
        reason = self._stop.agreed()
        if reason is None:
            return True
        self._settle_late()
        if isinstance(self.checkpointer, VerifiedCheckpointManager) and self.step:
            self.checkpointer.save_now(self.step)
        if dist.get_rank() == 0:
            events.record(self._run, events.STOPPED, step=self.step, reason=reason)
        self.stopped = True
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return torchtitan's state, with the tokens of all ranks in place of this rank's: other
        ranks may go on from it."""
        state = super().state_dict()
        return state | {"ntokens_seen": state["ntokens_seen"] * self._sharers()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        tokens = state_dict["ntokens_seen"]
        super().load_state_dict(state_dict | {"ntokens_seen": tokens // self._sharers()})

    def _reads_first(self) -> bool:
        """Return whether this is the first of the ranks that read the same data."""
        meshes = (self.parallel_dims.get_optional_mesh(name) for name in ("tp", "cp", "pp"))
        return all(mesh.get_local_rank() == 0 for mesh in meshes if mesh is not None)

    def _sharers(self) -> int:
        """Return how many ranks share the tokens of a batch out among themselves."""
        dims = self.parallel_dims
        return dims.dp_replicate * dims.dp_shard * dims.cp

    def close(self) -> None:
        if hasattr(self, "_stop"):
            self._stop.close()
            if self._notes is not None:
                self._notes.close(self.dataloader)
                self._notes = None
        super().close()


class StopRequest:
    """Whether any rank was asked to stop, agreed on by all at the same step.

    A signal reaches ranks at different times; a rank that stopped by itself would leave the others
    waiting for it. Each look starts a reduction of one integer in the background and takes the
    result of the look before, so that nobody waits, and a stop takes one step more.
    """

    _asked: int = 0
    """The signal that this process was sent, 0 for none."""

    def __init__(self) -> None:
        # On GPUs the default group's tensors are on the device, where reading one means waiting.
        gloo = dist.get_backend() == "gloo"
        self._group: Any = None if gloo else dist.new_group(backend="gloo")
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    @classmethod
    def listen(cls, *signals: signal.Signals) -> None:
        """Take these signals for a request to stop."""

        def ask(number: int, _frame: FrameType | None) -> None:
            cls._asked = number

        for number in signals:
            signal.signal(number, ask)

    def agreed(self) -> str | None:
        """Return the name of the signal that all ranks know of by now, or None."""
        result = self._result()
        asked = torch.tensor(self._asked, dtype=torch.int32)
        work = dist.all_reduce(asked, dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._pending = (asked, work)
        return signal.Signals(result).name if result else None

    def close(self) -> None:
        """Wait for what is under way: a group must not be destroyed before."""
        self._result()

    def _result(self) -> int:
        if self._pending is None:
            return 0
        (asked, work), self._pending = self._pending, None
        work.wait()
        return int(asked)
