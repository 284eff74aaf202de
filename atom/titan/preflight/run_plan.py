"""Hold everything that preflight knows of a run; compute each part at most once.

Nothing changes a plan. torchtitan changes the configs that it is given, so it is given copies of
the described model (:func:`atom.titan.trainer_config.copied`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import nn
from torchtitan.config import ParallelismConfig, TrainingConfig

from atom.errors import UserError
from atom.kernels.choose import Choice
from atom.plan.device import DeviceDescription
from atom.plan.estimate import Estimate
from atom.plan.model import ModelDescription
from atom.plugin import (
    Architecture,
    Callback,
    Contents,
    Dataset,
    ModelParts,
    Optimizer,
    PreparedTokenizer,
)
from atom.recipe import batches
from atom.recipe.batches import Batches
from atom.recipe.resolved import Mixed, Read, Resolved
from atom.recipe.run import DEGREES, Run
from atom.registry.host import Host
from atom.registry.select import Selection
from atom.run_dir import mixture
from atom.run_dir.resume import Resumption
from atom.titan import kernels, saved_model, translate
from atom.titan.checkpoint import disk_space
from atom.titan.checks import batch, layout
from atom.titan.checks.division import shapes_of
from atom.titan.lora import peft
from atom.titan.lora.adapt import adapt, trained
from atom.titan.optim import optimizer
from atom.titan.planning import planning
from atom.titan.preflight.assembly import Assembly, assemble
from atom.titan.train.callbacks import CALLBACKS
from atom.titan.trainer_config import copied, model_parts
from atom.titan.weights import base, initial_load


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The plan of one run. A part that cannot be computed refuses the run with a ``UserError``.

    Attributes:
        composed: the run as composed.
        selection: its components.
        host: the plugins.
        folder: the run folder, which may not exist yet.
        kind: the kind of device: ``cpu`` or ``cuda``.
        device: the device of the ranks.
        available: GPUs, or cores of the CPU, of this machine.
        tokenizer: the prepared tokenizer.
        joined: number of ranks that an outer launcher has started; None without one.
        contents: the dataset's description of its contents.
        resumption: the checkpoint to resume from; None without one.
    """

    composed: Run
    selection: Selection
    host: Host
    folder: Path
    kind: str
    device: DeviceDescription
    available: int
    tokenizer: PreparedTokenizer
    joined: int | None = None
    contents: Contents | None = None
    resumption: Resumption | None = None

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    # ------------------------------------------------------------------ the layout

    @cached_property
    def _chosen(self) -> tuple[Run, str]:
        """The run with its strategy's layout, and the strategy's explanation."""
        return planning.choose(
            self.composed,
            self.selection,
            adapt(self._composed_parts, self.composed.lora),
            translate.training(self.composed.training, self.kind),
            self.device,
            ranks=self.joined or self.composed.launch.ranks or self.available,
        )

    @property
    def laid_out(self) -> Run:
        """The run with its strategy's layout."""
        return self._chosen[0]

    @property
    def explanation(self) -> str:
        """Why the layout was chosen, if a strategy chose it."""
        return self._chosen[1]

    @cached_property
    def _layout(self) -> tuple[ParallelismConfig, int]:
        return layout.resolve(self.laid_out, available=self.available, joined=self.joined)

    @property
    def parallelism(self) -> ParallelismConfig:
        return self._layout[0]

    @property
    def world_size(self) -> int:
        return self._layout[1]

    @property
    def degrees(self) -> dict[str, int]:
        return {name: getattr(self.parallelism, name) for name in DEGREES}

    @property
    def local_given(self) -> bool:
        return self.laid_out.training.local_batch_size is not None

    @cached_property
    def training(self) -> TrainingConfig:
        section = translate.training(self.laid_out.training, self.kind)
        return (
            section if self.local_given else batch.shared(section, self.parallelism, self.batches)
        )

    @cached_property
    def global_batch_size(self) -> int:
        """The sequences of one step; with a schedule, the most."""
        return batch.global_batch_size(self.training, self.parallelism)

    @cached_property
    def batches(self) -> Batches:
        """The sequences of each step; -1 if the layout decides."""
        return batches.batches(self.laid_out)

    @property
    def _data_begins(self) -> int | None:
        if self.resumption is None:
            return None
        return self.resumption.begins(self.global_batch_size)

    @cached_property
    def mixture(self) -> Mixed | None:
        """The mixture that the run reads, if its dataset is one that ATOM loads."""
        dataset = self.selection[Dataset]
        if dataset.declaration.build is not None:
            return None
        return mixture.resolve(
            dataset.call("source"),
            lanes=self.global_batch_size,
            seq_len=self.training.seq_len,
            batches=batches.batches(self.laid_out, self.global_batch_size),
            steps=self.laid_out.training.steps,
            contents=self.contents,
            earlier=self.resumption.sources if self.resumption is not None else (),
            begin=self._data_begins or 0,
            vocab_size=self.vocab_size,
            packing=self.laid_out.data.packing,
        )

    # ------------------------------------------------------------------ the model

    @cached_property
    def _composed_parts(self) -> ModelParts:
        training = translate.training(self.composed.training, self.kind)
        return model_parts(self.selection, self.vocab_size, training.seq_len)

    @cached_property
    def described(self) -> ModelParts:
        """The model as the architecture describes it."""
        if self.laid_out.training.seq_len == self.composed.training.seq_len:
            return self._composed_parts
        return model_parts(self.selection, self.vocab_size, self.training.seq_len)

    @cached_property
    def parts(self) -> ModelParts:
        """The model with the adapters of the run, if it has any."""
        lora = self.laid_out.lora
        found = adapt(self.described, lora)
        if lora.rank and lora.adapter is not None and self.resumption is None:
            alone = copied(self.described)
            saved_model.on_one_rank(alone, translate.training(self.laid_out.training, self.kind))
            converter = saved_model.adapter(alone, self.laid_out.architecture.name)
            model = saved_model.on_meta(found.model)
            shapes = {name: tuple(each.shape) for name, each in trained(model)}
            peft.check(lora.adapter, lora, converter, shapes)
        return found

    @property
    def model_config(self) -> Any:
        return self.parts.model

    @property
    def architecture(self) -> BaseModel | None:
        config: BaseModel | None = self.selection[Architecture].config
        return config

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return shapes_of(saved_model.on_meta(self.model_config))

    @cached_property
    def _loaded(self) -> tuple[Run, list[str]]:
        """The run with the full path of its initial weights, and notes about them."""
        return initial_load.resolve(
            self.laid_out,
            self.described,
            translate.training(self.laid_out.training, self.kind),
            self.folder,
            self.host,
            vocab_size=self.vocab_size,
            vocab_size_before=self.tokenizer.without_added,
        )

    @property
    def run(self) -> Run:
        return self._loaded[0]

    @cached_property
    def base_digest(self) -> str | None:
        """The digest of the weights that adapters are trained of; None without adapters."""
        found = base.digest(self.run, verify=True)
        start = self.resumption
        if start is not None and found is not None and start.base not in (None, found):
            raise UserError(
                f"has other weights than when the adapters in {start.start.folder} were trained",
                valid="those weights, or another run.dir",
                key=initial_load.KEY,
                value=self.run.checkpoint.initial_load,
            )
        return found

    @cached_property
    def optimizer(self) -> Any:
        """The config of the optimizer."""
        return optimizer.config(
            self.selection[Optimizer],
            self.laid_out.optimizer,
            device=self.kind,
            parameter_dtype=self.training.dtype,
        )

    # ------------------------------------------------------------------ kernels and config

    @cached_property
    def first_choices(self) -> tuple[Choice, ...]:
        """The kernels that fit, before the model has refused any."""
        return self._choose({})

    def _choose(self, unfit: Mapping[tuple[str, str], str]) -> tuple[Choice, ...]:
        where = kernels.situation(
            self.model_config,
            self.host,
            self.device,
            run=self.run,
            training=self.training,
            optimizer=self.selection[Optimizer].declaration,
            vocab_size=self.vocab_size,
            tensor_parallel=self.parallelism.tensor_parallel_degree,
            context_parallel=self.parallelism.context_parallel_degree,
            expert_parallel=self.parallelism.expert_parallel_degree,
            unfit=unfit,
        )
        chunks = self.run.loss.num_chunks
        return kernels.choose(self.run.kernels, self.host, where, loss_chunks=chunks)

    @cached_property
    def _settled(self) -> tuple[tuple[Choice, ...], Assembly]:
        def choose(unfit: Mapping[tuple[str, str], str]) -> tuple[Choice, ...]:
            return self._choose(unfit) if unfit else self.first_choices

        return kernels.settle(choose, self._assemble)

    def _assemble(self, chosen: tuple[Choice, ...]) -> Assembly:
        contents = self.contents
        added = self.selection.many(Callback)
        resolved = Resolved(
            device=self.kind,
            world_size=self.world_size,
            vocab_size=self.vocab_size,
            vocab_size_before=self.tokenizer.without_added,
            data=Read.model_validate(contents, from_attributes=True) if contents else None,
            mixture=self.mixture,
            base=self.base_digest,
            data_begins=self._data_begins,
            global_batch_size=self.global_batch_size,
            degrees=self.degrees,
            kernels={},
            callbacks=[
                *(callback.name for callback in CALLBACKS),
                *(f"{Callback.section}.{name}" for name in added),
            ],
            observers=[name for name, each in added.items() if each.declaration.observes],
        )
        run = self.run.model_copy(update={"resolved": resolved})
        parts = copied(self.parts)
        return assemble(run, chosen, self.selection, self.host, self.folder, parts)

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The kernels of the run."""
        return self._settled[0]

    @property
    def assembly(self) -> Assembly:
        return self._settled[1]

    @property
    def config(self) -> Any:
        return self.assembly.config

    @property
    def model(self) -> nn.Module:
        return self.assembly.model

    # ------------------------------------------------------------------ resources

    @cached_property
    def disk_warning(self) -> str:
        """A warning if the disk may not hold all checkpoints; ``""`` if it does."""
        return disk_space.check(self.config, self.folder, self.model)

    @property
    def warning(self) -> str:
        """Notes about the initial weights, and warnings about resources that may run out."""
        disk = "" if self.composed.dry_run else self.disk_warning
        return "\n".join(filter(None, [*self._loaded[1], disk]))

    @cached_property
    def description(self) -> ModelDescription:
        """The sizes of the model, for the estimate."""
        return planning.description(
            self.parts,
            self.config.training,
            enable_sequence_parallel=self.config.parallelism.enable_sequence_parallel,
        )

    @cached_property
    def estimate(self) -> Estimate:
        """The estimate of memory, communication and time; with a schedule, of its largest batch."""
        return self.estimate_at(self.global_batch_size)

    def estimate_at(self, sequences: int) -> Estimate:
        """Return the estimate of a step of so many sequences."""
        return planning.estimate_of(
            self.run,
            self.selection,
            self.description,
            self.model_config,
            self.device,
            self.config.parallelism,
            self.config.training,
            global_batch_size=sequences,
            averages=len(self.selection.averages()),
        )
