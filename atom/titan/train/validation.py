"""Validate the model during training, without an effect on training.

The loss of a set is computed by the forward pass and the loss of training, so that it works under
every layout and kernel. Data-parallel rank r of D evaluates sequences r, r + D, …; the ranks' sums
are added in float64.

Shape suffixes: B = sequences of one pass, L = tokens per sequence.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torchtitan.distributed import utils as dist_utils

from atom.data import validation
from atom.data.validation import Texts, ValidationSet
from atom.registry.renaming import renamed
from atom.run_dir import events
from atom.run_dir.validated import SetResult
from atom.titan.train import forward
from atom.titan.train.averages import Averages
from atom.titan.train.callback import Callback, is_due
from atom.titan.train.data import EncoderOf
from atom.titan.train.metrics import StepMetricsProcessor
from atom.titan.train.untouched import Untouched

if TYPE_CHECKING:
    from atom.titan.train.trainer import Microbatch


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """What is validated, and when.

    Attributes:
        sets: name -> the documents.
        encoder: returns the objective's encoder for a tokenizer; None: text is predicted.
        interval: steps from one validation to the next.
        tokens: tokens of a set to read.
        vocab_size: an id beyond it is refused.
        sequences: sequences of an example of the objective; None: its loss is of tokens.
    """

    sets: Mapping[str, Texts] = field(default_factory=dict)
    encoder: EncoderOf | None = None
    interval: int = 1
    tokens: int = 1
    vocab_size: int | None = None
    sequences: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return {"sets": list(self.sets), "interval": self.interval, "tokens": self.tokens}

    def is_due(self, step: int, last: int) -> bool:
        """Return whether a step is validated; ``last`` is the run's last."""
        return bool(self.sets) and (step == last or is_due(self.interval, step))


def read(
    texts: Texts, config: ValidationConfig, tokenizer: Any, seq_len: int, **share: int
) -> ValidationSet:
    """Read a set; errors name its key. ``share`` is as for :func:`atom.data.validation.read`."""
    with renamed("dataset", texts.key):
        return validation.read(
            texts.source,
            tokenizer,
            encoder=config.encoder(tokenizer) if config.encoder is not None else None,
            tokens=config.tokens,
            seq_len=seq_len,
            vocab_size=config.vocab_size,
            side=texts.side,
            sequences=config.sequences,
            **share,
        )


class Validation(Callback):
    """A callback that validates each ``validation.interval``-th step, and the last one.

    A skipped step is not validated: its weights are those of the step before.
    """

    name = "validation"

    def on_built(self) -> None:
        self._sets = self._read()  # before training, which a set that is refused would end
        processor = self.trainer.metrics_processor
        if isinstance(processor, StepMetricsProcessor):
            processor.also_logs.append(self._is_due)

    def after_optimizer(self) -> None:
        if self._is_due(self.trainer.step):
            self._validate()

    def validate_average(self, name: str, averages: Averages) -> None:
        """Validate averaged weights, too, if the step is validated.

        Args:
            name: the callback that averages; results are those of ``SET/NAME``.
            averages: its averages, up to this step.
        """
        if self._is_due(self.trainer.step):
            with torch.no_grad(), averages.as_weights():
                self._validate(suffix=f"/{name}")

    def _validate(self, *, suffix: str = "") -> None:
        trainer = self.trainer
        began = time.perf_counter()
        with Untouched(trainer):
            results = {f"{name}{suffix}": self._result(s) for name, s in self._sets.items()}
        processor = trainer.metrics_processor
        if isinstance(processor, StepMetricsProcessor):
            processor.validated(results, seconds=time.perf_counter() - began)

    def _is_due(self, step: int) -> bool:
        config = self.trainer.config
        return config.validation.is_due(step, config.training.steps)

    def _read(self) -> dict[str, ValidationSet]:
        trainer = self.trainer
        config, dims = trainer.config, trainer.parallel_dims
        rank, ranks = 0, 1
        if dims.dp_enabled:
            mesh = dims.get_mesh("batch")
            rank, ranks = mesh.get_local_rank(), mesh.size()
        self._ranks = ranks
        sets = {
            name: read(
                texts,
                config.validation,
                trainer.tokenizer,
                config.training.seq_len,
                rank=rank,
                ranks=ranks,
            )
            for name, texts in config.validation.sets.items()
        }
        if dist.get_rank() == 0:
            for name, found in sets.items():
                events.record(
                    trainer.run,
                    events.VALIDATION_SET,
                    set=name,
                    sequences=found.sequences,
                    tokens=found.tokens,
                    bytes=found.bytes,
                    data=found.digest,
                )
        return sets

    def _result(self, found: ValidationSet) -> SetResult:
        trainer = self.trainer
        total = torch.zeros((), dtype=torch.float64, device=trainer.device)
        trainer.expect(found.sequences_here)  # empty, unless the loss is of examples
        for microbatches in self._passes(found):
            total += forward.loss(trainer, microbatches).to(trainer.device, torch.float64)
        dims = trainer.parallel_dims
        mesh = dims.get_optional_mesh("loss") if dims.dp_cp_enabled else None
        count = found.tokens if found.examples is None else found.examples
        values = trainer.example_loss.take() if trainer.example_loss is not None else {}
        return SetResult(
            loss=dist_utils.dist_sum(total, mesh) / count,
            tokens=found.tokens,
            bytes=None if found.examples is not None else found.bytes,
            data=found.digest,
            examples=found.examples,
            values={
                name: dist_utils.dist_sum(value, mesh) / count for name, value in values.items()
            },
        )

    def everything(self) -> Iterator[tuple[Sequence[bytes], Iterator[list[Microbatch]]]]:
        """Yield the examples' sequences of each set, and its passes."""
        for found in self._sets.values():
            yield found.sequences_here, self._passes(found)

    def _passes(self, found: ValidationSet) -> Iterator[list[Microbatch]]:
        """Yield the micro-batches of each forward pass, as many on every rank: where sequences are
        lacking, there is padding.
        """
        trainer = self.trainer
        config = trainer.config
        count, size = 1, config.training.local_batch_size
        if trainer.parallel_dims.pp_enabled:
            count = trainer.num_pipeline_parallel_microbatches
            size = config.parallelism.pipeline_parallel_microbatch_size
        passes = -(-found.sequences // (self._ranks * count * size))
        for number in range(passes * count):
            if number % count == 0:
                group = []
            group.append(self._microbatch(found, number * size, size))
            if len(group) == count:
                yield group

    def _microbatch(self, found: ValidationSet, begin: int, size: int) -> Microbatch:
        device = self.trainer.device
        inputs_BL, labels_BL, positions_BL = (
            torch.from_numpy(array).to(device) for array in found.rows(begin, size)
        )
        return {"input": inputs_BL, "positions": positions_BL}, labels_BL
