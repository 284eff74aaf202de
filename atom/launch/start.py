"""Start a run: check it, write its folder, start the ranks, and watch them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from atom.io import environment
from atom.io.process import Child, call
from atom.io.terminal import say
from atom.launch import evaluations, local
from atom.launch.announcements import News
from atom.launch.stopper import Stopper
from atom.plugin import Callback, Dataset, Optimizer
from atom.recipe import batches
from atom.recipe.run import Run
from atom.recipe.settings import FOLLOW
from atom.registry.host import Host
from atom.registry.select import check_callbacks, select, written_out
from atom.run_dir import branch, events, folder, logs, metrics, progress, resume
from atom.run_dir.changes import Change
from atom.run_dir.inputs import Inputs
from atom.run_dir.prepare import prepare
from atom.watch import mixture_rows
from atom.watch.screen import Header, Screen

if TYPE_CHECKING:
    from atom.plan.device import DeviceDescription
    from atom.titan.preflight.preflight import Preflight

_OF_NO_INTEREST = (*FOLLOW, "launcher.")


def train(
    run: Run, host: Host, place: Path, choices: dict[str, str], *, verbose: bool = False
) -> None:
    """Train ``run`` in the folder ``place``, on ranks of this machine.

    Args:
        run: the composed run.
        host: the plugins.
        place: the run folder, new or to resume.
        choices: the options that Hydra chose, for the header.
        verbose: show torchtitan's own log of rank 0.

    Raises:
        UserError: the run is invalid, and nothing has been written.
        RunError: a rank failed.
    """
    ready = prepare_folder(run, host, place, choices)
    if ready is None:
        return
    ranks = Child(partial(_start, place, ready, verbose=verbose))
    screen = Screen(verbose=verbose)
    scored = evaluations.Evaluations(place, ready.run.evaluation, ready.steps)
    with closing(scored):
        with Stopper(place, screen, ask=lambda: ranks.signal(signal.SIGUSR1)) as stopper:

            def ended() -> bool:
                stopper.repeat()
                scored.poll()
                return not ranks.working()

            try:
                follow(ready, screen, ended, ranks.result)
            except BaseException:
                ranks.terminate()
                raise
        scored.finish()


def follow(
    ready: Preflight, screen: Screen, ended: Callable[[], bool], result: Callable[[], None]
) -> None:
    """Show the progress of a run.

    Args:
        ready: the run, with its folder written.
        screen: the output.
        ended: returns whether the ranks have ended.
        result: raises the failure of the ranks, if any; the summary is then omitted.
    """
    place = ready.place
    begin, started = time.monotonic(), time.time()
    before = len(events.read(place))
    ranks = ready.resolved.world_size
    news = News(place, screen)
    screen.choose(ready.run.metrics.show)
    screen.weigh(batches.batches(ready.run, ready.resolved.global_batch_size).sequences)
    try:
        screen.starting(f"starting {ranks:,} rank{'s' * (ranks > 1)}", steps=ready.steps)

        def stop() -> bool:
            over = ended()
            news.tell()
            if (step := progress.since(place, started, of_their_own=True)) is not None:
                screen.reached(step)
            return over

        for row in metrics.follow(place / metrics.FILE_NAME, stop=stop, from_now=True):
            screen.step(row)
        result()
    finally:
        screen.close()
        news.close()
    under_way = (e for e in events.read(place)[before:] if e["event"] == events.UNDER_WAY)
    screen.summary(
        metrics.read(place / metrics.FILE_NAME),
        str(place),
        time.monotonic() - begin,
        began=next((event["step"] for event in under_way), None),
    )


@dataclass(frozen=True)
class Prepared:
    """A checked run and the files that its folder will hold."""

    ready: Preflight
    files: Mapping[str, Path]
    """Files of the tokenizer."""

    inputs: Inputs
    resumption: resume.Resumption | None
    done: resume.Done | None
    """The finished state if nothing is left to train, in which case nothing is written; None
    otherwise.
    """


def check(
    run: Run,
    host: Host,
    place: Path,
    *,
    ranks: int | None = None,
    planned: DeviceDescription | None = None,
) -> Prepared:
    """Check everything about ``run`` that can be known before ranks start, and write nothing.

    Args:
        run: the composed run.
        host: the plugins.
        place: the run folder.
        ranks: number of ranks that an external launcher has started; None if ATOM starts them.
        planned: the device of the ranks, if this machine does not have it.

    Raises:
        UserError: the run is invalid.
    """
    folder.check_usable(place)
    run = resume.with_order(place, branch.with_origin(place, run))
    selection = select(run, host)
    evaluations.check(run, host)
    check_callbacks(run, selection)
    run = written_out(run, selection)
    checked = partial(
        resume.check,
        place,
        dataset=selection[Dataset],
        callbacks=selection.many(Callback),
        optimizer=selection[Optimizer],
    )
    checked(run)
    prepared = call(partial(prepare, selection, run))
    resumption = checked(run, prepared.inputs)
    run = run.using(prepared.opened)
    # torch is imported only here: every earlier error was reported within a second.
    from atom.titan.preflight.preflight import preflight

    ready = preflight(
        run,
        selection,
        host,
        place,
        tokenizer=prepared.tokenizer,
        contents=prepared.contents,
        resumption=resumption,
        joined=ranks,
        planned=planned,
    )
    return Prepared(
        ready,
        prepared.tokenizer.files,
        prepared.inputs,
        checked(ready.run, prepared.inputs),
        resume.done(place, ready.run, ready.steps, prepared.inputs),
    )


def write(prepared: Prepared, host: Host, choices: dict[str, str]) -> None:
    """Write the run's folder, and show the run."""
    ready, resumption = prepared.ready, prepared.resumption
    folder.create(
        ready.run,
        host,
        ready.place,
        tokenizer=prepared.files,
        read_by_it=prepared.inputs,
        resumed=resumption.step if resumption else 0,
        contents=resumption.contents if resumption else {},
        forced=resumption.forced if resumption else (),
    )
    if resumption is not None and resumption.start.branch:
        settings = {c.key: [c.before, c.after] for c in _shown(resumption)}
        branch.adopt(resumption.start, ready.place, settings=settings, data=resumption.anew)
    if ready.explanation:
        say(f"{ready.explanation}\n")
    screen = Screen()
    screen.header(_header(ready, choices, resumption.step if resumption else None))
    if ready.warning:
        screen.note(ready.warning)
    if resumption is not None:
        _tell_changes(resumption, screen)


