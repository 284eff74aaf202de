"""What plugin authors lacked: a dataset that opens two others, as a stranger would write it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from atom_docs import nodes, rendered
from atom_docs.pages import DOCS, write_files

from atom.errors import UserError
from atom.registry.renaming import renamed

PAIR = {
    "__init__.py": """
from atom.plugin import Dataset, hookimpl

@hookimpl
def atom_datasets():
    yield Dataset(
        name="pair",
        summary="two datasets, the first of them twice a pass",
        config="pair.config:Pair",
        source="pair.source:source",
    )
""",
    "config.py": """
from typing import Any
from pydantic import BaseModel, ConfigDict, Field

class Pair(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    sources: dict[str, dict[str, Any]] = Field(description="name -> a dataset's section")
""",
    "source.py": """
import dataclasses, hashlib
from itertools import chain, islice, zip_longest

def source(config, context):
    parts = {}
    for name, section in config.sources.items():
        parameters = {key: value for key, value in section.items() if key != "name"}
        key = f"dataset.sources.{name}"
        parts[name] = context.open_dataset(section.get("name"), parameters, key)
    return Pair(parts, context.cache)

@dataclasses.dataclass(frozen=True)
class Pair:
    parts: dict
    cache: object

    def check(self):
        digests = [part.check() for part in self.parts.values()]
        self.cache.mkdir(parents=True, exist_ok=True)
        (self.cache / "checked").write_text("yes")
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def lane(self, lane, lanes, *, seed, epoch, start=0):
        first, *others = self.parts
        twice = chain(*(self.documents(first, lane, lanes, seed, 2 * epoch + n) for n in (0, 1)))
        streams = [twice, *(self.documents(name, lane, lanes, seed, epoch) for name in others)]
        every = chain.from_iterable(zip_longest(*streams))
        yield from islice((document for document in every if document is not None), start, None)

    def documents(self, name, lane, lanes, seed, epoch):
        for document in self.parts[name].lane(lane, lanes, seed=seed, epoch=epoch):
            yield dataclasses.replace(document, id=f"{name}: {document.id}")
""",
    "conf/dataset/pair.yaml": """
name: pair
sources:
  a: {name: local, path: '???'}
  b: {name: 'atom_datasets:local', path: '???', format: jsonl}
""",
}
TINY = (
    *("architecture=llama3_tiny", "architecture.n_layers=2", "architecture.dim=64"),
    *("tokenizer=bytes", "training.seq_len=64", "training.global_batch_size=4"),
    *("training.steps=2", "device=cpu", "metrics=none"),
)
A_AND_B = ("dataset=pair", "dataset.sources.a.path=a", "dataset.sources.b.path=b")


@pytest.fixture
def place(tmp_path: Path, install: Callable[..., Path]) -> Path:
    """A folder with two datasets; the package is installed for those who name ``site``."""
    install("pair", {"conf/__init__.py": "", **PAIR})
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for number in range(40):
        (tmp_path / "a" / f"{number}.txt").write_text(f"text {number} of a " * 9)
    rows = [json.dumps({"text": f"row {number} of b " * 9}) for number in range(40)]
    (tmp_path / "b" / "rows.jsonl").write_text("\n".join(rows))
    return tmp_path


@pytest.mark.slow
def test_a_dataset_opens_two_others_on_every_rank(
    place: Path, atom: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Ranks load the packages of what was opened, and each dataset has a cache of its own."""
    result = atom(
        *("train", *TINY, *A_AND_B, "parallelism=fsdp", "launch.ranks=2", "run.dir=run"),
        cwd=place,
        PYTHONPATH=str(place / "site"),
        ATOM_CACHE=str(place / "cache"),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert len((place / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    used = yaml.safe_load((place / "run" / "run.yaml").read_text())["plugins"]["used"]
    assert {"pair", "atom-datasets"} <= set(used)
    assert (place / "cache" / "dataset" / "pair" / "pair" / "checked").read_text() == "yes"


MISTAKES = {
    "a parameter that there is not": (
        ["+dataset.sources.b.pth=b"],
        "dataset.sources.b.pth=b (command line): pth is no key here; did you mean path?",
    ),
    "a value that is wrong": (
        ["dataset.sources.b.format=xml"],
        "dataset.sources.b.format=xml (command line): must be",
    ),
    "a name that there is not": (
        ["dataset.sources.b.name=locl"],
        "dataset.sources.b.name=locl (command line): there is no dataset locl; did you mean local",
    ),
    "no name": (
        ["dataset.sources.b.name=null"],
        "dataset.sources.b.name=null (command line): must be the name of a component",
    ),
    "nothing to read": (
        ["dataset.sources.a.path=nowhere"],
        "dataset.sources.a.path=nowhere (command line): there is no such file or folder",
    ),
    "keys in the sentence": (
        ["dataset.sources.a.path=[a,b]"],
        "choose one with dataset.sources.a.format",
    ),
    "a dataset within a dataset": (
        ["+dataset.sources.c={name: pair, sources: {d: {name: local, path: nowhere}}}"],
        "dataset.sources.c.sources.d.path=nowhere",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_name_the_users_keys(
    mistake: str, place: Path, forked: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """What is wrong with an opened dataset is told by the user's key; nothing is written."""
    overrides, words = MISTAKES[mistake]
    result = forked(
        *("train", *TINY, *A_AND_B, *overrides, "run.dir=run"),
        cwd=place,
        PYTHONPATH=str(place / "site"),
    )
    assert result.returncode == 2, result.stdout + result.stderr
    assert words in result.stderr
    assert not (place / "run").exists()


@pytest.mark.slow
def test_the_trust_lists_hold_for_what_is_opened(
    place: Path, forked: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    result = forked(
        *("train", *TINY, *A_AND_B, "run.dir=run"),
        cwd=place,
        PYTHONPATH=str(place / "site"),
        ATOM_PLUGINS_BLOCK="atom-datasets",
    )
    assert result.returncode == 2, result.stdout + result.stderr
    assert "dataset.sources.a.name=local" in result.stderr
    assert "blocked: by ATOM_PLUGINS_BLOCK=atom-datasets" in result.stderr
    assert not (place / "run").exists()


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        ("choose another dataset.format", "choose another k.format"),
        ("dataset.json is no text", "dataset.json is no text"),
        ("see data/dataset.path", "see data/dataset.path"),
        ("dataset.pathology", "dataset.pathology"),
    ],
)
def test_names_of_files_are_not_taken_for_keys(problem: str, told: str) -> None:
    with pytest.raises(UserError) as refused, renamed("dataset", "k", ("format", "path")):
        raise UserError(problem, key="dataset.path")
    assert refused.value.told == told
    assert refused.value.key == "k.path"


CONFORMS = """
from atom.testing import conformance

def sample(folder):
    for name in "ab":
        (folder / name).mkdir()
        for number in range(20):
            (folder / name / f"{number}.txt").write_text(f"text {number} of {name}")
    return {"sources": {name: {"name": "local", "path": str(folder / name)} for name in "ab"}}

def change(folder):
    (folder / "b" / "3.txt").write_text("another")
    return {"sources": {name: {"name": "local", "path": str(folder / name)} for name in "ab"}}

TestPair = conformance("dataset:pair").having(sample=sample, change=change, weighted=True)
TestNotWeighted = conformance("dataset:pair").having(sample=sample)
"""


@pytest.mark.slow
def test_a_weighted_dataset_conforms(
    place: Path, conforms: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The whole suite passes for one that gives documents twice, if it says so; else not."""
    (place / "test_pair.py").write_text(CONFORMS)
    result = conforms("test_pair.py", cwd=place, PYTHONPATH=str(place / "site"))
    failed = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
    assert failed, result.stdout
    assert all("TestNotWeighted::test_lanes_share_the_documents_out" in f for f in failed), failed
    assert "come twice in a pass" in result.stdout


# ---------------------------------------------------------------------------- launchers

SPARSE = {
    "__init__.py": """
from atom.plugin import Launcher, hookimpl

@hookimpl
def atom_launchers():
    yield Launcher(name="sparse", summary="machines without GPUs", plan="sparse.plan:plan")
    yield Launcher(name="lax", summary="it refuses nothing", plan="sparse.plan:anything")
""",
    "plan.py": """
from atom.errors import UserError
from atom.plugin import Submission

def plan(config, context):
    resources = context.resources
    if resources.gpus_per_node is not None:
        raise UserError("there are no GPUs; valid: null", key="launcher.gpus_per_node")
    if resources.image is not None:
        raise UserError("there are no containers; valid: null", key="launcher.image")
    return anything(config, context)

def anything(config, context):
    lines = [f"# asked for: {dict(context.resources)}"]
    lines += [f"export {k}='{v}'" for k, v in context.resources.environment.items()]
    lines += context.resources.before + [str(job.folder) for job in context.jobs]
    return Submission(files={"run.sh": "\\n".join(lines)}, commands=(("sh", "run.sh"),))
""",
    "conf/launcher/sparse.yaml": "name: sparse\n",
    "conf/launcher/lax.yaml": "name: lax\n",
}
LAUNCHERS = """
from atom.testing import conformance

LACKS = {"gpus": "its machines have none", "image": "it knows no containers"}
TestTold = conformance("launcher:sparse").having(unsupported=LACKS)
TestNotTold = conformance("launcher:sparse")
TestLax = conformance("launcher:lax").having(unsupported=LACKS)
"""


@pytest.mark.slow
def test_a_launcher_refuses_what_its_system_lacks(
    tmp_path: Path,
    install: Callable[..., Path],
    conforms: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """It conforms if the conformance line says so, and only if it does refuse."""
    site = install("sparse", SPARSE)
    (tmp_path / "test_sparse.py").write_text(LAUNCHERS)
    chosen = ("-k", "submitted or lacks or handed")
    result = conforms("test_sparse.py", *chosen, cwd=tmp_path, PYTHONPATH=str(site))
    failed = re.findall(r"^FAILED \S+::(\w+)::(\w+)", result.stdout, re.MULTILINE)
    assert {name for name, _ in failed} == {"TestNotTold", "TestLax"}, result.stdout
    assert ("TestLax", "test_refuses_what_its_system_lacks") in failed


# ---------------------------------------------------------------------------- attention windows

WINDOWED = {
    "__init__.py": """
from atom.plugin import Architecture, hookimpl

@hookimpl
def atom_architectures():
    for name in ("windowed", "masked"):
        yield Architecture(name=name, summary=f"Llama, {name}", build=f"windowed.build:{name}")
""",
    "build.py": """
from dataclasses import dataclass
from torchtitan.config.override import derive
from torchtitan.models.llama3.model import Llama3Model
from atom.plugin import ModelParts
from atom.titan.contracts.small_models import llama_model
from windowed.windowed import WindowedModel, windowed as with_windows

def windowed(_config, context):
    return ModelParts(model=with_windows(llama_model(vocab_size=context.vocab_size), [None, 12]))

class Masked(WindowedModel):
    @dataclass(kw_only=True, slots=True)
    class Config(WindowedModel.Config):
        pass

    def __init__(self, config):
        Llama3Model.__init__(self, config)

def masked(config, context):
    return ModelParts(model=derive(windowed(config, context).model, Masked.Config))
""",
    "conf/architecture/windowed.yaml": "name: windowed\n",
    "conf/architecture/masked.yaml": "name: masked\n",
}
LOST = "varlen rejected needs masked_window to be at most 0, and it is 12"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["windowed", "masked"])
def test_kernels_that_lose_a_window_do_not_fit(
    name: str,
    install: Callable[..., Path],
    atom: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """``atom kernels explain`` knows whether variable-length attention gets the windows of the
    documentation's example, and of one that has them in its masks alone."""
    site = install("windowed", WINDOWED)
    write_files(DOCS / "plugins" / "architecture.md", site / "windowed")
    asked = ("kernels", "explain", "device=a100", f"architecture={name}", "tokenizer=bytes")
    result = atom(*asked, PYTHONPATH=str(site))
    assert result.returncode == 0, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert (LOST in lines) == (name == "masked"), result.stdout
    named = atom(*asked, "kernels.attention=varlen", PYTHONPATH=str(site))
    assert named.returncode == (2 if name == "masked" else 0), named.stdout + named.stderr


# ---------------------------------------------------------------------------- documentation


@pytest.mark.slow
def test_committed_tables_are_what_the_code_says(
    atom: Callable[..., subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads the pages on a forge sees the tables; ``make tables`` writes them."""

    def said(*arguments: str) -> str:
        result = atom(*arguments, COLUMNS="88")
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    monkeypatch.setattr(nodes, "said", said)
    stale = []
    for page in DOCS.rglob("*.md"):
        text = page.read_text()
        assert not re.search(r"^ *```\{(?!code-block|toctree|eval-rst)", text, re.MULTILINE), page
        if rendered.rendered(text) != text:
            stale.append(str(page))
    assert not stale, "run `make tables`"
    assert "| `test_is_causal` |" in (DOCS / "plugins" / "architecture.md").read_text()
