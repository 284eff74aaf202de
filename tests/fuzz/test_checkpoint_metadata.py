"""A checkpoint's ``.metadata``: DCP's own metadata, or a refusal."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import damaged
from hypothesis import strategies as st
from torch.distributed.checkpoint import FileSystemWriter, save
from torch.distributed.checkpoint.metadata import Metadata

from atom.titan.checkpoint.dcp_index import HostileCheckpointError, parse

pytestmark = pytest.mark.slow

_BYTE = st.integers(0, 255)


def _opcodes(names: list[str]) -> st.SearchStrategy[bytes]:
    """Programs of a pickle: operations with arguments, of which some are what an index names."""
    simple = [code.code.encode("latin1") for code in pickletools.opcodes if code.arg is None]
    named = [f"c{name}\n".encode() for name in names]
    text = st.text(max_size=8).map(lambda t: t.encode(errors="replace"))
    argued = st.one_of(
        text.map(lambda t: b"X" + len(t).to_bytes(4, "little") + t),
        st.integers(-(2**40), 2**40).map(lambda n: b"I%d\n" % n),
        _BYTE.map(lambda n: b"h" + bytes([n])),
        _BYTE.map(lambda n: b"q" + bytes([n])),
        st.binary(min_size=4, max_size=4).map(lambda n: b"r" + n),
        st.binary(min_size=8, max_size=8).map(lambda n: b"\x96" + n),
        st.binary(min_size=4, max_size=4).map(lambda n: b"\x8b" + n),
    )
    operation = st.sampled_from(simple) | st.sampled_from(named) | argued
    return st.lists(operation, max_size=40).map(lambda parts: b"\x80\x04" + b"".join(parts) + b".")


def test_checkpoint_metadata(fuzz: Any, tmp_path: Path) -> None:
    state = {"weight": torch.ones(3, 2), "more": {"step": 3, "list": [1, 2]}}
    save(state, storage_writer=FileSystemWriter(tmp_path), no_dist=True)
    sound = (tmp_path / ".metadata").read_bytes()
    old = pickle.dumps(pickle.loads(sound), protocol=0)
    named = sorted(
        {
            f"{module}\n{name}"
            for module, name in (
                ("torch.distributed.checkpoint.metadata", "Metadata"),
                ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
                ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
                ("torch", "Size"),
                ("torch", "float32"),
                ("pathlib", "PosixPath"),
                ("collections", "OrderedDict"),
                ("os", "system"),
                ("builtins", "getattr"),
            )
        }
    )

    def check(content: bytes) -> None:
        try:
            found = parse(content)
        except HostileCheckpointError:
            return
        assert isinstance(found, Metadata)
        assert pickle.load(io.BytesIO(pickle.dumps(found))) == found

    check(sound)
    check(old)
    fuzz(damaged(sound) | damaged(old) | _opcodes(named) | st.binary(max_size=100), check)
