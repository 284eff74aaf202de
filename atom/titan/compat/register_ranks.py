"""List the repairs that a rank applies as it starts. Data only."""

from __future__ import annotations

from atom.io.repair import Repair

_PROBES = "atom.testing.probes.engine"

FRAMES = Repair(
    target="atom.titan.compat.frames:call_with_room.__code__",
    reason="Python frames lie in chunks of 16 KiB, which are mapped and unmapped each time that a "
    "call crosses the end of one.",
    version="Python 3.11",
    upstream="https://github.com/python/cpython/issues/142183",
    remove_when="Every Python that ATOM runs on keeps a freed chunk.",
    applied="to a rank, around all that it does",
    where="atom/titan/compat/frames.py",
    unprobed="tests/test_frames.py counts page faults; later releases of Python have none",
)
SWITCH_INTERVAL = Repair(
    target="sys:setswitchinterval",
    reason="A thread that saves in the background may keep the thread that trains from running for "
    "5 ms, each time that it comes back from a kernel.",
    version="Python 3.11",
    upstream="a setting of Python; nothing to report",
    remove_when="Python's own interval is half a millisecond.",
    applied="to a rank, as it starts",
    where="atom/launch/rank.py",
    probe=f"{_PROBES}:threads_switch_every_5_ms",
)
FREED_MEMORY = Repair(
    target="libc:mallopt",
    reason="glibc gives large blocks back to the kernel at once, and page faults fetch them again "
    "in the next step.",
    version="glibc 2.36",
    upstream="a setting of glibc; nothing to report",
    remove_when="torch keeps freed memory of a CPU for the next allocation.",
    applied="to a rank on a CPU, as it starts",
    where="atom/titan/compat/device.py",
    devices=("cpu",),
    probe=f"{_PROBES}:freed_memory_faults_again",
)
RENDEZVOUS = Repair(
    target="torch.distributed.rendezvous:_rendezvous_handlers",
    reason="torchtitan gives init_process_group no address, so that ranks of one machine could "
    "meet by an open port only, and not in a file of the user's own.",
    version="torchtitan 0.3.0",
    upstream="docs/upstream/rendezvous.md",
    remove_when="torchtitan's init_distributed takes a store or an init_method.",
    applied="to a rank of a run on one machine, as it starts",
    where="atom/launch/rendezvous.py",
    sources={
        "torch.distributed.rendezvous:_rendezvous_handlers": "2a5a951c",
        "torch.distributed.rendezvous:_rendezvous_helper": "62a65ac0.ce98a5f9",
        "torchtitan.distributed.utils:init_distributed": "289dd215.24042637",
    },
    probe=f"{_PROBES}:process_group_takes_no_address",
)
GROUP_THREADS = Repair(
    target="torch.distributed.distributed_c10d:_new_process_group_helper",
    reason="A trace of gloo names threads and no process groups.",
    version="torch 2.15.0",
    upstream="docs/upstream/gloo-trace.md",
    remove_when="gloo's events in a trace name their process group.",
    applied="to a rank, under profile.steps",
    where="atom/titan/train/profiling.py",
    sources={"torch.distributed.distributed_c10d:_new_process_group_helper": "feba1fa5.c21b3d1d"},
    probe=f"{_PROBES}:gloo_traces_name_no_group",
)
LOG_HANDLERS = Repair(
    target="torch._logging._internal:_init_logs",
    reason="torch's loggers have handlers of their own, which write to the terminal and not to "
    "the log of the run.",
    version="torch 2.15.0",
    upstream="how torch logs; nothing to report",
    remove_when="torch's loggers leave their records to the root logger.",
    applied="to a rank, as its logs are set up",
    where="atom/run_dir/logs.py",
    sources={
        "torch._logging._internal:_StderrHandler": "60d8141a",
        "torch._logging._internal:_init_logs": "5e51c8e5.e133e2db",
    },
    probe=f"{_PROBES}:torch_has_handlers_of_its_own",
)
STEP_LINES = Repair(
    target="torchtitan.components.metrics:MetricsProcessor.log",
    reason="Every rank logs the line of a step: thousands of equal lines.",
    version="torchtitan 0.3.0",
    upstream="docs/upstream/step-lines.md",
    remove_when="MetricsProcessor.log logs on the first rank only.",
    applied="to a rank other than the first, as its trainer is built",
    where="atom/titan/compat/log_filters.py",
    sources={"torchtitan.components.metrics:MetricsProcessor.log": "011d21c9.78ebf7ba"},
    probe=f"{_PROBES}:every_rank_logs_its_steps",
)

RANKS = (
    FRAMES,
    SWITCH_INTERVAL,
    FREED_MEMORY,
    RENDEZVOUS,
    GROUP_THREADS,
    LOG_HANDLERS,
    STEP_LINES,
)
