"""Run one rank of torchtitan's own trainer, configured in Python: the baseline of ``overhead.py``.

Started by torchrun with: FOLDER LAYOUT(JSON) STEPS. Of ATOM it uses only the CPU repairs, initial
weights, reference attention, byte tokenizer and data loader, directly.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atom.data.dealing import dealt
from atom.titan.boot import boot

boot("cpu")

# torchtitan imports it itself; ATOM's repairs defer that import.
import datasets  # noqa: E402, F401
import torch  # noqa: E402
import torch._inductor.compile_fx  # noqa: E402
from torchtitan.components.loss import CrossEntropyLoss  # noqa: E402
from torchtitan.components.metrics import MetricsProcessor, _get_metrics_rank  # noqa: E402
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw  # noqa: E402
from torchtitan.config import (  # noqa: E402
    CommConfig,
    DebugConfig,
    ParallelismConfig,
    TrainingConfig,
)
from torchtitan.config.override import OverrideConfig  # noqa: E402
from torchtitan.distributed.pipeline_parallel import pipeline_llm  # noqa: E402
from torchtitan.models.llama3.parallelize import parallelize_llama  # noqa: E402
from torchtitan.protocols.model_spec import ModelSpec  # noqa: E402
from torchtitan.trainer import Trainer  # noqa: E402

from atom.plugin import ArchitectureContext  # noqa: E402
from atom.titan.compat.device import mend_fsdp  # noqa: E402
from atom.titan.compat.pipeline import send_contiguous  # noqa: E402
from atom.titan.train.data import DocumentLoader  # noqa: E402
from atom.titan.train.initial_weights import seed_parameters  # noqa: E402
from atom_datasets.config import Stdlib  # noqa: E402
from atom_datasets.stdlib import source  # noqa: E402
from atom_llama.build import llama3  # noqa: E402
from atom_llama.config import Llama3  # noqa: E402
from atom_tokenizers.config import Bytes  # noqa: E402
from atom_tokenizers.ranks import byte_level  # noqa: E402

SEQ_LEN, BATCH = 256, 8


class TimedMetrics(MetricsProcessor):
    """torchtitan's metrics, which also record the time of each step."""

    @dataclass(kw_only=True, slots=True)
    class Config(MetricsProcessor.Config):
        pass

    def __init__(
        self, config: Config, *, dump_folder: str, pp_schedule: str, **runtime: Any
    ) -> None:
        super().__init__(config, dump_folder=dump_folder, pp_schedule=pp_schedule, **runtime)
        rank = _get_metrics_rank(parallel_dims=self.parallel_dims, pp_schedule=pp_schedule)
        self._rows = Path(dump_folder, "metrics.jsonl")
        self._writes = torch.distributed.get_rank() == rank
        self._last = time.perf_counter()

    def log(self, step: int, global_avg_loss: float, *arguments: Any, **extra: Any) -> None:
        super().log(step, global_avg_loss, *arguments, **extra)
        now = time.perf_counter()
        if self._writes:
            row = {"step": step, "loss": global_avg_loss, "step_seconds": now - self._last}
            with self._rows.open("a") as rows:
                rows.write(json.dumps(row) + "\n")
        self._last = now


def parallelize(model: Any, **arguments: Any) -> Any:
    model = parallelize_llama(model, **arguments)
    seed_parameters(model, 0)
    mend_fsdp(model)
    if arguments["parallel_dims"].pp_enabled:
        send_contiguous(model)
    return model


def main(folder: str, layout: dict[str, int], steps: int) -> None:
    Path(folder).mkdir(exist_ok=True)
    torch.set_num_threads(1)
    parts = llama3(
        Llama3(
            dim=128,
            n_layers=6,
            n_heads=4,
            n_kv_heads=2,
            multiple_of=64,
            max_seq_len=8192,
            rope_theta=10000.0,
            rope_scaling="none",
        ),
        ArchitectureContext(vocab_size=320, seq_len=SEQ_LEN),
    )
    config = Trainer.Config(
        model_spec=ModelSpec(
            name="llama3",
            flavor="tiny",
            model=parts.model,
            parallelize_fn=parallelize,
            pipelining_fn=pipeline_llm,
            post_optimizer_build_fn=None,
            state_dict_adapter=parts.state_dict_adapter,
        ),
        dump_folder=folder,
        tokenizer=byte_level(Bytes()),
        dataloader=DocumentLoader.Config(
            source=dealt(source(Stdlib())), seed=0, global_batch_size=BATCH
        ),
        loss=CrossEntropyLoss.Config(global_vocab_size=320),
        optimizer=default_adamw(lr=3e-4),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2),
        training=TrainingConfig(
            steps=steps,
            seq_len=SEQ_LEN,
            global_batch_size=BATCH,
            local_batch_size=BATCH // layout["data_parallel_shard_degree"],
            disable_cuda_graphs=True,
            mixed_precision_param="float32",
        ),
        parallelism=ParallelismConfig(**layout),
        activation_checkpoint=None,
        comm=CommConfig(trace_buf_size=0),
        metrics=TimedMetrics.Config(log_freq=1),
        override=OverrideConfig(imports=["atom_kernels_torch.attention.dense_attention"]),
        debug=DebugConfig(seed=0),
    )
    trainer = config.build()
    trainer.train()
    trainer.close()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))
