"""Options for public corpora, against small copies of them in their own shape.

The copies are served by a stand-in for the Hub, so that each option is read as it is: the name, the
commit, the subset, the files, the split and the column.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import corpora
import hub
import pytest
import yaml

import atom_datasets
from atom.plugin import Trained
from atom_datasets.config import HuggingFace
from atom_datasets.mixing import stages
from atom_datasets.mixing.config import MixtureConfig

CONF = Path(atom_datasets.__file__).parent / "conf" / "dataset"
COMPONENTS = {dataset.name for dataset in atom_datasets.atom_datasets()}
OPTIONS = {
    path.stem: path.read_text()
    for path in sorted(CONF.glob("*.yaml"))
    if path.stem not in COMPONENTS
}
FRENCH = "dataset.subset=fra_Latn"
WEB = "data/CC-MAIN-2024-{}/train-00000-of-00020.parquet"

READ: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # option -> further overrides, and the files of the copy that are read
    "fineweb": ((), ("data/CC-MAIN-2024-10/000_00000.parquet",)),
    "fineweb_edu": ((), (WEB.format(10), WEB.format(18))),
    "fineweb2": ((FRENCH,), ("data/fra_Latn/train/000_00000.parquet",)),
    "fineweb2_hq": ((FRENCH,), ("fra_Latn/000_00000.parquet",)),
    "dclm": ((), tuple(corpora.CORPORA["mlfoundations/dclm-baseline-1.0"].files)),
    "dolma": (("dataset.path=dolma",), tuple(corpora.DOLMA.files)),
    "dolma3_mix": ((), tuple(corpora.CORPORA["allenai/dolma3_mix-6T"].files)),
    "dolma3_dolmino_mix": (
        (), tuple(corpora.CORPORA["allenai/dolma3_dolmino_mix-100B-1125"].files),
    ),
    "olmo2_mix": ((), tuple(corpora.CORPORA["allenai/olmo-mix-1124"].files)),
    "olmo2_dolmino_mix": ((), tuple(corpora.CORPORA["allenai/dolmino-mix-1124"].files)),
    "the_stack": ((), tuple(corpora.CORPORA["bigcode/the-stack-dedup"].files)),
    "starcoderdata": ((), tuple(corpora.CORPORA["bigcode/starcoderdata"].files)),
    "finemath": ((), ("finemath-3plus/train-00000-of-00128.parquet",)),
    "cosmopedia_v2": ((), ("cosmopedia-v2/train-00000-of-00104.parquet",)),
    "fineweb_edu_dedup": ((), ("fineweb-edu-dedup/train-00000-of-00234.parquet",)),
}  # fmt: skip
OVERRIDDEN = {
    "a subset": (
        "fineweb_edu", ("dataset.subset=sample-10BT",), ("sample/10BT/000_00000.parquet",)
    ),
    "a language": (
        "the_stack",
        ("dataset.data_files=data/python/*",),
        ("data/python/train-00000-of-00206.parquet",),
    ),
    "parts": (
        "dolma3_mix",
        ("dataset.data_files=[data/stack_edu-*/*,data/dolma1_7-wiki-en/*]",),
        ("data/stack_edu-Java/shard_00000000.jsonl.zst", "data/dolma1_7-wiki-en/00000.jsonl.zst"),
    ),
    "a subset of several formats": (
        "olmo2_dolmino_mix",
        ("dataset.subset=math",),
        tuple(f for f in corpora.CORPORA["allenai/dolmino-mix-1124"].files if "/math/" in f),
    ),
    "a split": (
        "fineweb2",
        (FRENCH, "dataset.split=test"),
        ("data/fra_Latn/test/000_00000.parquet",),
    ),
}  # fmt: skip
REFUSED = {
    # case -> the option, further overrides, and the sentence
    "ids alone, as in The Stack v2": (
        "cosmopedia_v2",
        ("dataset.text_field=blob_id",),
        "dataset.text_field=blob_id: it has no such column",
    ),
    "another commit": (
        "finemath",
        ("dataset.revision=v9",),
        r"dataset.path=HuggingFaceTB/finemath: cannot be streamed: .*v9",
    ),
    "files that are not there": (
        "the_stack",
        ("dataset.data_files=data/cobol/*",),
        r"dataset.data_files=data/cobol/\*: no file of bigcode/the-stack-dedup matches",
    ),
    "files elsewhere": (
        "the_stack",
        ("dataset.data_files=../../a/b/*",),
        r"dataset.data_files=../../a/b/\*: leads out of the dataset; valid: ",
    ),
    "a file that becomes too large": (
        "olmo2_mix",
        ("dataset.subset=wiki", "dataset.max_bytes=9"),
        r"dataset.max_bytes=9: hf://datasets/allenai/olmo-mix-1124@.*/wiki-0000.json.gz decompres",
    ),
}
MIXTURES = {"olmo2_dolmino_50b": 6, "smollm3_without_code": 21}
"""Option -> number of sources."""


TINY = (
    "architecture=llama3_tiny", "architecture.dim=64", "architecture.n_layers=2",
    "tokenizer=bytes", "training.seq_len=64", "training.global_batch_size=4", "training.steps=2",
    "lr_scheduler.warmup_steps=1", "parallelism=single", "device=cpu", "metrics=none",
)  # fmt: skip


@pytest.fixture(scope="module")
def composed(forked: Callable) -> Callable[..., dict[str, Any]]:
    """Return the dataset section that an option and overrides compose."""

    def compose(option: str, *overrides: str) -> dict[str, Any]:
        line = ("train", f"dataset={option}", *overrides, "--cfg", "job", "--package", "dataset")
        result = forked(*line)
        assert result.returncode == 0, result.stderr
        section: dict[str, Any] = yaml.safe_load(result.stdout)
        return section

    return compose


@pytest.fixture(scope="module")
def sections(composed: Callable) -> dict[str, dict[str, Any]]:
    """The section of each case, all composed at once as the sources of a mixture."""
    cases = {option: (option, overrides) for option, (overrides, _) in READ.items()}
    cases |= {case: of[:2] for case, of in (OVERRIDDEN | REFUSED).items()}
    line = []
    for number, (option, overrides) in enumerate(cases.values()):
        line.append(f"+dataset@dataset.sources.c{number}={option}")
        line += [word.replace("dataset.", f"dataset.sources.c{number}.", 1) for word in overrides]
    return dict(zip(cases, composed("mixture", *line)["sources"].values(), strict=True))


def test_every_option_is_tested() -> None:
    assert sorted(OPTIONS) == sorted([*READ, *MIXTURES])


@pytest.mark.parametrize("option", OPTIONS)
def test_a_file_tells_size_access_and_licence(option: str) -> None:
    """The table of the documentation has them from these lines."""
    head = [line for line in OPTIONS[option].splitlines() if line.startswith("# ")]
    assert re.match(r"# \S.*: \S", head[0])
    assert [line.partition(":")[0] for line in head[1:3]] == ["# size", "# access"]
    if option in READ:
        assert re.search(r"^licence: \S", OPTIONS[option], re.MULTILINE)
        assert re.search(r"^revision: ([0-9a-f]{40}|null)$", OPTIONS[option], re.MULTILINE)


@pytest.mark.parametrize("option", READ)
def test_an_option_selects_a_dataset_of_the_hub(option: str, sections: dict[str, Any]) -> None:
    section = dict(sections[option])
    assert section.pop("name") == "huggingface"
    assert set(section) >= {"path", "split", "text_field", "revision", "licence"}
    HuggingFace.model_validate(section)


@pytest.mark.parametrize("option", MIXTURES)
def test_a_mixture_is_of_other_options(option: str, composed: Callable) -> None:
    """Each source is an option, but for its subset; weights are shares."""
    section = composed(option)
    assert section.pop("name") == "mixture"
    config = MixtureConfig.model_validate(section)
    assert len(config.sources) == MIXTURES[option]
    known = {}
    for name in READ:
        parameters = yaml.safe_load(OPTIONS[name])
        known[parameters["path"], parameters["revision"]] = parameters
    for source in config.sources.values():
        own = source.model_dump(exclude={"weight", "tokens", "max_repetitions", "subset"})
        expected = known[own["path"], own["revision"]]
        assert own == {name: expected[name] for name in own}
    if option == "olmo2_dolmino_50b":
        assert sum(source.share for source in config.sources.values()) == pytest.approx(100, 0.001)
    else:  # the code of the published mixture is an eighth
        assert sum(source.share for source in config.sources.values()) == pytest.approx(0.875)


def test_a_corpus_is_a_source_of_a_mixture(composed: Callable) -> None:
    section = composed(
        "mixture",
        "+dataset@dataset.sources.web=fineweb_edu",
        "dataset.sources.web.subset=sample-10BT",
        "dataset.sources.web.weight=0.7",
        "+dataset@dataset.sources.math=finemath",
        "dataset.sources.math.weight=0.3",
    )
    section.pop("name")
    web, math = MixtureConfig.model_validate(section).sources.values()
    assert web.model_dump()["subset"] == "sample-10BT"
    assert math.model_dump()["path"] == "HuggingFaceTB/finemath"
    assert (web.weight, math.weight) == (0.7, 0.3)


def test_options_are_the_sources_of_a_run(forked: Callable) -> None:
    """A run is composed of several, although a group has one option: its data is looked for."""
    words = [f"+dataset@dataset.sources.{name}=local" for name in "ab"]
    words += [f"dataset.sources.{name}.weight=1" for name in "ab"]
    words += [f"dataset.sources.{name}.path=nowhere" for name in "ab"]
    result = forked("train", "dataset=mixture", *words, *TINY)
    assert result.returncode == 2
    assert "dataset.sources.a.path=nowhere" in result.stderr


@pytest.mark.parametrize(
    ("parameter", "effect"),
    [("licence", "harmless"), ("origin", "harmless"), ("subset", "refused")],
)
def test_a_label_of_a_source_that_was_read_can_change(parameter: str, effect: str) -> None:
    before = yaml.safe_load("{sources: {web: {name: huggingface, path: a/b, weight: 1}}}")
    after = yaml.safe_load("{sources: {web: {name: huggingface, path: a/b, weight: 1}}}")
    after["sources"]["web"][parameter] = "other"
    trained = Trained(steps=9, tokens_per_step=9)
    assert stages.changed(f"sources.web.{parameter}", before, after, trained) == effect


# ---------------------------------------------------------------------------- against the copies


def run(place: Path, environment: dict[str, str], *line: str) -> subprocess.CompletedProcess[str]:
    """Run ``atom …`` in a new process, because the address of the Hub is read at its imports."""
    command = [sys.executable, "-m", "atom", *line]
    return subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of each corpus: one that is downloaded, and those of the Hub."""
    root = tmp_path_factory.mktemp("corpora")
    corpora.write(corpora.DOLMA, root / "dolma")
    for option in map(yaml.safe_load, OPTIONS.values()):
        place = root / "hub" / option.get("path", "???")
        if place.name != "???" and not place.exists():
            corpora.write(corpora.CORPORA[option["path"]], place, option["revision"])
    return root