def prepare_folder(
    run: Run, host: Host, place: Path, choices: dict[str, str], *, ranks: int | None = None
) -> Preflight | None:
    """Check ``run`` and write its folder: :func:`check`, then :func:`write`.

    Returns:
        The run; None if nothing is left to train, which is reported.

    Raises:
        UserError: the run is invalid, and nothing has been written.
    """
    environment.check_threads()
    prepared = check(run, host, place, ranks=ranks)
    if prepared.done is not None:
        print(prepared.done.sentence(place), flush=True)
        return None
    write(prepared, host, choices)
    return prepared.ready


def _tell_changes(resumption: resume.Resumption, screen: Screen) -> None:
    """Show the settings that differ from those of the resumed run."""
    if resumption.unknown:
        screen.note(
            f"The checkpoint of step {resumption.step} has no digests of the dataset and the "
            "tokenizer, because an older ATOM saved it: changes of them cannot be detected.\n"
        )
    for name, words in resumption.contents.items():
        screen.note(
            f"{name}: differs from that of the checkpoint ({words}), allowed by resume.force\n"
        )
    if resumption.start.branch:
        why = f"begins anew ({'; '.join(resumption.anew)})" if resumption.anew else "continues"
        screen.note(f"begun from step {resumption.step} of {resumption.start.folder}: data {why}\n")
    shown = _shown(resumption)
    for title, kinds in (
        ("changed, with an effect on the losses:", ("matters", "refused")),
        ("changed:", ("harmless",)),
        ("changed, without effect on a resumed run:", ("unused",)),
    ):
        if of_kind := [change for change in shown if change.kind in kinds]:
            screen.note("\n".join([title, *(f"  {change}" for change in of_kind), ""]))


