"""Settings that would train something else than they say are refused, at once and in one sentence.

Torch is not needed to see any of these, so that each is said within a second.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

TINY = (
    "tokenizer=bytes",
    "training.seq_len=64",
    "training.global_batch_size=4",
    "device=cpu",
    "architecture.n_layers=2",
    "architecture.dim=64",
    "metrics=none",
)

WHOLE = "a whole number from 1"

NUMBERS: dict[str, tuple[str, ...]] = {
    # overrides, of which the last is at fault: what is said of it
    "training.max_norm=-1": ("a number above 0",),  # turned gradients round
    "training.max_norm=0": ("a number above 0",),
    "training.max_norm=inf": ("a number above 0",),
    "training.steps=-3": (WHOLE,),
    "training.steps=true": (WHOLE,),
    "training.steps=1e30": (WHOLE,),
    "training.local_batch_size=0": (WHOLE,),
    "training.global_batch_size=-2": (
        WHOLE,
        "-1 for local_batch_size sequences per data-parallel rank",
    ),
    "lr_scheduler.warmup_steps=-5": ("from 0 up",),
    "lr_scheduler.warmup_steps=101": ("the schedule's 100 steps", "at most 100"),
    "lr_scheduler.min_lr_factor=3": ("from 0 to 1",),
    "lr_scheduler.decay_ratio=-0.5": ("from 0 to 1",),
    "lr_scheduler.decay_ratio=nan": ("from 0 to 1",),
    "lr_scheduler.decay_ratio=0.004": ("less than one of the schedule's 100 steps", "0.01"),
    "lr_scheduler.warmup_steps=60 lr_scheduler.decay_ratio=0.5": ("leaves 40", "at most 0.4"),
    "lr_scheduler.total_steps=0": (WHOLE, "null for training.steps"),
    # The decay went on below 0, or back up to the peak.
    "training.steps=8 lr_scheduler.warmup_steps=2 lr_scheduler.total_steps=4": (
        "0 after that step",
        "training.steps=8",
        "lr_scheduler.min_lr_factor",
    ),
    "loss.num_chunks=7": ("must divide training.seq_len=64",),
    "parallelism=cp loss.num_chunks=64": ("a rank has 32",),
    "profiler.enable_profiling=true profiler.profiler_warmup=9 profiler.profile_freq=9": (
        "at least 10",
    ),
    # Traces and snapshots were never written.
    "training.steps=9 profiler.enable_profiling=true profiler.profile_freq=20": ("at step 20",),
    "optimizer.lr=inf": ("finite",),
    "optimizer.lr=nan": ("finite",),
    "optimizer.lr=true": ("finite",),
    "optimizer.betas=[2,0]": ("less than 1",),
    "optimizer.betas=[-0.1,0.9]": ("at least 0",),
    "optimizer.eps=0": ("greater than 0",),
    "optimizer.weight_decay=-0.1": ("at least 0",),
    "debug.seed=-1": ("from 0 up",),
    "metrics.log_freq=0": (WHOLE,),
    "checkpoint.interval=0": (WHOLE,),
    "checkpoint.keep_latest_k=1": ("from 2 up", "0 to keep all"),
    "comm.train_timeout_seconds=0": ("from 1 to 1000000000",),
    "activation_checkpoint=memory_budget activation_checkpoint.memory_budget=1.5": ("from 0 to 1",),
    "parallelism.tensor_parallel_degree=0": (WHOLE, "-1 for the remaining ranks"),
    "parallelism=pp parallelism.pipeline_parallel_microbatch_size=0": (WHOLE,),
    "architecture.rope_theta=inf": ("finite",),
    "architecture.n_heads=true": ("finite",),
    "launch.max_restarts=true": ("finite",),
    "launch.hang_seconds=inf": ("finite",),
}


PIPELINE = "has no effect with parallelism.pipeline_parallel_degree=1"

IGNORED: dict[str, tuple[str, ...]] = {
    "optimizer.momentum=0.5": (
        "has no effect with optimizer.name=AdamW",
        "optimizer.name=Dion or Muon",
    ),
    "optimizer.name=Adam optimizer.momentum=0.5": ("optimizer.name=Adam;",),
    "optimizer.name=Muon optimizer.momentom=0.5": ("is no key here", "momentum"),
    "parallelism.pipeline_parallel_schedule=2F2B": (PIPELINE, "valid: 1F1B"),
    "parallelism=fsdp launch.ranks=2 parallelism.pipeline_parallel_microbatch_size=2": (PIPELINE,),
    "parallelism.pipeline_parallel_layers_per_stage=1": (PIPELINE, "valid: null"),
    "parallelism.enable_sequence_parallel=false": ("parallelism.tensor_parallel_degree=1",),
    "parallelism.context_parallel_load_balancer=ptrr": ("parallelism.context_parallel_degree=1",),
    "parallelism=cp parallelism.context_parallel_ptrr_mask_key=causal": ("load_balancer=headtail",),
    "faults.spike_threshold=5": ("faults.spike=none",),
    "training.steps=50 faults.spike=skip": ("in the first faults.window=100 steps",),
    "training.steps=3 faults.replay_check_interval=100": ("training.steps=3, which are fewer",),
    "faults.budget=9": ("faults.spike=none and faults.non_finite=stop",),
    "faults.window=9": ("faults.spike=none and faults.non_finite=stop",),
    "training.gc_debug=true training.gc_freq=5": ("training.gc_debug=true",),
    "lr_scheduler.decay_ratio=0 lr_scheduler.decay_type=cosine": ("lr_scheduler.decay_ratio=0",),
    "activation_checkpoint.debug=true": ("activation_checkpoint.mode=none",),
    "activation_checkpoint=memory_budget activation_checkpoint.determinism_check=none": (
        "activation_checkpoint.mode=memory_budget",
    ),
    "checkpoint.enable=false checkpoint.interval=7": ("checkpoint.enable=false",),
    # Trained from scratch.
    "checkpoint.enable=false checkpoint.initial_load=runs/first": ("checkpoint.enable=false",),
    "checkpoint.keep_latest_k=0 checkpoint.keep_best=2": ("checkpoint.keep_latest_k=0",),
    "checkpoint.export_dtype=bfloat16": ("checkpoint.last_save_model_only=false",),
    "checkpoint.initial_load_in_hf=true": ("without checkpoint.initial_load",),
    # Only where a run went on did its ranks fail.
    "checkpoint.exclude_from_loading=[optimzer]": ("did you mean optimizer?",),
    "checkpoint.exclude_from_loading=[train_state]": ("dataloader, faults, lr_scheduler",),
    # Named the section, and ATOM's own file.
    "checkpoint.load_step=5": ("is always -1",),
    "checkpoint.folder=saved": ("is always checkpoint",),
    "checkpoint.create_seed_checkpoint=true": ("equal under every layout",),
    "compile.backend=eager": ("compile.enable=false",),
    "compile.enable=true compile.components=[modle]": ("did you mean model?",),
    "compile.enable=true compile.components=[]": ("nothing would be compiled",),
    "activation_checkpoint=full activation_checkpoint.determinism_check=all": ("default, none",),
    "comm.mode=local_tensor": ("nothing would be trained", "dry_run=true"),
    "comm.save_traces_folder=traces": ("comm.trace_buf_size=0, the default on a CPU",),
    "metrics.wandb_mode=offline": ("metrics.enable_wandb=false",),
    "metrics.save_tb_folder=board": ("without metrics.enable_tensorboard",),
    "profiler.profiler_active=2": ("profiler.enable_profiling=false",),
    "profile.steps=3 profiler.profile_freq=20": ("profile.steps=3, which sets it",),
    "profiler.enable_memory_snapshot=true": ("GPU memory",),
    "profiler.memory_snapshot_freq=5": ("profiler.enable_memory_snapshot=false",),
    "debug.deterministic_warn_only=true": ("debug.deterministic=false",),
    "debug.enable_structured_logging=false": ("its own log",),
}


TAKEN = (
    # The default, as a sweep over layouts may give it.
    "parallelism.pipeline_parallel_schedule=1F1B checkpoint.enable=false",
    # ATOM's own files.
    "+experiment=first_run parallelism=single launch.ranks=1",
    "activation_checkpoint=memory_budget activation_checkpoint.mode=none",
    "training.steps=3",
    # Not known before the layout is.
    "parallelism=auto parallelism.pipeline_parallel_schedule=GPipe",
    "parallelism=pp parallelism.pipeline_parallel_degree=-1 "
    "parallelism.pipeline_parallel_microbatch_size=2",
    "optimizer.name=Muon optimizer.momentum=0.9 optimizer.betas=[0.8,0.9]",
    "training.steps=8 lr_scheduler.total_steps=4 lr_scheduler.warmup_steps=2 "
    "lr_scheduler.min_lr_factor=0.1",
    "training.max_norm=1e9 training.steps=1e3 checkpoint.keep_latest_k=0 debug.seed=null",
)


@pytest.mark.parametrize("overrides", NUMBERS)
def test_numbers_out_of_range(overrides: str, forked: Callable, tmp_path: Path) -> None:
    refused(overrides, NUMBERS[overrides], forked, tmp_path)


@pytest.mark.parametrize("overrides", IGNORED)
def test_settings_without_effect(overrides: str, forked: Callable, tmp_path: Path) -> None:
    refused(overrides, IGNORED[overrides], forked, tmp_path)


@pytest.mark.parametrize("overrides", TAKEN)
def test_settings_that_are_taken(overrides: str, forked: Callable, tmp_path: Path) -> None:
    """They are not what is wrong with a run whose data is missing, which is looked at next."""
    missing = ("dataset=local", "dataset.path=/no/such/file")
    result = forked("train", *TINY, *missing, "run.dir=run", *overrides.split(), cwd=tmp_path)
    assert result.stderr.startswith("atom: dataset.path=/no/such/file"), result.stderr


def test_a_file_of_the_users_is_no_default(forked: Callable, tmp_path: Path) -> None:
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/slow.yaml").write_text(
        "# @package _global_\noptimizer:\n  momentum: 0.5\n"
    )
    result = forked("train", "--config-dir", "mine", "+experiment=slow", *TINY, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("atom: optimizer.momentum=0.5 ("), result.stderr
    assert "slow.yaml): has no effect with optimizer.name=AdamW" in result.stderr


def test_what_is_turned_off_by_hand_may_stand_in_a_file(forked: Callable, tmp_path: Path) -> None:
    """An experiment is tried with a part of it left out; a file that contradicts itself is none."""
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/saved.yaml").write_text(
        "# @package _global_\ncheckpoint:\n  interval: 5\nparallelism:\n"
        "  pipeline_parallel_degree: 2\n  pipeline_parallel_schedule: GPipe\n"
    )
    missing = ("dataset=local", "dataset.path=/no/such/file")
    own = ("--config-dir", "mine", "+experiment=saved")
    by_hand = ("checkpoint.enable=false", "parallelism.pipeline_parallel_degree=1")
    result = forked("train", *own, *TINY, *missing, *by_hand, cwd=tmp_path)
    assert result.stderr.startswith("atom: dataset.path=/no/such/file"), result.stderr


@pytest.mark.slow
def test_restarts_are_torchruns_under_torchrun(atom: Callable, port: int, tmp_path: Path) -> None:
    started = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    result = atom("train", *TINY, "run.dir=run", "launch.max_restarts=9", cwd=tmp_path, **started)
    assert result.returncode == 2, result.stderr
    assert "launch.max_restarts=9 (command line): has no effect under torchrun" in result.stderr


NOT_BEFORE_THE_LAYOUT = {
    "parallelism=auto parallelism.pipeline_parallel_schedule=GPipe": (PIPELINE, "valid: 1F1B"),
    "launcher=torchrun launch.hang_seconds=60": ("launcher.name=torchrun", "valid: 1800"),
    "launcher=torchrun launch.start_seconds=60": ("launcher.name=torchrun", "valid: 1800"),
}


@pytest.mark.parametrize("overrides", NOT_BEFORE_THE_LAYOUT)
def test_settings_without_effect_once_the_layout_is_known(
    overrides: str, atom: Callable, tmp_path: Path
) -> None:
    refused(overrides, NOT_BEFORE_THE_LAYOUT[overrides], atom, tmp_path)


@pytest.mark.parametrize("asked", ["optimizer.lr=inf,1", "dry_run=true optimizer.lr=1,2"])
def test_a_sweep_that_trains_nothing_leaves_nothing(
    asked: str, atom: Callable, tmp_path: Path
) -> None:
    result = atom("train", *TINY, "run.dir=runs/sweep", "-m", *asked.split(), cwd=tmp_path)
    assert result.returncode == (0 if "dry_run" in asked else 2), result.stderr
    assert not list(tmp_path.iterdir()), "something was left behind"


def refused(overrides: str, says: tuple[str, ...], forked: Callable, tmp_path: Path) -> None:
    """Check that the last override is refused at once: key and origin named, nothing written."""
    *_, last = overrides.split()
    result = forked("train", *TINY, "run.dir=run", *overrides.split(), cwd=tmp_path)
    said = result.stderr.strip()
    assert result.returncode == 2, said
    assert said.startswith(f"atom: {last.partition('=')[0]}"), said
    assert "command line" in said, said
    assert len(said.splitlines()) == 1, said
    for words in says:
        assert words in said, said
    assert not list(tmp_path.iterdir()), "something was left behind"
