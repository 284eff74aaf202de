"""A checkpoint's index from a stranger: whatever it holds, nothing happens but a refusal."""

from __future__ import annotations

import copyreg
import io
import os
import pathlib
import pickle
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint import state_dict_saver as dcp
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorProperties

from atom.errors import UserError
from atom.titan.checkpoint.dcp import AtomicWriter, SafeReader
from atom.titan.checkpoint.dcp_index import HostileCheckpointError, parse
from atom.titan.saved_model import Checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small checkpoint, as ATOM writes it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    values = {
        "weight": torch.arange(6.0).reshape(2, 3),
        "half": torch.zeros(4, dtype=torch.bfloat16),
        "nested": {"step": 3, "words": ["a", {"deep": True}]},
    }
    dcp.save(values, storage_writer=AtomicWriter(folder, 1, model_only=False), no_dist=True)
    return folder / "step-1"


def test_it_reads_what_dcp_reads(place: Path) -> None:
    """The oracle is DCP's own reader, of an index that is to be trusted."""
    ours, theirs = SafeReader(place).read_metadata(), FileSystemReader(place).read_metadata()
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.planner_data == theirs.planner_data
    assert ours.storage_data == theirs.storage_data
    assert list(ours.storage_data) == list(theirs.storage_data)


class Call:
    """Unpickled as ``function(*arguments)``."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.made = (function, arguments)

    def __reduce__(self):
        return self.made


def build(target: str, state: object) -> bytes:
    """Return a pickle that sets ``state`` on the class ``module name``, by protocol 0's letters."""
    module, name = target.split()
    body = pickle.dumps(state, protocol=2)[2:-1]  # without PROTO and STOP
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + body + b"b."


_METADATA = "torch.distributed.checkpoint.metadata"

HOSTILE = {
    "calls a command": pickle.dumps(Call(os.system, "touch canary")),
    "calls eval": pickle.dumps(Call(eval, "open('canary', 'w')")),
    "sets attributes of a class, by slots": build("pathlib PosixPath", (None, {"name": "x"})),
    "sets attributes of a class": build("pathlib PurePosixPath", {"name": "x"}),
    "sets a method of DCP's": build(f"{_METADATA} Metadata", (None, {"__init__": None})),
    "sets an attribute of an enumeration": build(f"{_METADATA} _MEM_FORMAT_ENCODING", {"x": 1}),
    "opens a file": pickle.dumps(Call(open, "canary", "w")),
    "walks attributes": b"\x80\x04\x8c\x07pathlib\x8c\x12PosixPath.__init__\x93.",
    "an extension code": b"\x80\x02\x82\x01.",
    "a persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "is a path": pickle.dumps(pathlib.PosixPath("/etc/passwd")),
    "is a number": pickle.dumps(1),
    "is empty": b"",
    "is no pickle": b"\0" * 64,
    "asks for a memo of many gigabytes": b"\x80\x02Nr\xff\xff\xff\x3f.",
    "asks for a text of many gigabytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**45) + b"a.",
    "nests a hundred thousand lists": b"\x80\x02" + b"(" * 10**5 + b"l" * 10**5 + b".",
    "multiplies": b"\x80\x02K\x01" + b"\x940" * 4 + b"(" + b"2" * 10**6 + b"t.",
    "reconstructs an object": pickle.dumps(Call(copyreg._reconstructor, object, object, None)),
    "sets a size below zero": pickle.dumps(
        Metadata({}, storage_data={MetadataIndex("a", torch.Size([1]), -1): None})
    ),
    "no tensors": pickle.dumps(Metadata({"a": OrderedDict()})),
    "properties alone": pickle.dumps(TensorProperties()),
    "a metadata of nothing": pickle.dumps(Metadata.__new__(Metadata)),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_nothing_happens(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No canary is written, no event of the interpreter is one of a file, a process, an import."""
    monkeypatch.chdir(tmp_path)
    before = {name: getattr(pathlib.PosixPath, name) for name in ("name", "__init__", "parent")}
    seen: list[str] = []
    _listen(seen)
    try:
        with pytest.raises(HostileCheckpointError):
            parse(content)
    finally:
        _listen(None)
    assert not list(tmp_path.iterdir())
    assert not [event for event in seen if event.startswith(("os.", "subprocess.", "socket."))]
    for name, value in before.items():
        assert getattr(pathlib.PosixPath, name) is value


_heard: list[list[str] | None] = []


def _listen(to: list[str] | None) -> None:
    """Note the events of the interpreter in ``to``; a hook cannot be taken away again."""
    if not _heard:
        _heard.append(None)
        sys.addaudithook(
            lambda event, _: _heard[0].append(event) if _heard[0] is not None else None
        )
    _heard[0] = to


@pytest.mark.parametrize("name", ["../weights", "/etc/passwd", "..", "", "a/b", "a\0b"])
def test_a_file_outside(place: Path, name: str) -> None:
    metadata = pickle.loads((place / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        object.__setattr__(info, "relative_path", name)
    with pytest.raises(HostileCheckpointError, match="a file outside of it"):
        parse(pickle.dumps(metadata))


@pytest.mark.parametrize("what", ["link", "pipe", "folder"])
@pytest.mark.parametrize("which", [".metadata", "__0_0.distcp"])
def test_a_file_that_is_none(which: str, what: str, place: Path, tmp_path: Path) -> None:
    """A link out of the folder is not followed, and a pipe is not waited for."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in place.iterdir():
        if file.name != which:
            (copy / file.name).write_bytes(file.read_bytes())
    if what == "link":
        (copy / which).symlink_to(place / which)
    elif what == "pipe":
        os.mkfifo(copy / which)
    else:
        (copy / which).mkdir()
    with pytest.raises(UserError, match="is no regular file"):
        Checkpoint(copy).read("weight")


@given(st.data())
def test_damaged_anywhere(place: Path, data: st.DataObject) -> None:
    """A byte changed, cut or added: the index is read, or refused by one kind of error."""
    content = bytearray((place / ".metadata").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["set", "cut", "add"]))
        if change == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del content[at:]
            content += b"."
        else:
            content[at:at] = data.draw(st.binary(max_size=8))
    try:
        found = parse(bytes(content))
    except HostileCheckpointError:
        return
    assert isinstance(found, Metadata)
    assert pickle.load(io.BytesIO(pickle.dumps(found))) == found
