"""Resolve the mixture of a run: its sources in their order, and its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from atom.data.dealing import dealt, readings
from atom.data.documents import not_stored, stored
from atom.data.ids import check_some
from atom.data.mixing import MOST_SEQUENCES, Schedule, key_of, leaves, shares
from atom.data.packing import Packing
from atom.errors import UserError
from atom.plugin import Contents, LaneSource
from atom.recipe.batches import Batches
from atom.recipe.resolved import Mixed, MixedSource, MixedStage
from atom.recipe.run import read


def saved_sources(run_file: Path) -> list[str]:
    """Return the sources of the run of a ``run.yaml``, in their order; none if it mixes none."""
    resolved = read(run_file).resolved
    return resolved.mixture.names if resolved is not None and resolved.mixture is not None else []


def resolve(
    source: LaneSource,
    *,
    lanes: int,
    seq_len: int,
    steps: int,
    contents: Contents | None = None,
    earlier: Sequence[str] = (),
    packing: Packing = "concat",
    begin: int = 0,
    vocab_size: int | None = None,
    batches: Batches | None = None,
) -> Mixed | None:
    """Return the mixture that a run reads; None if its source is none.

    Args:
        source: the source.
        lanes: sequences of the global batch.
        seq_len: tokens of a sequence.
        steps: steps of the run.
        contents: the contents of the source.
        earlier: the sources of the resumed run, in the order of the checkpoint's positions.
        packing: how documents become sequences.
        begin: the number of steps before the first that reads the mixture.
        vocab_size: of the tokenizer, to check stored tokens; None: they are not checked.
        batches: the sequences of each step; None: ``lanes``.

    Raises:
        UserError: the stages do not fit the run, a source would be read too often, or one has text
            where stored tokens are needed.
    """
    batches = batches or Batches((), lanes, seq_len)
    # A mixture counts how often all lanes are read, which is once a step without a schedule.
    read, rest = divmod(batches.sequences(steps) - batches.sequences(begin), lanes)
    begun, rounds = batches.rounds(begin), batches.rounds(steps, begin)
    try:
        mixture = leaves(source, lanes * seq_len, rounds, begun)
    except UserError as error:
        if batches.constant:
            raise
        error.problem += f" (with training.batch_schedule, {lanes} sequences count as a step)"
        raise
    if mixture is None:
        return None
    if len(mixture.stages) > 1 and not batches.constant:
        raise UserError(
            "is not possible with stages of a mixture, which count steps of one size",
            valid="a mixture without dataset.stages, or a branch (resume.from) for each stage",
            key="training.batch_schedule",
        )
    if lanes > MOST_SEQUENCES:
        raise UserError(
            "is more than a mixture can divide",
            valid=f"at most {MOST_SEQUENCES:,}",
            key="training.global_batch_size",
            value=lanes,
        )
    for name, each in mixture.sources.items():
        tokens = stored(dealt(each))
        if packing == "windows" and tokens is None:
            raise not_stored(key_of(name))
        if tokens is not None and vocab_size is not None:
            check_some(tokens, vocab_size, key_of(name))
    names = [name for name in earlier if name in mixture.sources]
    names += [name for name in mixture.sources if name not in names]
    # The seed changes the lanes of the sources, and not their numbers.
    schedule = Schedule(names, mixture.stages, lanes, seed=0)
    told = contents.sources if contents is not None else {}
    sources = [
        _checked(
            MixedSource(
                name=name,
                tokens=(
                    schedule.before(begun + read, number)
                    - schedule.before(begun, number)
                    + int((schedule.choice(begun + read, slice(rest)) == number).sum())
                )
                * seq_len,
                documents=told[name].documents if name in told else None,
                epoch_tokens=_predicted(told[name], packing) if name in told else None,
                max_repetitions=mixture.max_epochs.get(name),
            ),
            rounds - begun,
            1 if packing == "windows" else readings(dealt(mixture.sources[name]), lanes),
        )
        for number, name in enumerate(names)
    ]
    stages = [
        MixedStage(
            name=stage.name,
            first_step=(max(stage.step, begin) if batches.constant else begin) + 1,
            shares=_shares(names, stage.weights),
        )
        for stage in mixture.stages[schedule.stage(begun) :]
    ]
    return Mixed(sources=sources, stages=stages)


def _predicted(contents: Contents, packing: Packing) -> int | None:
    """Return the number of tokens that an epoch of a source predicts; None if it is unknown.

    Without packing, a sequence has the tokens of one document, however few.
    """
    if contents.tokens is None or packing == "none":
        return None
    return max(contents.tokens - (contents.documents or 0), 0) or None


def _shares(names: Sequence[str], weights: Mapping[str, float | Fraction]) -> dict[str, float]:
    pairs = zip(names, shares(names, weights), strict=True)
    return {name: float(share) for name, share in pairs if share}


def _checked(source: MixedSource, steps: int, readings: int) -> MixedSource:
    """Refuse a source that the run would read too often.

    Args:
        source: the source.
        steps: the steps that read the mixture.
        readings: how often a document is read by the time all sequences have read their documents.
    """
    times, most = source.repetitions, source.max_repetitions
    if times is None and most is not None and source.tokens and readings > most:
        shared = f"{readings} sequences of a step read the same document, and " * (readings > 1)
        raise UserError(
            f"{shared}its tokens are not known in advance, so that whole readings are counted",
            valid=f"at least {readings}; or dataset=prepared, which reports its tokens, packed",
            key=f"{key_of(source.name)}.max_repetitions",
            value=most,
        )
    if times is not None and most is not None and times > most:
        raise UserError(
            f"{steps:,} steps read {source.tokens:,} tokens of it, which has "
            f"{source.epoch_tokens:,} to predict: {times:.2f} times",
            valid=f"at least {times:.2f}, a smaller weight, or fewer steps",
            key=f"{key_of(source.name)}.max_repetitions",
            value=most,
        )
    return source
