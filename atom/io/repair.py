"""Repair other libraries: replace one of their attributes, with a record of the reason and expiry.

No other module assigns to an attribute of a library. A record names its target and keeps a digest
of the source that it was written for, so that a test can detect that a release has changed it. All
references are text: a record imports nothing until it is applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from atom.io.references import owner_of, resolve

_UNSET: Any = object()


@dataclass(frozen=True, kw_only=True)
class Repair:
    """One replaced attribute or changed setting of a library.

    Attributes:
        target: the replaced attribute: ``module:name`` or ``module:Class.name``.
        reason: the fault, in one sentence.
        version: the release with the fault, such as ``torchtitan 0.3.0``.
        upstream: the issue or pull request, or the text of one below ``docs/upstream/``.
        remove_when: the condition under which ATOM no longer needs the repair.
        applied: when it is in effect.
        where: the file of ATOM that applies it.
        replacement: ``module:name`` of the new value; None if the caller supplies it.
        function: ``module:function`` that applies a repair other than replacing an attribute.
        devices: the devices that need it.
        sources: the source locations that the repair was written for, with the digest of each: see
            :func:`atom.testing.repairs.digest`. Empty for targets not written in Python.
        probe: ``module:function`` that returns whether the fault still exists, in a process
            without repairs.
        unprobed: why there is no probe.
    """

    target: str
    reason: str
    version: str
    upstream: str
    remove_when: str
    applied: str
    where: str
    replacement: str | None = None
    function: str | None = None
    devices: tuple[str, ...] = ("cpu", "cuda")
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)
    probe: str | None = None
    unprobed: str = ""

    def __post_init__(self) -> None:
        assert (self.probe is None) == bool(self.unprobed), self.target

    def apply(self, value: Any = _UNSET) -> None:
        """Apply the repair to this process permanently.

        Args:
            value: the new value, if the record names no replacement.
        """
        if self.function is not None:
            resolve(self.function)()
            return
        owner, name = owner_of(self.target)
        setattr(owner, name, self._value(value))

    @contextmanager
    def replaced(self, value: Any = _UNSET) -> Iterator[Any]:
        """Apply the repair within the context; yield the original value.

        Args:
            value: as for :meth:`apply`.
        """
        assert self.function is None, self.target
        with replaced(self.target, self._value(value)) as before:
            yield before

    def original(self) -> Any:
        """Return the current value of the target."""
        return resolve(self.target)

    def _value(self, value: Any) -> Any:
        if self.replacement is None:
            assert value is not _UNSET, self.target
            return value
        assert value is _UNSET, self.target
        return resolve(self.replacement)


@contextmanager
def replaced(target: str, value: Any) -> Iterator[Any]:
    """Replace an attribute within the context; yield the original value.

    Args:
        target: ``module:name`` or ``module:Class.name``.
        value: the new value.
    """
    owner, name = owner_of(target)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield before
    finally:
        setattr(owner, name, before)
