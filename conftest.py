"""What holds for every test, of the core and of the plugins."""

import atexit
import gc
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

from atom.titan.boot import boot

# A shell has its background jobs ignore Ctrl-C, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ENDS_AT_ONCE: list[bool] = []
"""Filled in processes whose exit code nobody reads."""


def _end() -> None:
    """End this process without taking the interpreter apart, which takes two seconds."""
    if ENDS_AT_ONCE:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


atexit.register(_end)  # before all others are, and so after them

# Several tests run at once, and tensors are small: more threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

LONGEST = (
    "tests/test_docs_as_read.py",
    "tests/test_new_journeys.py",
    "plugins/atom-kernels-triton/tests/test_conformance.py",
    "tests/test_golden.py",
    "tests/test_conformance_mutants_model.py",
    "tests/faults/test_faults.py",
    "tests/user_cases/test_models.py",
    "plugins/atom-kernels-adapters/tests/test_conformance.py",
    "plugins/atom-parallelism/tests/test_conformance.py",
    "plugins/atom-parallelism/tests/test_schedules.py",
    "tests/faults/test_kills.py",
    "tests/test_nodes.py",
    "plugins/atom-deepseek/tests/test_conformance.py",
    "plugins/atom-gpt-oss/tests/test_conformance.py",
    "plugins/atom-qwen3/tests/test_conformance.py",
    "plugins/atom-qwen3-5/tests/test_conformance.py",
    "plugins/atom-llama/tests/test_conformance.py",
    "plugins/atom-olmo/tests/test_conformance.py",
    "plugins/atom-objectives/tests/test_conformance.py",
    "plugins/atom-evaluators/tests/test_conformance.py",
    "plugins/atom-tokenizers/tests/test_conformance.py",
    "plugins/atom-datasets/tests/test_conformance.py",
    "plugins/atom-kernels-triton/tests/test_training.py",
    "tests/test_conformance_mutants_data.py",
    "tests/hostile/test_dataset.py",
    "tests/user_cases/resume/test_data.py",
    "tests/user_cases/resume/test_changed_settings.py",
    "tests/test_clouds.py",
    "tests/test_launch.py",
    "plugins/atom-kernels-adapters/tests/test_float8.py",
    "plugins/atom-kernels-adapters/tests/test_liger.py",
    "plugins/atom-kernels-triton/tests/test_numerics.py",
    "plugins/atom-tokenizers/tests/test_bpe.py",
    "plugins/atom-datasets/tests/test_huggingface.py",
    "plugins/atom-diagnostics/tests/test_conformance.py",
    "tests/test_load_memory.py",
)
"""These files take longest; they go first, so that no worker waits long for the last of another."""

KIND = pytest.StashKey[str]()
"""The device of this process."""


SLOW_FOLDERS = {"hostile", "slurm", "user_cases"}
"""Folders of `tests` in which every test is slow; the fast part does not import them."""

SLOW_FILE = "\npytestmark = pytest.mark.slow"
"""A file with this line has no other tests."""


def pytest_configure(config: pytest.Config) -> None:
    # torchtitan asks for its device as it is imported, and any test module may be the first to do
    # so (no conftest.py may). Tests in this process compute on the CPU; those that need a GPU start
    # processes of their own. But under `pytest -m gpu` kernels are compared here, on the GPU.
    kind = os.environ.get("ATOM_TEST_DEVICE", "cuda" if _selects_gpu(config) else "cpu")
    if kind not in ("cpu", "cuda"):
        raise pytest.UsageError(f"ATOM_TEST_DEVICE={kind}: is no device; valid: cpu, cuda")
    if kind == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise pytest.UsageError("torch finds no CUDA device here, which -m gpu needs")
    config.stash[KIND] = kind
    # On a busy machine an example takes any time.
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")
    if hasattr(config, "workerinput"):
        ENDS_AT_ONCE.append(True)
    # A process that hands tests out to others runs none.
    distributes = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")
    if not distributes and find_spec("torchtitan") is not None:
        gc.disable()  # until all is imported and collected
        boot(kind)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files and folders of slow tests alone, which need not be imported then."""
    if "not slow" not in config.getoption("markexpr"):
        return None
    if collection_path.is_dir():
        slow = collection_path.name in SLOW_FOLDERS
    else:
        slow = collection_path.match("test_*.py") and SLOW_FILE in collection_path.read_text()
    return True if slow else None


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    places = {file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))
    if config.stash[KIND] == "cuda":
        for item in items:
            # The kit's tests of a kernel that fits the device of this process.
            if "fitting" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.gpu)


def pytest_collection_finish() -> None:
    # What has been imported stays: a collection need not look at it, in this process and in those
    # that are forked from it, where it would make copies of it. To look for garbage before takes
    # half a second.
    gc.freeze()
    gc.enable()


atexit.register(gc.unfreeze)  # what nobody frees, a library may call a leak


def _selects_gpu(config: pytest.Config) -> bool:
    return config.getoption("markexpr").strip() == "gpu"
