"""What shells, schedulers and machines leave around a run: told, and never waited for in vain."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from atom.errors import UserError
from atom.io import environment as variables_of_atom
from atom.launch import joined

TINY = (
    "tokenizer=bytes",
    "training.seq_len=64",
    "training.global_batch_size=4",
    "device=cpu",
    "architecture.n_layers=2",
    "architecture.dim=64",
    "metrics=none",
)
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
HERE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SLURM = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "n1"}


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        ({}, None),
        (TORCHRUN | HERE, 2),
        (TORCHRUN | HERE | {"WORLD_SIZE": "1"}, 1),
        ({"RANK": "0", "WORLD_SIZE": "2"}, None),  # of machines: Kubeflow's, SkyPilot's
        (HERE, None),  # left over; ranks get ATOM's own
        (SLURM, 2),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),  # one of a job of two
        (SLURM | {"SLURM_STEP_ID": "4294967290"}, None),  # salloc's shell
        (SLURM | {"SLURM_STEP_ID": "4294967291"}, None),  # a batch script
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
    ],
)
def test_what_the_variables_mean(environment: dict[str, str], ranks: int | None) -> None:
    assert joined.world_size(environment) == ranks


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            TORCHRUN,
            "RANK, WORLD_SIZE, LOCAL_RANK are set, and MASTER_ADDR= MASTER_PORT= is no address of",
        ),
        (TORCHRUN | HERE | {"MASTER_PORT": "x"}, "RANK, WORLD_SIZE, LOCAL_RANK are set"),
        (TORCHRUN | HERE | {"RANK": "x"}, "RANK=x of WORLD_SIZE=2 is no rank; valid: env -u RANK"),
        (TORCHRUN | HERE | {"RANK": "2"}, "RANK=2 of WORLD_SIZE=2 is no rank"),
        (TORCHRUN | HERE | {"WORLD_SIZE": ""}, "RANK=0 of WORLD_SIZE= is no rank"),
        (SLURM | {"SLURM_NTASKS": "x"}, "SLURM_PROCID=0 of SLURM_NTASKS=x is no rank"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun has started 2 processes (OMPI_COMM_WORLD_SIZE)"),
        ({"PMI_SIZE": "4"}, "mpirun has started 4 processes (PMI_SIZE)"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    forked: Callable, tmp_path: Path, variables: dict[str, str], words: str
) -> None:
    result = forked("train", *TINY, cwd=tmp_path, timeout=20, **variables)
    assert result.returncode == 2, result.stdout
    assert result.stderr.startswith(f"atom: {words}"), result.stderr
    assert not list(tmp_path.iterdir())


def test_a_shell_of_srun_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: True)
    with pytest.raises(UserError, match=r"this shell is task 0 of 2 of a Slurm step"):
        joined.world_size(SLURM | {"SLURM_PTY_PORT": "1"})
    monkeypatch.setattr(os, "isatty", lambda _: False)  # srun in that shell
    assert joined.world_size(SLURM | {"SLURM_PTY_PORT": "1"}) == 2


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"ATOM_PLUGIN_ALLOW": "x"},
            "ATOM_PLUGIN_ALLOW=x in the environment is not a variable of ATO",
        ),
        ({"ATOM_PLUGIN_ALLOW": "x"}, "did you mean ATOM_PLUGINS_ALLOW?"),
        ({"ATOM_PLUGINS_ALOW": "x"}, "did you mean ATOM_PLUGINS_ALLOW?"),
        ({"ATOM_BLOCK": "x"}, "did you mean ATOM_PLUGINS_BLOCK?"),
        ({"ATOM_CACHE_DIR": "x"}, "did you mean ATOM_CACHE?"),
        ({"OMP_NUM_THREADS": "0"}, "OMP_NUM_THREADS=0 in the environment is no number of threads"),
        ({"OMP_NUM_THREADS": "x"}, "valid: a whole number from 1, or env -u OMP_NUM_THREADS"),
    ],
)
def test_variables_that_nobody_would_read_are_refused(
    forked: Callable, tmp_path: Path, variables: dict[str, str], words: str
) -> None:
    result = forked("train", *TINY, cwd=tmp_path, **variables)
    assert result.returncode == 2, result.stdout
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_variables_of_others_are_left_alone() -> None:
    # An editor's, a service's of Kubernetes, and lists and blanks as OpenMP takes them.
    others = ("ATOM_HOME", "ATOM_CACHE_SERVICE_HOST", "ATOM_DISABLE_SHELLING_OUT_FOR_ENVIRONMENT")
    variables_of_atom.check(dict.fromkeys((*others, *variables_of_atom.VARIABLES), "x"))
    for threads in ("1", " 8 ", "4,2", "", " "):
        variables_of_atom.check_threads({"OMP_NUM_THREADS": threads})


def test_an_account_without_a_home(tmp_path: Path) -> None:
    # A container's user that is in no list of accounts.
    code = (
        "import pwd, sys\n"
        "def nobody(_): raise KeyError\n"
        "pwd.getpwuid = nobody\n"
        "import atom.io.caches, atom.cli\n"
        "assert atom.cli.main(['plugins']) == 0\n"
        "print(atom.io.caches.folder())"
    )
    bare = {k: v for k, v in os.environ.items() if k not in ("HOME", "ATOM_CACHE")}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=bare | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(tmp_path / f"atom-{os.getuid()}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "waited_for"),
    [(TORCHRUN, "the other ranks"), (SLURM | {"SLURM_LOCALID": "0"}, "the other ranks")],
)
def test_ranks_that_never_come_are_waited_for_in_words(
    atom: Callable, tmp_path: Path, port: int, variables: dict[str, str], waited_for: str
) -> None:
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ATOM_JOIN_SECONDS": "3"}
    result = atom("train", *TINY, cwd=tmp_path, timeout=120, **variables, **here)
    assert result.returncode == 1
    told, ended = [line for line in result.stderr.splitlines() if line.startswith("atom: ")]
    assert told.startswith(f"atom: waiting for {waited_for}, at most 3 s (RANK=0, WORLD_SIZE=2")
    assert ended.startswith(f"atom: {waited_for} did not join within 3 s (RANK=0, WORLD_SIZE=2")
    assert "env -u " in told
    assert "env -u " in ended
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_rank_0_that_never_comes_is_told_and_nothing_else(
    atom: Callable, tmp_path: Path, port: int
) -> None:
    """torch printed a page of its own C++ before."""
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ATOM_JOIN_SECONDS": "2"}
    result = atom("train", *TINY, cwd=tmp_path, timeout=120, **TORCHRUN | {"RANK": "1"}, **here)
    assert result.returncode == 1
    told, ended = result.stderr.splitlines()
    assert told.startswith("atom: waiting for rank 0, at most 2 s (RANK=1, WORLD_SIZE=2")
    assert ended.startswith("atom: rank 0 did not join within 2 s (RANK=1, WORLD_SIZE=2")
    assert f"; 127.0.0.1:{port}: Connection refused); env -u RANK" in ended
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ranks_that_contradict_the_environment_are_refused(
    atom: Callable, tmp_path: Path, port: int
) -> None:
    one = TORCHRUN | {"WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    result = atom("train", *TINY, "launch.ranks=2", "parallelism=fsdp", cwd=tmp_path, **one)
    assert result.returncode == 2
    assert "launch.ranks=2 (command line): WORLD_SIZE in the environment says" in result.stderr
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------- the screen


@pytest.mark.slow
def test_a_terminal_that_ends_stops_a_run_as_sigterm_does(start: Callable) -> None:
    job = start("run", "training.steps=500")
    job.wait_for_step(2)
    for pid in job.members():  # the kernel sends it to all processes of a terminal
        os.kill(pid, signal.SIGHUP)
    code, _, said = job.end()
    assert code == 75, said
    assert list((job.place / "checkpoint").glob("step-*"))
    events = [json.loads(line) for line in (job.place / "events.jsonl").read_text().splitlines()]
    assert any("SIGHUP" in json.dumps(event) for event in events)
    assert "ended with signal" not in said


@pytest.mark.slow
def test_a_run_outlives_its_reader_and_under_nohup_its_terminal(
    environment: dict[str, str], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "atom", "train", *TINY, "training.steps=6", "run.dir=run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN) and None,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("llama3_tiny")
    process.stdout.close()  # as `| head -1` does
    process.send_signal(signal.SIGHUP)
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait(300) == 0, said
    assert said == ""
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 6
    assert (tmp_path / "run" / "checkpoint" / "step-6").is_dir()


# ---------------------------------------------------------------------------- the machine


@pytest.mark.parametrize(
    ("run_dir", "words"),
    [
        ("x" * 256, "cannot be a run folder (File name too long)"),
        ("file/run", "cannot be a run folder (Not a directory)"),
        ("loop/run", "cannot be a run folder ("),
        ("/proc/run", "cannot be written to"),
    ],
)
def test_a_folder_that_cannot_be(
    forked: Callable, tmp_path: Path, run_dir: str, words: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    result = forked("train", *TINY, f"run.dir={run_dir}", cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert f"run.dir={run_dir} (command line): {words}" in result.stderr


COMMANDS = [
    ["status", "{}"],
    ["logs", "{}"],
    ["stop", "{}"],
    ["compare", "{}", "{}"],
    ["report", "{}"],
    ["export", "{}", "--to", "hf", "--out", "out"],
    ["generate", "{}", "x"],
    ["runs", "{}"],
    ["new", "tokenizer", "mine", "--dir", "{}/x"],
    ["plugins", "lock", "{}/x"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_names_that_cannot_be_are_no_bugs(
    forked: Callable, tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    for name in ("x" * 256, "file/below", "é\udcff"):
        words = [word.replace("{}", name) for word in command]
        result = forked(*words, cwd=tmp_path)
        assert result.returncode in (0, 1, 2), result.stderr
        assert "this is a bug" not in result.stderr, (name, result.stderr)
        assert "Traceback" not in result.stderr
        if name != "é\udcff":
            assert result.returncode != 0


def test_a_removed_folder_is_told(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    for command in (["train", *TINY], ["runs"]):
        gone.mkdir(exist_ok=True)
        result = subprocess.run(
            ["bash", "-c", 'rmdir "$PWD"; exec "$@"', "-", sys.executable, "-m", "atom", *command],
            cwd=gone,
            capture_output=True,
            text=True,
        )
        assert "this is a bug" not in result.stderr, result.stderr
        if command[0] == "train":
            assert result.returncode == 2
            assert "the current folder has been removed" in result.stderr


def test_an_output_that_knows_ascii_only(tmp_path: Path) -> None:
    code = "import sys, atom.cli; sys.exit(atom.cli.main(sys.argv[1:]))"
    for command in (
        ["plugins"],
        ["kernels"],
        ["--help"],
        ["train", "run.dir=é/\n", "--cfg", "job"],
    ):
        result = subprocess.run(
            [sys.executable, "-c", code, *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr


def test_too_few_file_descriptors_are_no_bug(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "atom", "train", *TINY],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (10, 10)),
    )
    assert result.returncode == 1
    assert "Too many open files; `ulimit -n`" in result.stderr
    assert "bug" not in result.stderr


@pytest.mark.parametrize(
    ("launcher", "command"),
    [
        (["launcher=slurm"], "sbatch"),
        (["launcher=kubernetes", "launcher.image=x", "launcher.mounts=['v:{}']"], "kubectl"),
        (["launcher=skypilot", "launcher.mounts=['v:{}']"], "sky"),
    ],
)
def test_a_launcher_without_its_command_writes_nothing(
    atom: Callable, tmp_path: Path, launcher: list[str], command: str
) -> None:
    overrides = [word.replace("{}", str(tmp_path)) for word in launcher]
    result = atom(
        *("train", *TINY, *overrides, f"run.dir={tmp_path}/run"), cwd=tmp_path, PATH="/nowhere"
    )
    assert result.returncode == 2, result.stdout
    assert f"there is no command {command} on this machine" in result.stderr
    assert not list(tmp_path.iterdir())
