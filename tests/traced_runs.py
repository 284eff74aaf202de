"""Settings of a small run that records its data and saves every second step."""

TRACED = (
    "tokenizer=bytes",
    "training.seq_len=64",
    "training.global_batch_size=4",
    "device=cpu",
    "architecture=llama3_tiny",
    "architecture.n_layers=1",
    "architecture.dim=64",
    "optimizer.lr=1e-3",
    "lr_scheduler.warmup_steps=1",
    "lr_scheduler.total_steps=20",
    "metrics=none",
    "data.trace=true",
    "checkpoint.interval=2",
)