@pytest.fixture(scope="module")
def online(root: Path) -> Iterator[dict[str, str]]:
    """The environment in which the copies are the Hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    with hub.served(root / "hub") as address:
        yield kept | {
            "HF_ENDPOINT": address,
            "HF_HOME": str(root / "home"),
            "HF_TOKEN": "hf_of_the_test",
            "ATOM_CACHE": str(root / "cache"),
        }


SCRIPT = """
import json, sys
from atom.errors import UserError
from atom_datasets.config import HuggingFace
from atom_datasets.huggingface import source
for name, section in json.load(sys.stdin).items():
    section.pop("name")
    try:
        made = source(HuggingFace(**section))
        made.check()
        contents = made.contents()
        texts = [d.text for lane in range(2) for d in made.lane(lane, 2, seed=0, epoch=0)]
        found = [sorted(texts), contents.files, contents.licence, contents.origin]
    except UserError as error:
        found = str(error)
    print(json.dumps([name, found]))
"""


@pytest.fixture(scope="module")
def found(root: Path, online: dict[str, str], sections: dict[str, Any]) -> dict[str, Any]:
    """What each case reads, or the sentence that refuses it; all in one process."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(sections),
        env=online,
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.slow
@pytest.mark.parametrize("case", [*READ, *OVERRIDDEN])
def test_an_option_reads_its_corpus(case: str, found: dict[str, Any]) -> None:
    """Every row of the files that are meant is read, and no other."""
    option = OVERRIDDEN[case][0] if case in OVERRIDDEN else case
    files = OVERRIDDEN[case][2] if case in OVERRIDDEN else READ[case][1]
    parameters = yaml.safe_load(OPTIONS[option])
    origin = parameters.get("origin") or f"hf://datasets/{parameters['path']}"
    if "origin" not in parameters:
        origin += f"@{parameters['revision']}"
    assert found[case] == [corpora.texts(*files), len(files), parameters["licence"], origin]


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_a_corpus_is_refused(case: str, found: dict[str, Any]) -> None:
    assert re.match(REFUSED[case][2], found[case]), found[case]


