"""torchtitan's trainer, which looks at what a step has computed before it takes it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import structlog
import torch
import torch.distributed as dist
from torchtitan.trainer import Trainer

from atom.errors import RunError
from atom.recipe.sections import Faults
from atom.run_dir import events
from atom.titan.checkpoint.checkpointer import FAULTS, VerifiedCheckpointManager
from atom.titan.train import anomaly, replicas
from atom.titan.train.data import DocumentLoader
from atom.titan.train.metrics import StepMetricsProcessor
from atom.titan.train.replay import Replay

log = structlog.get_logger("atom")


class JudgingTrainer(Trainer):
    """Between the gradients and the optimizer step it looks at loss and gradient norm.

    Where a step may still be skipped, is logged or is saved, it waits for them, as torchtitan does
    to log. On the other steps it reads them one step later, so that a GPU always has work to do.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        faults: Faults = field(default_factory=Faults)

        def to_dict(self) -> dict[str, Any]:
            """Return torchtitan's dictionary, with the faults as plain data."""
            return Trainer.Config.to_dict(self) | {"faults": self.faults.model_dump(mode="json")}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._run = Path(config.dump_folder)
        self._faults = config.faults
        self._anomalies = anomaly.Anomalies(config.faults)
        self._measured = anomaly.Measured(self.device, tensor_parallel=self.parallel_dims.tp)
        self._late: anomaly.Late | None = None
        self._latest: tuple[int, torch.Tensor] | None = None
        """The last step, and what was measured of it."""
        self._rates: dict[str, Any] = {}
        self.ntokens_seen: int
        self._discarded = 0
        """Steps that were done and do not count any more, since the run began."""
        self._replay: Replay | None = None
        if isinstance(self.metrics_processor, StepMetricsProcessor):
            self.metrics_processor.last_step = config.training.steps
        if self.checkpointer.enable:
            self.checkpointer.states[FAULTS] = self._anomalies

    def forward_backward_step(self, **inputs: Any) -> torch.Tensor:
        if self._replay is not None:
            self._replay.before(inputs)
        loss = super().forward_backward_step(**inputs)
        if self._replay is not None:
            self._replay.after(loss)
        if not self.parallel_dims.pp_enabled or self.pp_has_last_stage:
            self._measured.add(loss)
        return loss

    def train_step(self, data_iterator: Iterator[Any]) -> None:
        """Take a step, or what the run wants instead where the step is not to be trusted."""
        done = False
        while not done:
            refused = None
            self._measured.begin()
            self._rates = self.lr_schedulers.get_metrics()
            if _due(self._faults.replay_check_interval, self.step):
                self._replay = Replay(self.model_parts)
            try:
                with anomaly.before_optimizer(self._check_replay, self._check):
                    super().train_step(data_iterator)
                done = True
            except anomaly.StepRefusedError as error:
                refused = error
            if refused is not None:
                done = self._settle(refused, done=self.step - 1) == "skip"
                if done:
                    self._log_skipped()
                else:
                    self.step += 1
        if _due(self._faults.replica_check_interval, self.step):
            self._check_replicas()

    def _check(self, grad_norm: torch.Tensor) -> None:
        """Look at the values of this step, or where that would mean waiting, of the last one.

        Raises:
            StepRefusedError: they are out of line.
        """
        values = self._measured.reduced(grad_norm)
        self._latest = (self.step, values)
        self._judge_late()
        late = anomaly.Late(self.step, values, self._documents())
        if self._waits_anyway():
            self._judge(late)
        else:
            self._late = late

    def _judge_late(self) -> None:
        late, self._late = self._late, None
        if late is not None:
            self._judge(late)

    def _judge(self, measured: anomaly.Late) -> None:
        fault = self._anomalies.judge(measured.step, *measured.read())
        if fault is not None:
            raise anomaly.StepRefusedError(fault, measured.documents)

    def _waits_anyway(self) -> bool:
        # A CPU need not wait, but goes the same way, so that a rehearsal shows what GPUs will do.
        if "skip" in (self._faults.non_finite, self._faults.spike):
            return True
        last = self.step == self.config.training.steps
        saves = self.checkpointer.enable and self.checkpointer._should_save(self.step, last)
        return saves or self.metrics_processor.should_log(self.step)

    def _settle(self, refused: anomaly.StepRefusedError, *, done: int) -> str:
        """Decide on a fault, and go back if that is what the run wants; return the decision.

        Args:
            refused: the fault.
            done: the last step that was done.

        Raises:
            RunError: the run ends here.
        """
        fault = refused.fault
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
        going_back = {} if back is None else {"to_step": back, "done": done}
        self._record(refused, decision, going_back)
        if decision == "stop":
            raise RunError(f"{fault.reason}{why_stop}")
        if back is not None:
            self._discarded += done - back
            self._begin_after(back)
        return decision

    def _settle_late(self) -> bool:
        """Settle a fault of the last step, which must not be saved; return whether the run has gone
        back.

        Raises:
            RunError: the run ends here.
        """
        try:
            self._judge_late()
        except anomaly.StepRefusedError as refused:
            return self._settle(refused, done=self.step) == "rollback"
        return False

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
        return step

    def _begin_after(self, step: int) -> None:
        """Take ``step`` for the last that counts, as it was loaded: later ones are done again."""
        self._late = self._latest = None
        if isinstance(self.metrics_processor, StepMetricsProcessor):
            self.metrics_processor.go_back(step, self._tokens_seen(), self._discarded)

    def _documents(self) -> list[str]:
        """Return the documents of this step on this rank."""
        if not isinstance(self.dataloader, DocumentLoader):
            return []
        spans = [span for lane in self.dataloader.samples().values() for span in lane]
        return list(dict.fromkeys(name for _, name, _, _ in spans))

    def _record(
        self, refused: anomaly.StepRefusedError, decision: str, going_back: dict[str, int]
    ) -> None:
        """Note a fault: on every rank with its own documents, for the run with those of rank 0."""
        fault, documents = refused.fault, refused.documents
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
            **going_back,
            documents=documents,
        )

    def _log_skipped(self) -> None:
        """Do what torchtitan does after an optimizer step, as this step counts, too."""
        self.lr_schedulers.step()
        if self.metrics_processor.should_log(self.step):
            self._log_latest()

    def _log_unlogged(self) -> None:
        """Log the last step, if it was not."""
        if self._latest is not None and not self.metrics_processor.should_log(self._latest[0]):
            self._log_latest()

    def _log_latest(self) -> None:
        assert self._latest is not None
        step, values = self._latest
        loss, grad_norm = values.tolist()
        self.metrics_processor.log(
            step,
            loss,
            math.nan,  # the largest of the ranks' is not known
            grad_norm,
            extra_metrics={"n_tokens_seen": self._tokens_seen(), **self._rates},
        )

    def _check_replay(self) -> None:
        """Compute the gradients of this step again, if it is its turn.

        Raises:
            RunError: they are others.
        """
        replay, self._replay = self._replay, None
        if replay is None:
            return
        tokens: int = self.ntokens_seen
        words = replay.differing(super().forward_backward_step)
        self.ntokens_seen = tokens  # the same ones again
        if words is not None:
            self._end(
                events.REPLAY_DIFFERS, f"step {self.step} computed again gives other bits: {words}"
            )

    def _check_replicas(self) -> None:
        named = [pair for part in self.model_parts for pair in part.named_parameters()]
        words = replicas.differing(named, self.parallel_dims.get_optional_mesh("dp_replicate"))
        if words is not None:
            self._end(
                events.REPLICAS_DIFFER,
                f"parameters that should be alike differ after step {self.step}: {words}",
            )

    def _end(self, event: str, reason: str) -> NoReturn:
        if dist.get_rank() == 0:
            events.record(self._run, event, step=self.step, reason=reason)
        raise RunError(reason)

    def _tokens_seen(self) -> int:
        """Return the tokens that all ranks have trained on since the run began."""
        return self.ntokens_seen * self._sharers()

    def _sharers(self) -> int:
        """Return how many ranks share the tokens of a batch out among themselves."""
        dims = self.parallel_dims
        return dims.dp_replicate * dims.dp_shard * dims.cp


def _due(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0
