"""Run one node of a multi-node run: start its ranks, watch them, and report how they ended.

A launcher runs ``python -m atom.launch.node RUN --nodes N --node I --endpoint HOST:PORT`` once on
every node. It reads ``run.yaml``; it does not need the command line that submitted the run. The
exit codes are documented in :class:`atom.plugin.LaunchJob`.

A node does not restart its ranks: the ranks of the other nodes have to end first, and only the
system around all nodes (Slurm, Kubernetes, …) can ensure that.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from types import FrameType

from atom.errors import EX_STOPPED, UserError
from atom.io import strangers
from atom.io.files import make_folder
from atom.io.printing import protected
from atom.io.process import Child, call
from atom.launch.evaluations import Evaluations
from atom.launch.failure import Failure
from atom.launch.local import start_once
from atom.launch.machine import Machine
from atom.launch.stopper import Stopper
from atom.recipe import batches
from atom.recipe.run import Run, read
from atom.recipe.sections import Launch
from atom.run_dir import checkpoint, claim, events, logs, metrics, progress
from atom.run_dir.folder import RUN_FILE
from atom.run_dir.prepare import data_changed
from atom.watch.screen import Screen

_LOOK_SECONDS = 0.1


def main(arguments: list[str]) -> int:
    """Run one node to its end; return the exit code."""
    early = _Early()
    os.environ["PYTHONSAFEPATH"] = "1"  # for the processes that this one starts
    options = _parser().parse_args(arguments)
    try:
        strangers.check(options.run)
        run = read(options.run / RUN_FILE)
        machine = _machine(run, options)
        if machine.node == 0:
            claim.claim(options.run)
            _check_data(options.run)
        machine.wait_for_port()
    except UserError as error:
        print(f"atom: {error.sentence()}", file=sys.stderr, flush=True)
        return 2
    with ExitStack() as stack:
        scored: Evaluations | None = None
        if machine.node == 0:
            submit = shlex.split(options.evaluate) if options.evaluate is not None else None
            steps = run.training.steps
            scored = Evaluations(options.run, run.evaluation, steps, submit)
            stack.enter_context(closing(scored))
        failure = _start(options.run, run, machine, early, scored, attempt=options.attempt)
        # The ranks have handled repeated stop requests; another one would kill the interpreter as
        # it exits.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        code = _ended(options.run, machine, failure)
        if scored is not None and code == 0:
            scored.finish()
    return code


class _Early:
    """A handler for a stop request that arrives while torch is imported and no other handler
    exists.
    """

    def __init__(self) -> None:
        self._asked: signal.Signals | None = None
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._hear)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        self._asked = signal.Signals(number)

    def repeat(self) -> None:
        """Send this process the signal again, if it was received."""
        if self._asked is not None:
            signal.raise_signal(self._asked)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m atom.launch.node", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the run folder")
    parser.add_argument("--nodes", type=int, default=1, help="how many nodes there are")
    parser.add_argument("--node", type=int, default=0, help="which one this is, from 0")
    parser.add_argument("--endpoint", help="HOST:PORT, where the first node is reached")
    parser.add_argument(
        "--evaluate", help="a command that submits an evaluation; RUN and the step are appended"
    )
    parser.add_argument("--attempt", type=int, default=1, help="of this job, for the events")
    return parser


def _machine(run: Run, options: argparse.Namespace) -> Machine:
    if run.resolved is None:
        raise UserError(f"{options.run} holds a run that was not prepared; submit it again")
    world_size, nodes = run.resolved.world_size, options.nodes
    if world_size % nodes or not 0 <= options.node < nodes:
        raise UserError(
            f"node {options.node} of {nodes} is impossible: the nodes must have equal numbers of "
            f"the {world_size} ranks"
        )
    if nodes > 1 and options.endpoint is None:
        raise UserError("--endpoint HOST:PORT is needed, where the first node is reached")
    return Machine(world_size // nodes, nodes, options.node, options.endpoint)


def _check_data(folder: Path) -> None:
    """Refuse to resume with documents that differ from those of the checkpoints.

    A machine other than the submitting one may have different documents from the start; that is
    reported."""
    begun = bool(checkpoint.resumable(folder / checkpoint.FOLDER))
    changed = call(partial(data_changed, folder, adopt=not begun))
    if changed is None:
        return
    if begun:
        raise UserError(f"{folder}: {changed}", valid="the data as it was, or another run.dir")
    print(f"atom: {changed}", file=sys.stderr, flush=True)


def _start(
    folder: Path,
    run: Run,
    machine: Machine,
    early: _Early,
    scored: Evaluations | None,
    *,
    attempt: int,
) -> Failure | None:
    """Run the ranks of this node; draw the run's progress on the first node."""
    from atom.titan.boot import boot

    assert run.resolved is not None
    kind = run.resolved.device
    boot(kind)

    screen, begin, steps = Screen(), time.time(), run.training.steps
    screen.choose(run.metrics.show)
    screen.weigh(batches.batches(run, run.resolved.global_batch_size).sequences)
    first = machine.node == 0
    make_folder(folder / "logs")
    if first:
        screen.starting(f"starting {run.resolved.world_size:,} ranks", steps=steps)
        events.record(folder, events.STARTED, ranks=run.resolved.world_size, attempt=attempt)
    child = Child(partial(_logged, folder, machine, kind, run.launch))
    with Stopper(folder, screen, ask=partial(child.signal, signal.SIGUSR1)) as stopper:
        early.repeat()

        def ended() -> bool:
            stopper.repeat()
            step = progress.since(folder, begin, of_their_own=True) if first else None
            if step is not None:
                screen.reached(step)
            if scored is not None:
                scored.poll()
            return not child.working()

        if first:
            for row in metrics.follow(folder / metrics.FILE_NAME, stop=ended, from_now=True):
                screen.step(row)
        while not ended():
            time.sleep(_LOOK_SECONDS)
        screen.close()
        return child.result()


def _logged(folder: Path, machine: Machine, device: str, launch: Launch) -> Failure | None:
    logs.setup_launcher(folder / "logs" / f"node_{machine.node}.jsonl")
    return start_once(folder, machine, device, launch, verbose=False)


def _ended(folder: Path, machine: Machine, failure: Failure | None) -> int:
    """Record how the ranks of a node ended; return the exit code."""
    if failure is not None:
        events.record(
            folder,
            events.NODE_FAILED,
            node=machine.node,
            reason=failure.words,
            rank=failure.rank,
            raised=failure.raised,
            final=failure.final,
        )
        print(f"atom: {failure.words}", file=sys.stderr, flush=True)
        return 2 if failure.final else 1
    if machine.node != 0:
        return 0
    if words := events.stopped(folder):
        print(f"atom: {words}", file=sys.stderr, flush=True)
        return EX_STOPPED
    progress.finish(folder)
    return 0


if __name__ == "__main__":
    with protected():
        sys.exit(main(sys.argv[1:]))
