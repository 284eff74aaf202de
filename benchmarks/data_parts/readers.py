"""Read one corpus with one loader, and print tokens and seconds as JSON.

    python benchmarks/data_parts/readers.py NAME FOLDER LENGTH BATCH SECONDS

It runs in the environment of the loader, in one process on one core. The time begins after the
first batches.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from corpus import VOCABULARY, Corpus

if TYPE_CHECKING:
    from atom.data.packing import Packing

WARM = 4
"""Batches that are not timed."""

MANY = 1 << 40


# ---------------------------------------------------------------------------- ATOM


def atom(
    corpus: Corpus, length: int, batch: int, *, source: str, packing: Packing, ahead: int
) -> Any:
    from atom.data.dealing import dealt
    from atom.titan.train.data import DocumentLoader
    from atom_datasets import local, prepared
    from atom_datasets.config import Local, Prepared
    from atom_tokenizers.ranks import PlainTextTokenizer

    if source == "prepared":
        documents: Any = prepared.source(Prepared(path=str(corpus.repeated)))
    else:
        documents = local.source(Local(path=str(corpus.text)))
    documents.check()
    tokenizer = PlainTextTokenizer.Config().build(tokenizer_path=str(corpus.tokenizer))
    loader = DocumentLoader.Config(
        source=dealt(documents), seed=0, global_batch_size=batch, packing=packing, ahead=ahead,
        vocab_size=VOCABULARY,
    ).build(
        dp_world_size=1, dp_rank=0, tokenizer=tokenizer, seq_len=length, local_batch_size=batch
    )  # fmt: skip
    return (inputs["input"] for inputs, _ in loader)


# ---------------------------------------------------------------------------- others


def torchtitan(corpus: Corpus, length: int, batch: int) -> Any:
    from datasets import load_dataset
    from torchtitan.components.tokenizer import HuggingFaceTokenizer
    from torchtitan.hf_datasets import DatasetConfig, text_datasets

    text_datasets.DATASETS["corpus"] = DatasetConfig(
        path=str(corpus.text),
        loader=lambda path: load_dataset("json", data_files=path, split="train"),
        sample_processor=lambda sample: sample["text"],
    )
    loader = text_datasets.HuggingFaceTextDataLoader.Config(dataset="corpus").build(
        dp_world_size=1, dp_rank=0, seq_len=length, local_batch_size=batch,
        tokenizer=HuggingFaceTokenizer.Config().build(tokenizer_path=str(corpus.tokenizer)),
    )  # fmt: skip
    return (inputs["input"] for inputs, _ in loader)


def olmo(corpus: Corpus, length: int, batch: int, *, documents: bool) -> Any:
    from olmo_core.data import DataCollator, NumpyFSLDataset
    from olmo_core.data.data_loader import NumpyFSLDataLoader

    work = corpus.folder / "olmo-core"
    dataset = NumpyFSLDataset(
        str(corpus.flat), sequence_length=length, pad_token_id=corpus.eos,
        eos_token_id=corpus.eos, vocab_size=VOCABULARY, dtype=np.uint16,
        generate_doc_lengths=documents,
    )  # fmt: skip
    dataset.work_dir = work
    dataset.prepare()
    loader = NumpyFSLDataLoader(
        dataset, collator=DataCollator(pad_token_id=corpus.eos), work_dir=work,
        global_batch_size=batch * length, num_workers=0,
    )  # fmt: skip

    def batches() -> Iterator[Any]:
        for epoch in range(1, MANY):
            loader.reshuffle(epoch=epoch)
            yield from (found["input_ids"] for found in loader)
            loader.reset()

    return batches()


def megatron(corpus: Corpus, length: int, batch: int, *, documents: bool) -> Any:
    from types import SimpleNamespace

    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
    from megatron.core.datasets.utils import Split
    from torch.utils.data import DataLoader

    prefix = str(corpus.folder / "megatron")
    if not Path(f"{prefix}.idx").exists():
        tokens, ends = np.fromfile(corpus.flat, dtype=np.uint16), np.load(corpus.ends)
        builder: Any = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
        begin = 0
        for end in ends.tolist():
            builder.add_document(tokens[begin:end], [end - begin])
            begin = end
        builder.finalize(f"{prefix}.idx")
    indexed = IndexedDataset(prefix)
    tokenizer: Any = SimpleNamespace(
        vocab_size=VOCABULARY, eod=corpus.eos, pad=-1, unique_identifiers={"name": "corpus"}
    )
    config = GPTDatasetConfig(
        random_seed=0, sequence_length=length, split="1", tokenizer=tokenizer,
        path_to_cache=f"{prefix}-cache", reset_position_ids=documents,
        reset_attention_mask=False, eod_mask_loss=documents, create_attention_mask=False,
    )  # fmt: skip
    # Samples of 64 epochs, in an order that Megatron computes beforehand.
    samples = 64 * len(np.fromfile(corpus.flat, dtype=np.uint16)) // length
    dataset = GPTDataset(
        indexed, prefix, np.arange(len(indexed), dtype=np.int32), samples, Split.train, config
    )
    return (found["tokens"] for found in DataLoader(dataset, batch_size=batch, drop_last=True))


SUBJECTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "atom concat": (atom, {"source": "prepared", "packing": "concat", "ahead": 0}),
    "atom concat, ahead": (atom, {"source": "prepared", "packing": "concat", "ahead": 2}),
    "atom windows": (atom, {"source": "prepared", "packing": "windows", "ahead": 0}),
    "atom windows, ahead": (atom, {"source": "prepared", "packing": "windows", "ahead": 2}),
    "atom text": (atom, {"source": "text", "packing": "concat", "ahead": 0}),
    "atom text, ahead": (atom, {"source": "text", "packing": "concat", "ahead": 2}),
    "torchtitan": (torchtitan, {}),
    "olmo-core": (olmo, {"documents": False}),
    "olmo-core documents": (olmo, {"documents": True}),
    "megatron": (megatron, {"documents": False}),
    "megatron documents": (megatron, {"documents": True}),
}
"""Name -> function and settings; "documents": documents are kept apart, as ATOM's loader does."""


def main() -> None:
    name, folder = sys.argv[1:3]
    length, batch = int(sys.argv[3]), int(sys.argv[4])
    seconds = float(sys.argv[5])
    logging.disable(logging.WARNING)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    function, settings = SUBJECTS[name]
    began = time.perf_counter()
    batches = iter(function(Corpus(Path(folder)), length, batch, **settings))
    for found in islice(batches, WARM):
        if tuple(found.shape) != (batch, length):
            sys.exit(f"{name}: a batch of {tuple(found.shape)}, not of {(batch, length)}")
    opened = time.perf_counter() - began
    begin, processor, tokens, checked = time.perf_counter(), time.process_time(), 0, 0
    for found in batches:
        tokens += found.numel()
        checked += int(found[0, 0])  # it has been read
        if time.perf_counter() - begin > seconds:
            break
    whole, processor = time.perf_counter() - begin, time.process_time() - processor
    print(
        json.dumps({"tokens": tokens, "seconds": whole, "processor": processor, "opened": opened}),
        flush=True,
    )
    os._exit(0)  # threads that read ahead are not waited for


if __name__ == "__main__":
    main()
