"""The conformance kit finds what is wrong: with any component, with a tokenizer, with a dataset.

A *twin* is a package that keeps every promise. A mutant is the twin with one line changed. All of
them are run by pytest as an author would, in one session: the twins pass, and of each mutant the
test that is named here fails, and says why.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TOKENIZER = {
    "__init__.py": """
        from atom.plugin import Tokenizer, hookimpl

        @hookimpl
        def atom_tokenizers():
            yield Tokenizer(
                name="NAME",
                summary="an id a character",
                config="NAME.config:Config",
                prepare="NAME.prepare:prepare",
                build="NAME.build:build",
            )
    """,
    "config.py": """
        from pydantic import BaseModel, ConfigDict, Field

        class Config(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)

            characters: int = Field(default=64, description="that have an id of their own")
    """,
    "prepare.py": """
        import json
        import os
        from collections import Counter
        from atom.plugin import PreparedTokenizer

        def prepare(config, context):
            counts = Counter(c for d in context.documents() for c in d.text if ord(c) > 127)
            often = sorted(sorted(counts), key=counts.get)[-config.characters :]
            context.cache.mkdir(parents=True, exist_ok=True)
            file = context.cache / "characters.json"
            whole = file.with_suffix(f".{os.getpid()}")
            whole.write_text(json.dumps(often))
            whole.replace(file)
            return PreparedTokenizer(
                vocab_size=258 + config.characters, files={"characters.json": file}
            )
    """,
    "build.py": """
        import json
        import os
        import unicodedata
        from dataclasses import dataclass
        from pathlib import Path
        from torchtitan.components.tokenizer import BaseTokenizer

        BORN = os.getpid()

        def build(config):
            return Characters.Config(vocab_size=258 + config.characters)

        class Characters(BaseTokenizer):
            @dataclass(kw_only=True, slots=True)
            class Config(BaseTokenizer.Config):
                vocab_size: int

            def __init__(self, config, *, tokenizer_path):
                super().__init__()
                self.bos_id, self.eos_id = 256, 257
                self.size = config.vocab_size
                characters = json.loads(Path(tokenizer_path, "characters.json").read_text())
                self.ids = {c: 258 + n for n, c in enumerate(characters)}
                self.back = {n: c.encode() for c, n in self.ids.items()}

            def encode(self, text, *, add_bos=False, add_eos=False):
                ids = []
                for character in text:
                    if character in self.ids:
                        ids.append(self.ids[character])
                    else:
                        ids.extend(character.encode("utf-8", "surrogatepass"))
                return [256] * add_bos + ids + [257] * add_eos

            def encode_batch(self, texts, *, add_bos=False, add_eos=False):
                return [self.encode(t, add_bos=add_bos, add_eos=add_eos) for t in texts]

            def decode(self, ids):
                data = b"".join(self.back.get(i, bytes([i] if i < 256 else [])) for i in ids)
                return data.decode("utf-8", "replace")

            def get_vocab_size(self):
                return self.size
    """,
    "conf/tokenizer/NAME.yaml": """
        name: NAME
        characters: 32
    """,
}

DATASET = {
    "__init__.py": """
        from atom.plugin import Dataset, hookimpl

        @hookimpl
        def atom_datasets():
            yield Dataset(
                name="NAME",
                summary="the lines of files",
                config="NAME.config:Config",
                source="NAME.source:source",
            )
    """,
    "config.py": """
        from pathlib import Path
        from pydantic import BaseModel, ConfigDict, Field

        class Config(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)

            path: Path = Field(description="a folder")
    """,
    "source.py": """
        import hashlib
        import os
        import random
        from atom.errors import UserError
        from atom.plugin import Document

        READ = {}

        def source(config):
            return Lines(config.path)

        class Lines:
            def __init__(self, path):
                self.files = sorted(path.glob("*.txt"))

            def documents(self):
                documents = []
                for file in self.files:
                    for number, line in enumerate(file.read_bytes().splitlines(), 1):
                        try:
                            text = line.decode()
                        except UnicodeDecodeError:
                            place = f"{file.name}:{number}"
                            raise UserError(f"{place} is no UTF-8", key="dataset.path") from None
                        documents.append(Document(text, id=f"{file.name}:{number}"))
                return documents

            def check(self):
                self.documents()
                return hashlib.sha256(b"".join(f.read_bytes() for f in self.files)).hexdigest()

            def lane(self, lane, lanes, *, seed, epoch, start=0):
                documents = self.documents()
                random.Random(f"{seed} {epoch}").shuffle(documents)
                yield from documents[lane::lanes][start:]
    """,
    "conf/dataset/NAME.yaml": """
        name: NAME
        path: ???
    """,
}


@dataclass(frozen=True)
class Mutant:
    """A twin's file, in which ``old`` becomes ``new``; the test that finds it, and its words.

    A file that the twin has not is added.
    """

    name: str
    twin: dict[str, str]
    file: str
    old: str
    new: str
    caught_by: str
    says: str
    component: str = "NAME"


def tokenizer(name: str, file: str, old: str, new: str, by: str, says: str) -> Mutant:
    return Mutant(f"tok_{name}", TOKENIZER, file, old, new, by, says)


def dataset(name: str, file: str, old: str, new: str, by: str, says: str) -> Mutant:
    return Mutant(f"data_{name}", DATASET, file, old, new, by, says)


ENCODED = "        return [256] * add_bos + ids + [257] * add_eos"
TEXT = "        ids = []\n"
SHUFFLED = "        yield from documents[lane::lanes][start:]"

MUTANTS = [
    # Of every kind.
    tokenizer(
        "heavy",
        "__init__.py",
        "from atom.plugin",
        "import numpy\nfrom atom.plugin",
        "test_declaring_is_cheap",
        "imports numpy",
    ),
    tokenizer(
        "computes",
        "__init__.py",
        "from atom.plugin",
        "import time\nend = time.process_time() + 3.5\nwhile time.process_time() < end:\n"
        "    pass\n\nfrom atom.plugin",
        "test_declaring_is_cheap",
        "< 3.0",
    ),
    Mutant(
        "tok_taken",
        TOKENIZER,
        "__init__.py",
        'name="NAME"',
        'name="bytes"',
        "test_name_is_valid_and_unique",
        "offered by these packages too",
        component="NAME:bytes",
    ),
    tokenizer(
        "silent",
        "__init__.py",
        "an id a character",
        "NAME",
        "test_summary_exists",
        "says nothing",
    ),
    tokenizer(
        "broken_reference",
        "__init__.py",
        "build:build",
        "build:biuld",
        "test_references_resolve",
        "did you mean build",
    ),
    tokenizer(
        "unpicklable",
        "config.py",
        "    characters: int =",
        "    def model_post_init(self, _context):\n"
        '        object.__setattr__(self, "_hook", lambda: None)\n\n'
        "    characters: int =",
        "test_pickles",
        "cannot be pickled",
    ),
    tokenizer(
        "excluded",
        "config.py",
        "default=64,",
        "default=64, exclude=True,",
        "test_config_round_trips_through_yaml",
        "lost in YAML",
    ),
    tokenizer(
        "lenient",
        "config.py",
        'extra="forbid"',
        'extra="ignore"',
        "test_config_refuses_unknown_parameters",
        "DID NOT RAISE",
    ),
    tokenizer(
        "undocumented",
        "config.py",
        ', description="that have an id of their own"',
        "",
        "test_every_field_is_documented",
        "without a description",
    ),
    tokenizer(
        "wrong_key",
        "conf/tokenizer/NAME.yaml",
        "characters:",
        "charakters:",
        "test_config_group_files_validate",
        "did you mean characters",
    ),
    tokenizer(
        "wrong_value",
        "conf/tokenizer/NAME.yaml",
        "characters: 32",
        "characters: many",
        "test_config_group_files_validate",
        "valid integer",
    ),
    dataset(
        "wrong_key",
        "conf/dataset/NAME.yaml",
        "path: ???",
        "path: ???\npaht: ???",
        "test_config_group_files_validate",
        "paht",
    ),
    tokenizer(
        "a_stranger",
        "conf/tokenizer/NAME.yaml",
        "name: NAME",
        "name: other",
        "test_config_group_files_validate",
        "there is no tokenizer",
    ),
    tokenizer(
        "of_another",
        "conf/tokenizer/NAME.yaml",
        "name: NAME\ncharacters: 32",
        "name: atom_tokenizers:bytes",
        "test_a_config_group_file_chooses_it",
        "no file conf/tokenizer/*.yaml",
    ),
    tokenizer(
        "takes_an_option",
        "conf/tokenizer/bytes.yaml",
        "",
        "name: NAME",
        "test_config_group_files_are_its_own",
        "tokenizer=bytes",
    ),
    # Tokenizers.
    tokenizer(
        "drops_marks",
        "build.py",
        TEXT,
        TEXT + '        text = "".join(c for c in text if not unicodedata.combining(c))\n',
        "test_every_character_comes_back",
        "U+0300",
    ),
    tokenizer(
        "composes",
        "build.py",
        TEXT,
        TEXT + '        text = unicodedata.normalize("NFC", text)\n',
        "test_any_text_comes_back",
        "e\\u0301",
    ),
    tokenizer(
        "says_eos",
        "build.py",
        ENCODED,
        '        if "</s>" in text:\n            ids.append(257)\n' + ENCODED,
        "test_plain_text_yields_no_special_token",
        "id of a special token",
    ),
    tokenizer(
        "beyond",
        "build.py",
        "258 + n for n",
        "259 + n for n",
        "test_ids_are_in_range",
        "ids that are no int from 0 to 321",
    ),
    tokenizer(
        "smaller",
        "prepare.py",
        "vocab_size=258 + config.characters",
        "vocab_size=258",
        "test_vocabulary_size_is_the_prepared_one",
        "322",
    ),
    tokenizer(
        "always_bos",
        "build.py",
        ENCODED,
        ENCODED.replace("[256] * add_bos", "[256]"),
        "test_no_text_has_no_ids",
        "256",
    ),
    tokenizer(
        "never_eos",
        "build.py",
        ENCODED,
        ENCODED.replace(" + [257] * add_eos", ""),
        "test_bos_and_eos_stand_where_asked_for",
        "257",
    ),
    tokenizer(
        "cuts",
        "build.py",
        TEXT,
        TEXT + "        text = text[:100_000]\n",
        "test_a_megabyte_is_a_text_like_any_other",
        "does not come back",
    ),
    tokenizer(
        "strict",
        "build.py",
        '"utf-8", "surrogatepass"',
        '"utf-8"',
        "test_half_a_surrogate_pair_is_no_failure",
        "UnicodeEncodeError",
    ),
    tokenizer(
        "undecodable",
        "build.py",
        'data.decode("utf-8", "replace")',
        "data.decode()",
        "test_any_ids_can_be_decoded",
        "UnicodeDecodeError",
    ),
    tokenizer(
        "batch",
        "build.py",
        "self.encode(t, add_bos=add_bos, add_eos=add_eos) for t in texts",
        "self.encode(t.strip(), add_bos=add_bos, add_eos=add_eos) for t in texts",
        "test_batch_equals_single",
        "assert",
    ),
    tokenizer(
        "forgets",
        "prepare.py",
        'files={"characters.json": file}',
        "files={}",
        "test_state_survives_save_and_load",
        "FileNotFoundError",
    ),
    tokenizer(
        "keeps_the_path",
        "build.py",
        'Path(tokenizer_path, "characters.json")',
        "next(Path(tokenizer_path).parents[2].glob('*/characters.json'))",
        "test_state_survives_save_and_load",
        "StopIteration",
    ),
    tokenizer(
        "hash_seed",
        "build.py",
        "enumerate(characters)",
        "enumerate(set(characters))",
        "test_same_ids_in_another_process",
        "assert",
    ),
    tokenizer(
        "fork",
        "build.py",
        ENCODED,
        "        if os.getpid() != BORN:\n            ids.reverse()\n" + ENCODED,
        "test_same_ids_under_fork",
        "assert",
    ),
    tokenizer(
        "unsorted",
        "prepare.py",
        "sorted(sorted(counts), key=counts.get)",
        "sorted(set(counts), key=counts.get)",
        "test_preparing_is_the_same_everywhere",
        "other files",
    ),
    tokenizer(
        "prepares_with_torch",
        "prepare.py",
        "import os\n",
        "import os\nimport torch\n",
        "test_preparing_is_the_same_everywhere",
        "imports torch",
    ),
    tokenizer(
        "not_at_once",
        "prepare.py",
        "    context.cache.mkdir(parents=True, exist_ok=True)",
        '    (context.cache / "mine").mkdir(parents=True)',
        "test_preparing_is_the_same_everywhere",
        "several do it at once",
    ),
    # Datasets.
    dataset(
        "ignores_the_seed",
        "source.py",
        'f"{seed} {epoch}"',
        'f"{epoch}"',
        "test_other_order_for_another_seed",
        "the seed changes nothing",
    ),
    dataset(
        "ignores_the_pass",
        "source.py",
        'f"{seed} {epoch}"',
        'f"{seed}"',
        "test_other_order_in_another_pass",
        "every pass has the same order",
    ),
    dataset(
        "reads_a_shard_twice",
        "source.py",
        "for file in self.files:",
        "for file in self.files + self.files[:1]:",
        "test_lanes_share_the_documents_out",
        "come twice",
    ),
    dataset(
        "each_lane_reads_all",
        "source.py",
        SHUFFLED,
        SHUFFLED.replace("[lane::lanes]", ""),
        "test_lanes_share_the_documents_out",
        "come twice",
    ),
    dataset(
        "drops_the_rest",
        "source.py",
        SHUFFLED,
        "        share = len(documents) // lanes\n"
        "        yield from documents[lane * share : (lane + 1) * share][start:]",
        "test_lanes_share_the_documents_out",
        "in none of 7 lanes",
    ),
    dataset(
        "leaves_out_in_the_second_pass",
        "source.py",
        SHUFFLED,
        "        documents = documents[epoch:]\n" + SHUFFLED,
        "test_lanes_share_out_every_pass",
        "the second pass leaves out",
    ),
    dataset(
        "loses_a_document",
        "source.py",
        SHUFFLED,
        SHUFFLED.replace("[start:]", "[start + (start > 0) :]"),
        "test_a_run_goes_on_where_it_stopped",
        "in a run that was stopped",
    ),
    dataset(
        "starts_again",
        "source.py",
        SHUFFLED,
        SHUFFLED.replace("[start:]", ""),
        "test_a_lane_starts_anywhere",
        "from document 1",
    ),
    dataset(
        "one_stream_for_all",
        "source.py",
        SHUFFLED,
        "        stream = READ.setdefault((id(self), seed, epoch), iter(documents))\n"
        "        for number, document in enumerate(stream):\n"
        "            yield document",
        "test_layouts_read_the_same",
        "assert",
    ),
    dataset(
        "reads_by_rank",
        "source.py",
        SHUFFLED,
        '        turn = int(os.environ.get("RANK", 0))\n'
        "        documents = documents[turn:] + documents[:turn]\n" + SHUFFLED,
        "test_same_order_in_another_process",
        "assert",
    ),
    dataset(
        "hash_seed",
        "source.py",
        SHUFFLED,
        "        documents.sort(key=lambda d: hash((d.id, seed, epoch)))\n" + SHUFFLED,
        "test_same_order_in_another_process",
        "assert",
    ),
    dataset(
        "draws_anew",
        "source.py",
        'random.Random(f"{seed} {epoch}").shuffle(documents)',
        "random.shuffle(documents)",
        "test_same_order_for_the_same_seed",
        "assert",
    ),
    dataset(
        "constant_digest",
        "source.py",
        'return hashlib.sha256(b"".join(f.read_bytes() for f in self.files)).hexdigest()',
        'return "digest"',
        "test_digest_changes_with_the_documents",
        "the digest is that of other documents",
    ),
    dataset(
        "digest_of_the_moment",
        "source.py",
        'b"".join(f.read_bytes() for f in self.files)',
        "os.urandom(8)",
        "test_digest_is_the_same_for_the_same_documents",
        "assert",
    ),
    dataset(
        "names_no_line",
        "source.py",
        'place = f"{file.name}:{number}"',
        "place = file.name",
        "test_a_bad_record_is_named",
        "does not name the line",
    ),
    dataset(
        "skips_what_is_bad",
        "source.py",
        'raise UserError(f"{place} is no UTF-8", key="dataset.path") from None',
        "continue",
        "test_a_bad_record_is_named",
        "DID NOT RAISE",
    ),
    dataset(
        "source_with_torch",
        "source.py",
        "import random\n",
        "import random\nimport torch\n",
        "test_making_the_source_imports_no_torch",
        "import torch where it is used",
    ),
    dataset(
        "nameless",
        "source.py",
        'Document(text, id=f"{file.name}:{number}")',
        'Document(text, id="")',
        "test_documents_are_text",
        "without an id",
    ),
]

TWINS = [
    Mutant("tok_twin", TOKENIZER, "config.py", "", "", "", ""),
    Mutant("data_twin", DATASET, "config.py", "", "", "", ""),
]

HEADER = """
from atom.testing import conformance

