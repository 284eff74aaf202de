"""Compare memory estimates with published numbers for H100s: a part of ``memory_estimate.py``."""

from __future__ import annotations

from dataclasses import dataclass, replace

GIB = 2**30
PUBLISHED_LIMIT = 0.10

SIZES = {
    "8B": {"dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 1024},
    "70B": {"dim": 8192, "n_layers": 80, "n_heads": 64, "multiple_of": 4096},
    "405B": {"dim": 16384, "n_layers": 126, "n_heads": 128, "multiple_of": 4096},
}
MULTIPLIER = {"8B": 1.3, "70B": 1.3, "405B": 1.2}


@dataclass(frozen=True)
class Published:
    """A row of torchtitan's tables: GiB as printed by its trainer (peak reserved memory)."""

    table: int
    what: str
    gib: float
    size: str
    seq_len: int
    batch: int
    mode: str
    dp: int
    tp: int = 1
    cp: int = 1
    pp: int = 1
    schedule: str = "1F1B"
    microbatches: int = 8


PUBLISHED = [
    Published(1, "FSDP", 82.4, "8B", 8192, 2, "selective", 8),
    Published(1, "FSDP, compile", 77.0, "8B", 8192, 2, "selective", 8),
    Published(1, "FSDP, compile, Float8", 76.8, "8B", 8192, 2, "selective", 8),
    Published(4, "2D, compile, Float8", 71.9, "70B", 8192, 16, "full", 32, tp=8),
    Published(4, "2D, compile, Float8, AsyncTP", 67.6, "70B", 8192, 16, "full", 32, tp=8),
    Published(2, "FSDP 8, CP 1", 83.9, "8B", 32768, 1, "full", 8),
    Published(2, "FSDP 4, CP 2", 84.2, "8B", 65536, 1, "full", 4, cp=2),
    Published(2, "FSDP 2, CP 4", 84.0, "8B", 131072, 1, "full", 2, cp=4),
    Published(2, "FSDP 1, CP 8", 84.5, "8B", 262144, 1, "full", 1, cp=8),
    Published(3, "FSDP", 67.0, "8B", 8192, 2, "selective", 128),
    Published(3, "FSDP, compile", 62.0, "8B", 8192, 2, "selective", 128),
    Published(3, "FSDP, compile, Float8", 61.8, "8B", 8192, 2, "selective", 128),
    Published(5, "3D, 1F1B", 82.5, "405B", 8192, 32, "full", 8, tp=8, pp=8),
    Published(
        5,
        "3D, Interleaved 1F1B",
        72.7,
        "405B",
        8192,
        32,
        "full",
        8,
        tp=8,
        pp=8,
        schedule="Interleaved1F1B",
    ),
    Published(6, "FSDP 8, CP 1", 75.3, "405B", 32768, 8, "full", 8, tp=8, pp=8),
    Published(6, "FSDP 4, CP 2", 75.9, "405B", 65536, 8, "full", 4, tp=8, cp=2, pp=8),
    Published(6, "FSDP 2, CP 4", 77.1, "405B", 131072, 8, "full", 2, tp=8, cp=4, pp=8),
    Published(6, "FSDP 1, CP 8", 84.9, "405B", 262144, 8, "full", 1, tp=8, cp=8, pp=8),
]


def estimated(row: Published) -> float:
    """Return the estimate of ``row``, in GiB."""
    from atom.titan.boot import boot

    boot("cpu")
    from torchtitan.config import ParallelismConfig, TrainingConfig

    from atom.plan.device import named
    from atom.recipe.run import parse
    from atom.registry.host import Host
    from atom.registry.select import select
    from atom.titan import trainer_config
    from atom.titan.planning import planning

    architecture = {
        "name": "llama3",
        "n_kv_heads": 8,
        "vocab_size": 128256,
        "max_seq_len": row.seq_len,
        "ffn_dim_multiplier": MULTIPLIER[row.size],
        **SIZES[row.size],
    }
    run = parse(
        {
            "architecture": architecture,
            "tokenizer": {"name": "bytes"},
            "dataset": {"name": "stdlib"},
            "parallelism": {"name": "mesh"},
            "optimizer": {"name": "AdamW"},
        }
    )
    selection = select(run, Host.load())
    training = TrainingConfig(seq_len=row.seq_len, local_batch_size=row.batch)
    parts = trainer_config.model_parts(selection, 256, row.seq_len)
    # In these runs FSDP kept the embedding, the last norm and the output layer in one group,
    # gathered for the whole step.
    model = replace(
        planning.description(parts, training), groups={("tok_embeddings", "norm", "lm_head"): True}
    )
    found = planning.estimate_of(
        run,
        selection,
        model,
        parts.model,
        named("h100"),
        ParallelismConfig(
            data_parallel_shard_degree=row.dp,
            tensor_parallel_degree=row.tp,
            context_parallel_degree=row.cp,
            pipeline_parallel_degree=row.pp,
            pipeline_parallel_schedule=row.schedule,
            pipeline_parallel_microbatch_size=row.batch // row.microbatches if row.pp > 1 else 1,
            # Layers were distributed without weights for embedding and output.
            pipeline_parallel_first_stage_less_layers=1,
            pipeline_parallel_last_stage_less_layers=1,
        ),
        training,
        global_batch_size=row.batch * row.dp,
        checkpointing=row.mode,
    )
    return found.memory.total / GIB


def published() -> tuple[list[str], bool]:
    """Return the rows of a table, and whether tables 1 and 4 are within limits."""
    rows = [
        "| table | model | what | published, GiB | estimated, GiB | error |",
        "| ---: | --- | --- | ---: | ---: | ---: |",
    ]
    good = True
    for row in PUBLISHED:
        gib = estimated(row)
        error = gib / row.gib - 1
        if row.table in (1, 4):
            good &= abs(error) <= PUBLISHED_LIMIT
        rows.append(
            f"| {row.table} | {row.size} | {row.what} | {row.gib} | {gib:.1f} | {error:+.1%} |"
        )
        print(rows[-1], flush=True)
    return rows, good
