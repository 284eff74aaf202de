"""Validate loss and gradient norm before the optimizer step."""

from __future__ import annotations

import math

import structlog
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.stateful import Stateful

from atom.errors import RunError
from atom.run_dir import events
from atom.titan.checkpoint.checkpointer import FAULTS, VerifiedCheckpointManager
from atom.titan.train import anomaly
from atom.titan.train.callback import Callback, Decision
from atom.titan.train.data import DocumentLoader

log = structlog.get_logger("atom")


class Faults(Callback):
    """A callback that skips a faulty step, rolls back or ends the run, as ``faults`` configures.

    If the step may still be skipped, is logged or is saved, it waits for the values, as torchtitan
    does for logging. For other steps it reads the values one step later, so that a GPU always has
    work.
    """

    name = "faults"
    state_name = FAULTS

    def on_built(self) -> None:
        trainer = self.trainer
        self._settings = trainer.config.faults
        self._anomalies = anomaly.Anomalies(self._settings)
        self._measured = anomaly.Measured(trainer.device, tensor_parallel=trainer.parallel_dims.tp)
        self._late: anomaly.Late | None = None
        self._latest: tuple[int, torch.Tensor] | None = None
        """The last step and its measured values."""

    @property
    def state(self) -> Stateful:
        """The values of the last good steps, and the steps of faults."""
        return self._anomalies

    def before_step(self) -> None:
        self._measured.begin()

    def after_forward(self, loss: torch.Tensor) -> None:
        if not self.trainer.parallel_dims.pp_enabled or self.trainer.pp_has_last_stage:
            self._measured.add(loss)

    def before_optimizer(self, grad_norm: torch.Tensor) -> Decision:
        """Judge this step; or the one before, if judging this step meant waiting.

        Raises:
            RunError: there is a fault, and the run must end.
        """
        step = self.trainer.step
        values = self._measured.reduced(grad_norm)
        self._latest = (step, values)
        measured = anomaly.Late(step, values, self._documents())
        before, self._late = self._late, None
        fault = self._judged(before)
        if fault is None and self._waits_anyway():
            before, fault = measured, self._judged(measured)
        elif fault is None:
            self._late = measured
        if fault is None:
            return Decision.TAKE
        assert before is not None
        return self._settle(fault, before.documents, done=step - 1)

    def on_skipped(self) -> None:
        if self.trainer.metrics_processor.should_log(self.trainer.step):
            self._log_latest()

    def before_stop(self) -> bool:
        """Handle a fault of the last step, which must not be saved."""
        late, self._late = self._late, None
        fault = self._judged(late)
        if fault is None:
            return False
        assert late is not None
        decision = self._settle(fault, late.documents, done=self.trainer.step)
        return decision is Decision.AGAIN

    def on_stop(self) -> None:
        """Log the last step, if it is not logged yet."""
        if self._latest is None:
            return
        if not self.trainer.metrics_processor.should_log(self._latest[0]):
            self._log_latest()

    def on_gone_back(self, step: int) -> None:  # noqa: ARG002
        self._late = self._latest = None

    def _judged(self, measured: anomaly.Late | None) -> anomaly.Fault | None:
        if measured is None:
            return None
        return self._anomalies.judge(measured.step, *measured.read())

    def _waits_anyway(self) -> bool:
        # A CPU need not wait, but takes the same path, so that a rehearsal behaves like GPUs.
        if "skip" in (self._settings.non_finite, self._settings.spike):
            return True
        trainer = self.trainer
        last = trainer.step == trainer.config.training.steps
        saves = trainer.checkpointer.enable and trainer.checkpointer._should_save(
            trainer.step, last
        )
        return saves or trainer.metrics_processor.should_log(trainer.step)

    def _settle(self, fault: anomaly.Fault, documents: list[str], *, done: int) -> Decision:
        """Handle a fault; roll back if the run is configured to.

        Args:
            fault: the fault.
            documents: this rank's documents of the faulty step.
            done: the last completed step.

        Raises:
            RunError: the run ends here.
        """
        decision = getattr(self._settings, fault.kind)
        why_stop = ""
        back = None
        if decision != "stop" and not self._anomalies.within_budget(fault.step):
            decision = "stop"
            why_stop = (
                f"; that exceeds faults.budget={self._settings.budget} in {self._settings.window} "
                "steps"
            )
        read = self.trainer.step  # loading sets it back
        if decision == "rollback":
            back = self._go_back()
            if back is None:
                decision, why_stop = "stop", "; there is no checkpoint to roll back to"
        going_back = {}
        if back is not None:
            going_back = {"to_step": back, "done": done, "left_out": read - back}
        self._record(fault, documents, decision, going_back)
        if decision == "stop":
            raise RunError(f"{fault.reason}{why_stop}")
        if back is None:
            return Decision.SKIP
        self.trainer.gone_back(back, discarded=done - back)
        return Decision.AGAIN

    def _go_back(self) -> int | None:
        """Load the newest checkpoint, continue with the data after this step, and return its step.

        All data read since the checkpoint is skipped, as any of it may have caused the fault.
        """
        manager, loader = self.trainer.checkpointer, self.trainer.dataloader
        if not isinstance(manager, VerifiedCheckpointManager) or not manager.enable:
            return None
        manager.maybe_wait_for_saving()
        step = manager._find_load_step()
        if step < 1:
            return None
        place = loader.state_dict()
        with self._anomalies.faults_kept():
            manager.load(step)
        loader.load_state_dict(place)
        return step

    def _documents(self) -> list[str]:
        """Return this rank's documents of the current step."""
        loader = self.trainer.dataloader
        if not isinstance(loader, DocumentLoader):
            return []
        spans = [span for lane in loader.samples().values() for span in lane]
        return list(dict.fromkeys(name for _, name, _, _ in spans))

    def _record(
        self, fault: anomaly.Fault, documents: list[str], decision: str, going_back: dict[str, int]
    ) -> None:
        """Record a fault: every rank its own documents, rank 0 an event of the run."""
        log.warning(
            "numerical fault", step=fault.step, reason=fault.reason, decision=decision,
            documents=documents,
        )  # fmt: skip
        if dist.get_rank() != 0:
            return
        events.record(
            self.trainer.run,
            events.NUMERICAL_FAULT,
            step=fault.step,
            fault=fault.kind,
            reason=fault.reason,
            loss=fault.loss if math.isfinite(fault.loss) else None,
            grad_norm=fault.grad_norm if math.isfinite(fault.grad_norm) else None,
            decision=decision,
            **going_back,
            documents=documents,
        )

    def _log_latest(self) -> None:
        assert self._latest is not None
        step, values = self._latest
        loss, grad_norm = values.tolist()
        self.trainer.metrics_processor.log(
            step,
            loss,
            math.nan,  # the maximum over ranks is unknown
            grad_norm,
            extra_metrics={"n_tokens_seen": self.trainer.tokens_seen(), **self.trainer.rates},
        )
