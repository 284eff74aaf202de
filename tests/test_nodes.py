"""A run on several nodes: how they meet, what is decided when they have ended, and their health."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atom.errors import EX_STOPPED, UserError
from atom.launch import health, links
from atom.launch.machine import Machine
from atom.launch.node import main as node
from atom.launch.verdict import EX_AGAIN, verdict
from atom.recipe.run import parse
from atom.run_dir import events, heartbeat, status

SECTIONS = {name: {"name": "any"} for name in ("architecture", "tokenizer", "dataset", "optimizer")}
SECTIONS["parallelism"] = {"name": "any"}


# ---------------------------------------------------------------------------- what is decided


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that may be started again twice in a row."""
    parse({**SECTIONS, "launch": {"max_restarts": 2}}).write(tmp_path / "run.yaml")
    return tmp_path


def failed(run: Path, *nodes: tuple[int, str, bool], after: int | None = None) -> None:
    """Write down a start whose ranks did the step ``after``, and which nodes failed."""
    events.record(run, events.STARTED, ranks=4, attempt=1)
    if after is not None:
        (run / "logs").mkdir(exist_ok=True)
        heartbeat.beat(run, after, 2, 64 * after)
        later = time.time() + 1
        os.utime(run / heartbeat.FILE_NAME, (later, later))
    for number, reason, raised in nodes:
        events.record(
            run,
            events.NODE_FAILED,
            node=number,
            reason=reason,
            rank=None,
            raised=raised,
            final=False,
        )


def test_the_cause_is_the_node_that_raised(run: Path) -> None:
    """Whatever the exit code of the whole: others were killed, or lost it."""
    lost, own = "rank 0 failed: Connection closed by peer", "rank 3 failed: ValueError: torn"
    failed(run, (0, lost, False), (1, own, True), after=1)
    assert verdict(run, 137) == (EX_AGAIN, f"{own} (node 1); restarting the ranks")
    last = events.read(run)[-1]
    assert (last["event"], last["restart"], last["step"]) == (events.FAILED, True, 1)
    failed(run, (1, own, True), after=1)
    assert verdict(run, 1) == (1, f"{own} (node 1); not restarted: it failed there before")


def test_restarts_are_counted_over_jobs(run: Path) -> None:
    codes = []
    for _ in range(3):
        failed(run)
        codes.append(verdict(run, 143)[0])
    assert codes == [EX_AGAIN, EX_AGAIN, 1]
    assert "exit code 143" in events.read(run)[-1]["reason"]


def test_ends_that_are_no_failure(run: Path) -> None:
    events.record(run, events.STARTED, ranks=4, attempt=1)
    events.record(run, events.STOPPED, step=3, reason="SIGUSR1")
    assert verdict(run, 75) == (EX_STOPPED, "")
    events.record(run, events.STARTED, ranks=4, attempt=1)
    events.record(run, events.FINISHED)
    assert verdict(run, 0) == (0, "")


def test_jobs_without_a_step_do_not_go_on_for_ever(run: Path) -> None:
    for _ in range(2):
        events.record(run, events.STARTED, ranks=4, attempt=1)
        events.record(run, events.STOPPED, step=3, reason="SIGUSR1")
    code, words = verdict(run, 75)
    assert code == 1
    assert words == "stopped twice after step 3: its jobs are too short for a step"


def test_nodes_that_were_lost_count_as_no_failure(run: Path) -> None:
    """Asked before the next start: where nodes wrote down no end, their machines are gone."""
    assert verdict(run) == (EX_AGAIN, "")
    for _ in range(5):
        failed(run)
        assert verdict(run) == (EX_AGAIN, "")
    failed(run, (1, "rank 3 failed: ValueError: torn", True), after=1)
    assert verdict(run)[0] == EX_AGAIN
    assert verdict(run) == (EX_AGAIN, ""), "judged twice, if the next start was lost as well"
    failed(run, (1, "rank 3 failed: ValueError: torn", True), after=1)
    code, words = verdict(run)
    assert code == 1
    assert words.endswith("not restarted: it failed there before")


