"""Provide the other components that a component under test needs in a run.

A run needs one component of each kind, and the kit must not depend on other installed plugins. This
package is an ordinary plugin, except that no installed distribution declares its entry point, so no
user's run can name it. :func:`with_partners` adds it to a host, :func:`write_entry_point` to a
process's path.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from atom.plugin import Architecture, Dataset, Parallelism, Tokenizer, hookimpl
from atom.registry.host import Component, Host, Plugin
from atom.testing.installing import describe

PACKAGE = "atom-conformance"
VOCAB_SIZE = 256

TOKENIZER = {"name": f"{PACKAGE}:ascii"}
DATASET = {"name": f"{PACKAGE}:sentences"}
PARALLELISM = f"{PACKAGE}:torchtitan"
ARCHITECTURES = ("llama", "qwen")


@hookimpl
def atom_tokenizers() -> Iterator[Tokenizer]:
    yield Tokenizer(
        name="ascii",
        summary="one id a character",
        prepare="atom.testing.partners.data:prepare",
        build="atom.testing.partners.tokenizer:build",
    )


@hookimpl
def atom_datasets() -> Iterator[Dataset]:
    yield Dataset(
        name="sentences",
        summary="random sentences of a few words, the same for the same seed",
        source="atom.testing.partners.data:source",
    )
    yield Dataset(
        name="records",
        summary="records that its parameters hold",
        config="atom.testing.partners.data:Given",
        source="atom.testing.partners.data:given",
    )


@hookimpl
def atom_parallelisms() -> Iterator[Parallelism]:
    yield Parallelism(
        name="torchtitan",
        summary="torchtitan's generic functions, or the architecture's own",
        build="atom.testing.partners.model:parallelism",
    )


@hookimpl
def atom_architectures() -> Iterator[Architecture]:
    yield Architecture(
        name="llama",
        summary="grouped-query attention, interleaved rotary embedding",
        build="atom.testing.partners.model:llama",
    )
    yield Architecture(
        name="qwen",
        summary="normalised queries and keys, half-rotated rotary embedding",
        build="atom.testing.partners.model:qwen",
    )


def with_partners(host: Host) -> Host:
    """Return ``host`` as if this package were installed."""
    plugin = Plugin("conformance", PACKAGE, "0", __name__, "atom")
    hooks = (atom_tokenizers, atom_datasets, atom_parallelisms, atom_architectures)
    components = tuple(Component(plugin, declared) for hook in hooks for declared in hook())
    return Host((*host.plugins, plugin), (*host.components, *components))


def write_entry_point(folder: Path) -> None:
    """Create ``folder`` with an entry point of this package, to be put on a process's
    ``sys.path``.
    """
    describe(folder, PACKAGE, entry_point="conformance", version="0")
    # A separate module, because a package with an entry point in another package's module is
    # blocked.
    module = folder / f"{PACKAGE.replace('-', '_')}.py"
    module.write_text(f'"""See {__name__}."""\n\nfrom {__name__} import *\n')
