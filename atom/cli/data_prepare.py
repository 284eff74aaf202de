"""``atom data prepare``: compose a dataset and a tokenizer, and write token shards."""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

import atom
from atom.compose import compose, plugin_lists
from atom.data import preparing
from atom.data.manifest import UNKNOWN, MadeBy, Manifest, Provenance, TokenizerOf
from atom.data.splitting import LANES, Recipe, size_of
from atom.data.store_folder import folder_at
from atom.data.writing import Encoder
from atom.errors import UserError
from atom.io.numbers import human
from atom.io.process import call
from atom.io.terminal import say
from atom.plugin import Contents, Dataset, Tokenizer
from atom.plugin.parameters import Component
from atom.recipe.run import Run
from atom.redaction import concealed
from atom.registry.host import Host
from atom.registry.select import Selection, select
from atom.run_dir import prepare as inputs
from atom.watch.preparing_screen import Screen

_USED = ("dataset", "tokenizer", "plugins")
"""Sections of a run that the shards depend on."""


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Prepare token shards; return the exit code.

    Args:
        options: the command's arguments, parsed.
        arguments: all arguments after ``atom data``, for the manifest.
    """
    overrides: list[str] = options.overrides
    for word in overrides:
        check_used(word)
    host = Host.load(plugin_lists.trust(overrides))
    line = [*overrides, *([f"--config-dir={options.config_dir}"] if options.config_dir else [])]

    def job(run: Run) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise UserError("atom data prepare: one dataset and one tokenizer, no sweep")
        _Preparation(options, arguments, run, host).run()

    compose.main(line, partial(compose.do, host=host, job=job), host)
    return 0


def check_used(word: str) -> None:
    """Refuse a setting that has no effect on shards."""
    key = word.lstrip("+~").partition("=")[0]
    section = key.partition(".")[0].partition("@")[0]
    if section in Run.model_fields and section not in _USED:
        raise UserError(
            "has no effect on token shards",
            valid=f"keys of {', '.join(_USED)}",
            key=key,
            origin="command line",
        )


class _Preparation:
    def __init__(
        self, options: argparse.Namespace, arguments: list[str], run: Run, host: Host
    ) -> None:
        self._options = options
        self._arguments = arguments
        self._run = run
        self._selection = select(run, host)
        self._folder = folder_at(options.out)

    def run(self) -> None:
        folder, selection = self._folder, self._selection
        if selection[Dataset].declaration.build is not None:
            raise UserError(
                "has a data loader of its own, and no text",
                valid="a dataset of text",
                key="dataset.name",
                value=self._run.dataset.name,
            )
        folder.check_usable()
        prepared, documents, lanes = call(partial(_look, selection, self._options.lanes))
        recipe = self._recipe(prepared, documents, lanes)
        labels = self._labels(prepared.contents)
        with folder.claimed():
            if (manifest := folder.finished(recipe)) is not None:
                say(f"{folder.place} is finished: {_told(self._labelled(manifest, labels))}")
                return
            place = folder.begin(recipe, prepared.tokenizer.files)
            # A worker has one thread. A tokenizer that is trained may have had more.
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            os.environ["OMP_NUM_THREADS"] = "1"
            # torch is imported only here: every earlier error was reported within a second. Its
            # repairs at boot are for models, and take as long as torch itself.
            tokenizer = selection[Tokenizer].call("build").build(tokenizer_path=str(place))
            encoder = Encoder(tokenizer, recipe.tokenizer.vocab_size)
            open_source = partial(selection[Dataset].call, "source")
            count = self._options.workers or len(os.sched_getaffinity(0))
            screen = Screen()
            try:
                preparing.prepare(folder, recipe, open_source, encoder, count, screen.show)
            finally:
                screen.close()
            recipe = with_special_ids(recipe, tokenizer)
            manifest = preparing.finish(folder, recipe, open_source, self._provenance(labels))
            say(f"{folder.place}: {_told(manifest)}")

    def _labels(self, contents: Contents | None) -> dict[str, str]:
        """Return the labels of this command, or else those of the dataset."""
        contents = contents or Contents()
        of_dataset = {"licence": contents.licence, "origin": contents.origin}
        return {
            name: getattr(self._options, name) or label or UNKNOWN
            for name, label in of_dataset.items()
        }

    def _labelled(self, manifest: Manifest, labels: dict[str, str]) -> Manifest:
        """Write labels into a finished manifest; those of a dataset replace no others."""
        known = manifest.provenance.model_dump()
        changed = {
            name: label
            for name, label in labels.items()
            if getattr(self._options, name) or known[name] == UNKNOWN
        }
        provenance = manifest.provenance.model_copy(update=changed)
        if provenance != manifest.provenance:
            manifest = manifest.model_copy(update={"provenance": provenance})
            self._folder.finish(manifest)
        return manifest

    def _recipe(
        self, prepared: inputs.Prepared, documents: int | None, lanes: int | None
    ) -> Recipe:
        if documents is not None and self._options.lanes is not None:
            raise UserError("--lanes has no effect: the dataset is no stream", valid="without it")
        return Recipe(
            source=MadeBy(**_section(self._run.dataset), digest=prepared.inputs.dataset.digest),
            tokenizer=TokenizerOf(
                **_section(self._run.tokenizer),
                digest=prepared.inputs.tokenizer.digest,
                vocab_size=prepared.tokenizer.vocab_size,
                files=dict(prepared.inputs.tokenizer.parts),
            ),
            documents=documents,
            lanes=lanes,
        )

    def _provenance(self, labels: dict[str, str]) -> Provenance:
        selection = self._selection
        plugins = [
            chosen.component.plugin
            for component in (selection[Dataset], selection[Tokenizer])
            for chosen in component.every()
        ]
        packages = {plugin.package: plugin.version for plugin in plugins}
        return Provenance(
            licence=labels["licence"],
            origin=labels["origin"],
            command=concealed(f"atom data {shlex.join(self._arguments)}"),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={"atom": atom.__version__} | packages | _versions("tokenizers", "numpy"),
        )


def _look(
    selection: Selection, lanes: int | None
) -> tuple[inputs.Prepared, int | None, int | None]:
    """Check the dataset, prepare the tokenizer, and count the documents, in a child process."""
    prepared = inputs.prepare(selection)
    return prepared, *size_of(selection[Dataset].call("source"), lanes or LANES)


def _section(section: Component[Any]) -> dict[str, Any]:
    dumped = section.model_dump(mode="json")
    return {"name": dumped.pop("name"), "parameters": dumped}


def with_special_ids(recipe: Recipe, tokenizer: Any) -> Recipe:
    """Return the recipe with the ids that begin and end a document."""
    ids = {name: getattr(tokenizer, name, None) for name in ("bos_id", "eos_id")}
    return replace(recipe, tokenizer=recipe.tokenizer.model_copy(update=ids))


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _told(manifest: Manifest) -> str:
    left_out = manifest.left_out
    counts = (("empty", left_out.empty), ("of one token", left_out.short), ("bad", left_out.bad))
    words = "".join(f", {count:,} {what}" for what, count in counts if count)
    return (
        f"{manifest.documents:,} documents{words}, {manifest.tokens:,} tokens, "
        f"{human(manifest.size)}B in {len(manifest.shards):,} shards"
    )
