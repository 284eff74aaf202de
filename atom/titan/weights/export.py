"""Export a run's weights as a folder that ``transformers`` loads without ATOM.

Weights are read, converted and written one at a time, or the weights of a block together if they
form one weight at Hugging Face. Memory holds at most these and one file of the export.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from atom.errors import UserError
from atom.io import files, new_folder
from atom.run_dir import saved
from atom.run_dir.folder import RUN_FILE, TOKENIZER
from atom.titan import saved_model
from atom.titan.checkpoint.hugging_face_folder import CONFIG, INDEX
from atom.titan.hugging_face import tokenizer as hf_tokenizer
from atom.titan.saved_model import Checkpoint, Trained
from atom.titan.soft_cap import CappedLinear
from atom.titan.weights import merged

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHARD_SIZE = 5 * 10**9
"""Default size of a weight file in bytes, as in ``transformers``."""


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        step: the training step of the weights.
        files: the weight files.
        size: their size in bytes.
        lost: weights of the run that the Hugging Face model does not have.
        base: the weights that adapters were added to; empty for a run without adapters.
        tokenizer: whether the tokenizer's files were copied.
    """

    step: int
    files: int
    size: int
    lost: tuple[str, ...]
    tokenizer: bool
    base: str = ""


def export(
    folder: Path,
    out: Path,
    *,
    step: int | None = None,
    average: str | None = None,
    dtype: str | None = None,
    shard_size: int = SHARD_SIZE,
) -> Exported:
    """Export the run in ``folder``.

    Args:
        folder: the run folder.
        out: the folder to write; new or empty.
        step: the checkpoint's step; None for the newest.
        average: the callback whose averaged weights to export; None: the weights.
        dtype: a key of :data:`DTYPES`; None for that of the checkpoint.
        shard_size: bytes of a weight file; a larger weight gets a file of its own.

    Raises:
        UserError: it cannot be exported, and nothing has been written.
    """
    new_folder.check(out)
    run = saved_model.trained(folder)
    adapter = run.adapter()
    output_layer = getattr(run.parts.model, "lm_head", None)
    if isinstance(output_layer, CappedLinear.Config):
        raise UserError(
            "no config.json of this family describes a soft cap, so the export would lose it",
            key="architecture.logit_soft_cap",
            value=output_layer.cap,
        )
    if run.parts.hf_config is None:
        raise UserError(
            "this architecture declares no config.json of Hugging Face, so it cannot be exported",
            key="architecture.name",
            value=run.run.architecture.name,
        )
    hf_tokenizer.check(folder / TOKENIZER, run.tokenizer())
    number, place = saved.newest(folder, run.run, step)
    saved.verify(place)
    model = saved_model.on_meta(run.parts.model)
    source = merged.checkpoint(run, place, average)
    source.check(model.state_dict())
    writer = _Writer(source, adapter, model, DTYPES[dtype] if dtype else None, shard_size)

    with new_folder.filled(out) as partial:
        writer.write(partial)
        named = dtype or str(writer.dtype).removeprefix("torch.")
        found = _describe(run, partial, named)
    base = run.run.checkpoint.initial_load if run.run.lora.rank else ""
    return Exported(number, writer.files, writer.size, tuple(writer.lost), found, base)


def _describe(run: Trained, folder: Path, dtype: str) -> bool:
    """Write the files other than weights; return whether there is a tokenizer."""
    tokenizer = run.tokenizer()
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_id", None) for name in ("bos", "eos")}
    _write(folder / CONFIG, dict(run.parts.hf_config or {}) | ids | {"dtype": dtype})
    _write(folder / "generation_config.json", ids | _ends(tokenizer))
    # The export needs it for ``atom generate``, and it records the origin.
    files.copy(run.folder / RUN_FILE, folder / RUN_FILE)
    return hf_tokenizer.copy(run.folder / TOKENIZER, folder, bos_id=ids["bos_token_id"])


def _ends(tokenizer: Any) -> dict[str, list[int]]:
    """Return the ids that end an answer of the chat template, if there are others than EOS."""
    chat = tokenizer.chat() if callable(getattr(tokenizer, "chat", None)) else None
    found: frozenset[int] = chat.ends()[0] if chat is not None else frozenset()
    return {"eos_token_id": sorted(found)} if len(found) > 1 else {}


