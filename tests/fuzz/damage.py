"""Strategies: values of JSON, and bytes damaged here and there."""

from __future__ import annotations

from hypothesis import strategies as st

from atom.errors import UserError

_INTEGERS = st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64, 10**30, -(10**30)])
_FLOATS = st.floats() | st.sampled_from([1e308, -0.0])
_TEXT = st.text(max_size=12) | st.sampled_from(["", "\x00", "\x1b]52;c;", "\u202e", "é", "../x"])

json_values: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | _INTEGERS | _FLOATS | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """``content`` with up to six changes: a byte set, bytes cut, added, doubled or nested."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["set", "cut", "end", "add", "double", "nest"])):
            case "set":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "cut":
                del data[at : at + draw(st.integers(1, 16))]
            case "end":
                del data[at:]
            case "add":
                data[at:at] = draw(st.binary(max_size=8) | st.sampled_from(_PIECES))
            case "double":
                length = draw(st.integers(1, 64))
                data[at:at] = data[at : at + length]
            case "nest":
                data[at:at] = draw(st.sampled_from([b"[", b'{"a":'])) * draw(
                    st.sampled_from([10, 1000, 100_000])
                )
    return bytes(data)


_PIECES = [
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"NaN",
    b"1e999",
    b"9" * 5000,
    b"null",
    b'""',
    b"\n",
    b"\r",
]


def is_one_sentence(error: UserError) -> None:
    """Look that a mistake is told in one line."""
    assert "\n" not in error.sentence(), error.sentence()
