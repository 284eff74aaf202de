"""Separate the user's mistakes from bugs.

A :class:`UserError` becomes one sentence on the screen and exit code 2; any other exception is a
bug: its traceback goes to the log, and the exit code is 1.
"""

import difflib
from collections.abc import Iterable

from atom.redaction import concealed


class UserError(Exception):
    """A mistake of the user, described in one sentence.

    Args:
        problem: what is wrong, without a final period; empty where ``valid`` says it all.
        valid: what would be valid instead.
        key: the configuration key at fault, such as ``architecture.n_heads``.
        value: the invalid value, if there is one.
        origin: where the value comes from: a file, or ``command line``. The command line sets it
            for the keys of a run.

    ``placed`` says that ``key`` is as the user wrote it, and not as a component calls its own.
    """

    def __init__(
        self,
        problem: str = "",
        *,
        valid: str | None = None,
        key: str | None = None,
        value: object = ...,
        origin: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.valid = valid
        self.key = key
        self.value = value
        self.origin = origin
        self.placed = False

    @property
    def told(self) -> str:
        """The problem and what would be valid: ``is too long; valid: at most 8``."""
        valid = [] if self.valid is None else [f"valid: {self.valid}"]
        return "; ".join([self.problem, *valid] if self.problem else valid)

    def sentence(self) -> str:
        """Return the sentence to show: ``KEY=VALUE (ORIGIN): PROBLEM; valid: VALID``."""
        if self.key is None:
            return one_line(concealed(self.told))
        what = self.key if self.value is ... else f"{self.key}={shown(self.value)}"
        where = f" ({self.origin})" if self.origin else ""
        return one_line(concealed(f"{what}{where}: {self.told}"))

    def __str__(self) -> str:
        return self.sentence()


class RunError(Exception):
    """A failed run, described in one sentence; the traceback is in the run's logs. Exit code 1."""


EX_STOPPED = 75
"""Exit code of a run that stopped on request: ``EX_TEMPFAIL`` of ``sysexits.h``, "try again"."""


class RunStoppedError(Exception):
    """A run that stopped early on request, with a checkpoint to resume from."""


def shown(value: object) -> str:
    """Return ``value`` in the syntax of the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{shown(key)}: {shown(one)}' for key, one in value.items())}}}"
    return one_line(str(value))


def one_line(text: str) -> str:
    """Return ``text`` with line breaks and other non-printing characters escaped.

    Names and values in it may come from untrusted files.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_MOST_LISTED = 24


def nearest(word: str, valid: Iterable[str], *, most: int = _MOST_LISTED) -> str:
    """Return a hint: the closest match of ``word`` in ``valid``, or the first ``most`` of them."""
    valid = sorted(set(valid))
    if close := difflib.get_close_matches(word, valid, n=3, cutoff=0.6):
        return f"did you mean {' or '.join(close)}?"
    if not valid:
        return "there are none"
    listed = ", ".join(valid[:most]) + (", …" if len(valid) > most else "")
    return f"valid: {listed}"