def _shown(resumption: resume.Resumption) -> list[Change]:
    return [c for c in resumption.changes if not c.key.startswith(_OF_NO_INTEREST)]


def _start(place: Path, ready: Preflight, *, verbose: bool) -> None:
    logs.setup_launcher(place / "logs" / "launcher.jsonl")
    ranks, device = ready.resolved.world_size, ready.resolved.device
    local.start(place, ranks, device, ready.run.launch, verbose=verbose)


def _batch(of: batches.Batches, ready: Preflight) -> str:
    """Return the batch of a step in words; with a schedule, of the first and the last one."""
    first, last = of.size(1), of.size(ready.steps)
    if len(of.counts(ready.steps)) == 1:
        return f"{first} sequences × {ready.seq_len} tokens = {of.tokens(1):,} tokens a step"
    return (
        f"{first} to {last} sequences × {ready.seq_len} tokens = {of.tokens(1):,} to "
        f"{last * ready.seq_len:,} tokens a step"
    )


def _header(ready: Preflight, choices: dict[str, str], resumed_from: int | None) -> Header:
    run, resolved = ready.run, ready.resolved

    def chosen(group: str) -> str:
        name, option = getattr(run, group).name, choices.get(group)
        return f"{option} ({name})" if option and option != name else name

    partial = resolved.kernels_partial
    of = batches.batches(run, resolved.global_batch_size)
    degrees = resolved.degrees
    # Expert parallelism shares ranks with other dimensions, so it is not a factor of the world
    # size.
    experts = run.parallelism.expert_parallel_degree or 1
    return Header(
        run_dir=str(ready.place),
        model=chosen("architecture"),
        parameters=ready.parameters,
        tokenizer=chosen("tokenizer"),
        vocab_size=resolved.vocab_size,
        dataset=chosen("dataset"),
        read=mixture_rows.contents(resolved.data),
        licence=(resolved.data.licence or "") if resolved.data else "",
        left_out=resolved.data.left_out if resolved.data else (),
        sources=mixture_rows.sources(resolved.mixture) if resolved.mixture else (),
        stages=mixture_rows.stages(resolved.mixture) if resolved.mixture else (),
        device=_device(ready),
        ranks=resolved.world_size,
        layout=[
            ("dp_replicate", degrees["data_parallel_replicate_degree"]),
            ("dp_shard", degrees["data_parallel_shard_degree"]),
            ("tp", degrees["tensor_parallel_degree"]),
            ("pp", degrees["pipeline_parallel_degree"]),
            ("cp", degrees["context_parallel_degree"]),
            *([("ep", experts)] if experts > 1 else []),
        ],
        schedule=ready.schedule,
        batch=_batch(of, ready),
        steps=ready.steps,
        validation=run.validation.described,
        kernels=[
            (f"{operation} ({part})" if (part := partial.get(operation)) else operation, kernel)
            for operation, (kernel, _) in ready.kernels.items()
        ],
        rejected=[
            (operation, kernel, reason)
            for operation, kernels in resolved.kernels_rejected.items()
            for kernel, reason in kernels.items()
            # Do not report that a CPU cannot run CUDA kernels.
            if not reason.endswith(f"and this is {resolved.device}")
        ],
        resumed_from=resumed_from,
    )


def _device(ready: Preflight) -> str:
    """Return the device to show, and why it is not a GPU although GPUs are present."""
    import torch

    device, ranks = ready.resolved.device, ready.resolved.world_size
    if ready.run.device == "auto" and device == "cpu" and (count := torch.cuda.device_count()):
        return f"{device} ({count} GPUs are too few for {ranks} ranks)"
    return device