@pytest.mark.slow
def test_a_gated_corpus_without_its_terms(online: dict[str, str], tmp_path: Path) -> None:
    without = {name: value for name, value in online.items() if name != "HF_TOKEN"}
    done = run(tmp_path, without, "train", "dataset=the_stack", *TINY)
    assert done.returncode == 2
    assert done.stderr.startswith("atom: dataset.path=bigcode/the-stack-dedup")
    assert "gated" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_licence_and_origin_are_told(
    online: dict[str, str], atom: Callable, tmp_path: Path
) -> None:
    """The manifest of prepared shards has those of the option, until a command says others."""
    line = ("data", "prepare", "dataset=fineweb_edu", "tokenizer=bytes", "--lanes", "1")
    parameters = yaml.safe_load(OPTIONS["fineweb_edu"])
    for options, licence in (
        ((), parameters["licence"]),
        (("--licence", "CC0"), "CC0"),
        ((), "CC0"),
    ):
        done = atom(*line, "--out", str(tmp_path / "shards"), *options, **online)
        assert done.returncode == 0, done.stderr
        manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
        assert manifest["documents"] == 2 * corpora.ROWS
        assert manifest["provenance"]["licence"] == licence
        origin = f"hf://datasets/{parameters['path']}@{parameters['revision']}"
        assert manifest["provenance"]["origin"] == origin


@pytest.mark.slow
def test_a_run_on_a_mixture_of_the_hub(
    online: dict[str, str], atom: Callable, forked: Callable, tmp_path: Path
) -> None:
    """Header, run.yaml and report have the licence and the commit."""
    line = ("train", "dataset=olmo2_dolmino_50b", *TINY, "run.dir=run")
    done = atom(*line, cwd=tmp_path, **online)
    assert done.returncode == 0, done.stderr
    parameters = yaml.safe_load(OPTIONS["olmo2_dolmino_mix"])
    licence = parameters["licence"]  # that of all sources
    assert f"licence: {licence}" in " ".join(done.stdout.split())
    data = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["resolved"]["data"]
    assert data["licence"] == licence
    address = f"hf://datasets/allenai/dolmino-mix-1124@{parameters['revision']}"
    assert data["origin"] == address
    assert data["files"] == 8
    assert forked("report", "run", cwd=tmp_path).returncode == 0
    assert address in (tmp_path / "run" / "report.html").read_text()