def test_what_a_node_refuses_it_refuses_again(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node([str(run), "--nodes", "2", "--node", "0", "--endpoint", "here:1"]) == 2
    assert capsys.readouterr().err == (
        f"atom: {run} holds a run that was not prepared; submit it again\n"
    )
    assert verdict(run, 2) == (1, "the first node did not start (exit code 2)")


# ---------------------------------------------------------------------------- how they meet


def test_ranks_are_numbered_node_by_node() -> None:
    machine = Machine(8, nodes=1280, node=1279, endpoint="n0:29500")
    assert machine.first_rank == 10232


def test_a_port_in_use_is_told(port: int) -> None:
    """By the machine that is to listen there; what listens may be about to end."""
    Machine(1, endpoint=f"127.0.0.1:{port}").wait_for_port(0)
    for address in "127.0.0.1", "":
        with socket.create_server((address, port)) as taken:
            Machine(1, nodes=2, node=1, endpoint=f"127.0.0.1:{port}").wait_for_port(0)
            first = Machine(1, endpoint=f"n0:{port}")
            with pytest.raises(UserError) as refused:
                first.wait_for_port(0)
            assert refused.value.sentence() == (
                f"--endpoint n0:{port}: port {port} of this machine is in use; valid: a free one "
                "(launcher.port)"
            )
            threading.Timer(0.2, taken.close).start()
            first.wait_for_port(30)


@pytest.mark.slow
def test_two_nodes_train_as_one(
    port: int,
    atom: Callable,
    warm: Any,
    environment: dict[str, str],
    small: tuple[str, ...],
    rows: Callable,
    tmp_path: Path,
) -> None:
    """The command of ``launcher=torchrun`` as printed, and a node each by hand: the same losses."""
    layout = ("parallelism=fsdp", "launch.ranks=2")
    overrides = (*small, *layout, "launcher=torchrun", f"launcher.port={port}")
    run, other = tmp_path / "run", tmp_path / "other"
    result = atom("train", *overrides, "launcher.host=127.0.0.1", f"run.dir={run}")
    assert result.returncode == 0, result.stderr
    *_, comment, safe_path, command = result.stdout.splitlines()
    assert (comment, safe_path) == ("# on the machine", "export PYTHONSAFEPATH=1")
    done = subprocess.run(
        shlex.split(command), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = status.status(run)
    assert (told.state, told.step) == ("finished", 5)
    result = atom("train", *overrides, "launcher.nodes=2", f"run.dir={other}")
    assert "# on each of 2 machines" in result.stdout
    together = ("-m", "atom.launch.node", str(other), "--nodes", "2")
    nodes = [
        warm.start(
            [*together, "--node", str(number), "--endpoint", f"127.0.0.1:{port}"],
            cwd=tmp_path,
            environment=environment,
        )
        for number in range(2)
    ]
    ended = [(process.communicate(300), process.wait()) for process in nodes]
    assert [code for _, code in ended] == [0, 0], ended
    losses = [[row["loss"] for row in rows(place)] for place in (run, other)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 5


# ---------------------------------------------------------------------------- the launcher's keys


@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        ({"nodes": 2}, "launcher.nodes=2: applies only to remote launchers, and launcher=local"),
        ({"host": "a"}, "launcher.host=a: host is no key of launcher=local"),
        ({"name": "x", "time": "soon"}, "launcher.time=soon: must be MINUTES"),
        ({"name": "x", "nodes": 0}, "launcher.nodes=0: must be greater than 0"),
    ],
)
def test_a_wrong_key_is_told(launcher: dict, words: str) -> None:
    with pytest.raises(UserError) as refused:
        parse({**SECTIONS, "launcher": launcher})
    assert refused.value.sentence().startswith(words)


def test_numbers_become_words() -> None:
    found = parse({**SECTIONS, "launcher": {"name": "x", "time": 60, "environment": {"LEVEL": 1}}})
    assert (found.launcher.time, found.launcher.environment) == ("60", {"LEVEL": "1"})


def test_unknown_launchers_and_parameters_are_told(forked: Callable, tmp_path: Path) -> None:
    for override, words in (
        (
            "launcher=slurmm",
            "launcher=slurmm (command line): there is no such option; did you mean",
        ),
        ("launcher.nods=2", "launcher.nods=2 (command line): nods is no key here; did you mean"),
        ("launcher.gpus_per_node=8", "launcher.gpu"),
    ):
        overrides = ["launcher=slurm"] if "=slurm" not in override else []
        result = forked("train", *overrides, override, "tokenizer=bytes", cwd=tmp_path)
        assert result.returncode == 2, result.stdout
        assert result.stderr.startswith(f"atom: {words}"), result.stderr
        assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------- health


def test_gpus_are_judged_by_what_nvidia_smi_says() -> None:
    well = "0, 81559, 4, 0\n1, 81559, 0, [N/A]\n"
    assert list(health.judged(well, 2)) == []
    assert list(health.judged(well, 8)) == ["2 GPUs, 8 wanted"]
    ill = "0, 81559, 40000, 0\n1, 40536, 0, 3\n"
    assert list(health.judged(ill, 2)) == [
        "GPUs of unequal memory: 40536, 81559 MiB",
        "GPU 0 has 40000 MiB in use",
        "GPU 1 has 3 uncorrected memory errors",
    ]


def test_a_node_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    assert health.main([str(tmp_path), "--disk", "0.001"]) == 0
    assert capsys.readouterr().out == "atom-health n7 ok\n"
    health.main([str(tmp_path / "gone"), str(tmp_path), "--disk", "1e9"])
    said = capsys.readouterr().out
    assert said.startswith("atom-health n7 bad: ")
    assert "gone cannot be written to (No such file or directory)" in said
    assert "1e+09 wanted" in said
    monkeypatch.setenv("PATH", str(tmp_path))
    health.main([str(tmp_path), "--disk", "0.001", "--gpus", "8"])
    assert "bad: nvidia-smi fails" in capsys.readouterr().out


# ---------------------------------------------------------------------------- links between nodes


@given(st.integers(2, 1280))
def test_every_node_meets_others_that_agree_on_it(nodes: int) -> None:
    met: dict[int, set[int]] = {number: set() for number in range(nodes)}
    for turn in range(links.turns(nodes)):
        pairs = [links.pair_of(number, nodes, turn) for number in range(nodes)]
        for number, pair in enumerate(pairs):
            if pair is not None:
                assert number in pair
                other = sum(pair) - number
                assert other != number
                assert pairs[other] == pair
                met[number].add(other)
    assert min(map(len, met.values())) >= min(2, nodes - 1)


@pytest.fixture
def look_at_links(
    warm: Any, environment: dict[str, str], free_port: Callable[..., int]
) -> Callable[..., dict[str, str]]:
    """Run the check on nodes that are this machine; return what each says."""

    def run(*options: str, count: int = 3, silent: str = "", seconds: float = 60) -> dict[str, str]:
        turns = links.turns(count)
        used = [turn * links.PORTS + node for turn in range(turns) for node in range(count)]
        port = free_port(*used[1:])
        names = [f"n{number}" for number in range(count)]
        command = ["-m", "atom.launch.links", "--port", str(port), "--seconds", str(seconds)]
        command += [*options, *(f"{name}=127.0.0.1" for name in names)]
        nodes = {
            name: warm.start(
                command, cwd=Path(), environment=environment | {"SLURMD_NODENAME": name}
            )
            for name in names
            if name != silent
        }
        try:
            # Longer than the command itself takes, at most.
            most = turns * seconds + 60
            said = {name: process.communicate(most)[0] for name, process in nodes.items()}
        finally:
            for process in nodes.values():
                process.end()
        assert all(line.startswith(f"atom-links {name} ") for name, line in said.items())
        return {name: line.removeprefix(f"atom-links {name} ") for name, line in said.items()}

    return run


@pytest.mark.slow
def test_a_node_that_reaches_no_neighbour_is_found(
    look_at_links: Callable[..., dict[str, str]],
) -> None:
    """The silent node costs its neighbours the whole time of a pair: as long as all three pairs of
    the first look took, for this machine may be slow."""
    begin = time.monotonic()
    assert look_at_links() == dict.fromkeys(("n0", "n1", "n2"), "ok\n")
    seconds = max(8, time.monotonic() - begin)
    said = look_at_links(count=4, silent="n3", seconds=seconds)
    # Two of the others fail with n3, and agree with the third.
    assert said == dict.fromkeys(("n0", "n1", "n2"), "ok\n")


@pytest.mark.slow
def test_links_that_are_slow_are_told(look_at_links: Callable[..., dict[str, str]]) -> None:
    said = look_at_links("--least", "1e6")
    for line in said.values():
        assert re.match(r"bad: all-reduce with n\d runs at [\d.]+ GB/s, 1e\+06 wanted; all", line)