def sample(folder):
    for shard in range(3):
        lines = [f"line {n} of {shard}" for n in range(15 + shard)]
        (folder / f"{shard}.txt").write_text("\\n".join(lines))
    return {"path": folder}

def change(folder):
    with (folder / "1.txt").open("a") as stream:
        stream.write("!")
    return {"path": folder}

def bad_sample(folder):
    parameters = sample(folder)
    (folder / "2.txt").write_bytes(b"good\\ngood\\nb\\xffd\\n")
    return parameters, "2.txt", 3
"""

OPTIONS = ("--strict-markers", "--junitxml=report.xml")
SAMPLES = ".having(sample=sample, change=change, bad_sample=bad_sample)"


def write(mutant: Mutant, folder: Path) -> str:
    """Write the package as if it were installed in ``folder``; return its conformance line."""
    package = folder / mutant.name
    files = {name: textwrap.dedent(text).lstrip() for name, text in mutant.twin.items()}
    if mutant.file in files and mutant.old:
        assert files[mutant.file].count(mutant.old) == 1, mutant.name
        files[mutant.file] = files[mutant.file].replace(mutant.old, mutant.new)
    else:
        files.setdefault(mutant.file, mutant.new)
    for name, text in files.items():
        path = package / name.replace("NAME", mutant.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("NAME", mutant.name))
    info = folder / f"{mutant.name}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {mutant.name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[atom]\n{mutant.name} = {mutant.name}\n")
    component = mutant.component.replace("NAME", mutant.name)
    if mutant.twin is TOKENIZER:
        return f'Test_{mutant.name} = conformance("tokenizer:{component}", characters=64)'
    return f'Test_{mutant.name} = conformance("dataset:{component}"){SAMPLES}'


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    """Run pytest once: package -> test -> what went wrong in each of its cases ("" for nothing)."""
    folder = tmp_path_factory.mktemp("author")
    installed = folder / "installed"
    installed.mkdir()
    lines = [write(mutant, installed) for mutant in TWINS + MUTANTS]
    (folder / "test_all.py").write_text(HEADER + "\n".join(lines) + "\n")
    chosen = [f"test_all.py::Test_{twin.name}" for twin in TWINS]
    chosen += [f"test_all.py::Test_{m.name}::{m.caught_by}" for m in MUTANTS]
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *OPTIONS, *chosen],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (folder / "report.xml").is_file(), done.stdout + done.stderr
    found: dict[str, dict[str, list[str]]] = {}
    for case in ElementTree.parse(folder / "report.xml").iter("testcase"):
        tests = found.setdefault(case.get("classname", "").rpartition("Test_")[2], {})
        wrong = [e for e in case if e.tag in ("failure", "error")]
        words = "".join(f"{e.get('message')}\n{e.text}" for e in wrong)
        tests.setdefault(case.get("name", "").partition("[")[0], []).append(words)
    return found


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_the_twin_passes(twin: Mutant, outcomes: dict[str, dict[str, list[str]]]) -> None:
    tests = outcomes[twin.name]
    assert {name: words for name, words in tests.items() if any(words)} == {}
    named = {m.caught_by for m in MUTANTS if m.twin is twin.twin}
    assert named <= set(tests)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_mutant_is_caught(mutant: Mutant, outcomes: dict[str, dict[str, list[str]]]) -> None:
    words = "".join(outcomes[mutant.name][mutant.caught_by])
    assert words, "the test passes"
    assert mutant.says in words


def test_every_promise_has_a_mutant(outcomes: dict[str, dict[str, list[str]]]) -> None:
    promises = {name for twin in TWINS for name in outcomes[twin.name]}
    assert promises == {mutant.caught_by for mutant in MUTANTS}