class _Writer:
    """A writer with two passes over the model: without values, to plan the files; then with values.

    File names contain the number of files, so it must be known before the first one is written.
    """

    def __init__(
        self,
        source: Checkpoint,
        adapter: Any,
        model: nn.Module,
        dtype: torch.dtype | None,
        shard_size: int,
    ) -> None:
        self._source = source
        self._adapter = adapter
        self._wanted = dtype
        aliases = _aliases(model)
        names = [name for name in model.state_dict() if name not in aliases]
        # Values that are not trained, such as biases of balanced experts, keep their dtype.
        self._buffers = {name for name, _ in model.named_buffers()}
        self.lost: list[str] = []
        self.size = 0
        self._shards: list[dict[str, torch.Tensor]] = [{}]
        room = shard_size
        empty = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
            for name, entry in source.tensors.items()
            if name in names
        }
        self._groups = list(
            _groups(names, lambda some: adapter.to_hf({name: empty[name] for name in some}))
        )
        for group in self._groups:
            for theirs, tensor in self._converted({name: empty[name] for name in group}):
                size = tensor.numel() * tensor.itemsize
                if size > room and self._shards[-1]:
                    self._shards.append({})
                    room = shard_size
                self._shards[-1][theirs] = tensor
                room -= size
                self.size += size
        self.files = len(self._shards)
        self.dtype = self._wanted or source.tensors[names[0]].properties.dtype

    def write(self, folder: Path) -> None:
        """Write the weight files, and their index if there are several."""
        total = self.files
        names = ["model.safetensors"]
        if total > 1:
            names = [f"model-{n:05}-of-{total:05}.safetensors" for n in range(1, total + 1)]
        values = self._values()
        for name, shard in zip(names, self._shards, strict=True):
            content = dict(next(values) for _ in shard)
            assert content.keys() == shard.keys()
            save_file(content, folder / name, metadata={"format": "pt"})
            # safetensors creates files that only their owner can read.
            (folder / name).chmod(folder.stat().st_mode & 0o666)
        # Weights without a place at Hugging Face may come last: consume them, too.
        assert next(values, None) is None
        if total > 1:
            where = {
                weight: name
                for name, shard in zip(names, self._shards, strict=True)
                for weight in shard
            }
            index = {"metadata": {"total_size": self.size}, "weight_map": where}
            _write(folder / INDEX, index)

    def _values(self) -> Iterator[tuple[str, torch.Tensor]]:
        for group in self._groups:
            tensors = {name: self._source.read(name) for name in group}
            found = False
            for item in self._converted(tensors):
                found = True
                yield item
            if not found:
                self.lost += [name for name, tensor in tensors.items() if tensor.any()]

    def _converted(self, tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        for theirs, converted in self._adapter.to_hf(tensors).items():
            dtype = self._wanted
            kept = not self._buffers.isdisjoint(tensors) or not converted.is_floating_point()
            if dtype is None or kept:
                dtype = converted.dtype
            # Without the clone, a view would be saved with its whole tensor.
            yield theirs, converted.to(dtype).contiguous().clone()


def _groups(
    names: Iterable[str], converted: Callable[[tuple[str, ...]], Mapping[str, Any]]
) -> Iterator[tuple[str, ...]]:
    """Yield the weights to convert together: one, or those of a block that form one weight.

    Args:
        names: names of the weights, those of a block together.
        converted: returns the Hugging Face weights of these; nothing if parts are missing.
    """
    for _, block in groupby(names, lambda name: name.split(".")[:2]):
        parts: tuple[str, ...] = ()
        for name in block:
            if converted((name,)):
                yield (name,)
            else:
                parts += (name,)
        # A weight that adds nothing has no place there, alone or with others.
        whole = converted(parts).keys() if len(parts) > 1 else set()
        needed = tuple(
            name
            for name in parts
            if converted(tuple(other for other in parts if other != name)).keys() != whole
        )
        yield from ((name,) for name in parts if name not in needed)
        if needed:
            yield needed


def _aliases(model: nn.Module) -> set[str]:
    """Return the names of parameters that alias an earlier one."""
    seen: set[int] = set()
    found = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in seen:
            found.add(name)
        seen.add(id(parameter))
    return found


def _write(path: Path, content: Mapping[str, Any]) -> None:
    files.write_json(path, dict(content))
