"""Weights out and in: what ``transformers`` loads, what a run starts from, what a model says."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from families import FAMILIES, LLAMA, VOCABULARY, Save, saver
from safetensors.torch import load_file, save_file

from atom import cli
from atom.errors import UserError
from atom.io import printing
from atom.plugin import Tokenizer, TokenizerContext
from atom.recipe.training_sections import Checkpoint
from atom.registry.host import Host
from atom.registry.select import select
from atom.run_dir import checkpoint
from atom.testing.models import logits
from atom.titan import saved_model, translate
from atom.titan.checkpoint.dcp import AtomicWriter
from atom.titan.generation.generate import generate
from atom.titan.generation.generator import Generator, pieces
from atom.titan.generation.sampling import Sampling
from atom.titan.trainer_config import model_parts
from atom.titan.weights import initial_load
from atom.titan.weights.export import export

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
"""|difference in a logit|, in float32."""


@pytest.fixture(scope="module")
def transformers_without_fla() -> None:
    """Where ``transformers`` finds ``fla``, it takes kernels that need a GPU, on any device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "fla", None)
        with suppress(ModuleNotFoundError):
            importlib.import_module("transformers.models.qwen3_5.modeling_qwen3_5")


@pytest.fixture
def run(tmp_path: Path) -> Save:
    """Write a run's folder with a checkpoint of random weights, as if it had been trained."""
    return saver(tmp_path)


# ---------------------------------------------------------------------------- out


@pytest.mark.usefixtures("transformers_without_fla")
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_what_the_run_does(family: str, run: Save, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = run(FAMILIES[family])
    made = export(folder, tmp_path / "hf", shard_size=100_000)
    assert made.files > 1
    assert not made.lost
    there, found = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert there.dtype == torch.float32
    ids_BL = torch.randint(VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected_BLV = there(ids_BL).logits
        assert expected_BLV.std() > 0.1, "logits that say nothing"
        for source in (folder, tmp_path / "hf"):
            generator = Generator(source, step=None, kind="cpu")
            logits_BLV = logits(generator.model, ids_BL)
            assert (logits_BLV - expected_BLV).abs().max() <= TOLERANCE
    prompts = ids_BL.tolist()
    said = there.generate(ids_BL, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert generate(generator.model, prompts, tokens=12) == said[:, 24:].tolist()


def test_a_file_holds_no_more_than_asked_for(run: Save, tmp_path: Path) -> None:
    export(run(LLAMA), tmp_path / "hf", shard_size=100_000)
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    held = {path.name: load_file(path) for path in (tmp_path / "hf").glob("*.safetensors")}
    assert index["weight_map"] == {name: file for file in held for name in held[file]}
    sizes = [sum(tensor.nbytes for tensor in content.values()) for content in held.values()]
    assert index["metadata"]["total_size"] == sum(sizes)
    assert max(sizes) <= 100_000
    assert all((tmp_path / "hf" / name).stat().st_mode & 0o044 for name in held)


def test_dtype(run: Save, tmp_path: Path) -> None:
    folder = run(LLAMA)
    made = export(folder, tmp_path / "hf", dtype="bfloat16")
    assert made.files == 1
    rounded = load_file(tmp_path / "hf" / "model.safetensors")
    assert {tensor.dtype for tensor in rounded.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"
    export(folder, tmp_path / "exact")
    for name, tensor in load_file(tmp_path / "exact" / "model.safetensors").items():
        assert torch.equal(tensor.bfloat16(), rounded[name])


def test_what_has_no_place_is_named(run: Save, tmp_path: Path) -> None:
    balanced = FAMILIES["qwen3_moe"] | {"load_balance_coeff": 1e-3}
    folder = run(balanced)
    assert not export(folder, tmp_path / "balanced").lost, "biases of zero are no loss"
    model = saved_model.on_meta(saved_model.trained(folder).parts.model)
    source = saved_model.Checkpoint(folder / "checkpoint/step-3")
    state = {name: source.read(name) for name in model.state_dict()}
    biases = [name for name in state if name.endswith("expert_bias_E")]
    for name in biases:
        state[name] += 1
    writer = AtomicWriter(folder / "checkpoint", 4, model_only=True)
    dcp.save(state, storage_writer=writer, no_dist=True)
    assert list(export(folder, tmp_path / "hf").lost) == biases != []


# ---------------------------------------------------------------------------- in


def resolved(architecture: dict[str, Any], place: Path, **section: Any) -> str:
    """Return ``checkpoint.initial_load`` as a run of ``architecture`` would have it."""
    read = saved_model.read(place / "run.yaml")
    run = read.model_copy(
        update={
            "checkpoint": Checkpoint.model_validate({"enable": True} | section),
            "architecture": read.architecture.model_validate(architecture),
        }
    )
    training = translate.training(run.training, "cpu")
    host = Host.load()
    parts = model_parts(select(run, host), VOCABULARY, training.seq_len)
    found, _ = initial_load.resolve(
        run, parts, training, place / "new", host, vocab_size=VOCABULARY
    )
    return str(found.checkpoint.initial_load)


def test_places_to_start_from(run: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(LLAMA)
    export(folder, tmp_path / "hf", shard_size=100_000)
    monkeypatch.chdir(tmp_path)
    newest = str(folder / "checkpoint/step-3")
    assert resolved(LLAMA, folder, initial_load="hf:hf") == f"hf:{tmp_path / 'hf'}"
    assert resolved(LLAMA, folder, initial_load="run") == newest
    assert resolved(LLAMA, folder, initial_load="run/checkpoint/step-3") == newest


def test_a_run_that_goes_on_needs_its_start_no_more(
    run: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(LLAMA)
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="no such folder"):
        resolved(LLAMA, folder, initial_load="hf:gone")
    writer = AtomicWriter(folder / "new" / checkpoint.FOLDER, 1, model_only=False)
    dcp.save({"weight": torch.zeros(1)}, storage_writer=writer, no_dist=True)
    assert resolved(LLAMA, folder, initial_load="hf:gone") == f"hf:{folder / 'gone'}"


def _break(path: Path) -> None:
    path.write_bytes(b"\xff" * 16)


def _lack(path: Path) -> None:
    content = load_file(path)
    del content["model.norm.weight"]
    save_file(content, path)


BAD_STARTS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "no folder": ({}, {"initial_load": "hf:nowhere"}, ("no such folder", "config.json")),
    "no weights": ({}, {"initial_load": "hf:run"}, ("holds no .safetensors",)),
    "other sizes": ({"dim": 128}, {"initial_load": "hf:hf"}, ("hidden_size=64", "128")),
    "other heads": ({"n_heads": 8}, {"initial_load": "hf:hf"}, ("num_attention_heads=4", "8")),
    "tied": ({"tie_embeddings": True}, {"initial_load": "hf:hf"}, ("tie_word_embeddings=false",)),
    "checkpoints off": ({}, {"initial_load": "hf:hf", "enable": False}, ("enable=false",)),
    "two places": ({}, {"initial_load": "run", "initial_load_path": "/x"}, ("two places",)),
    "broken file": ({}, {"initial_load": "hf:broken"}, ("model.safetensors", "cannot be read")),
    "weight missing": ({}, {"initial_load": "hf:lacking"}, ("1 of its 21", "model.norm.weight")),
    "export as native": ({}, {"initial_load": "hf"}, ("did you mean hf:hf?",)),
    "no checkpoint": ({}, {"initial_load": "nowhere"}, ("holds no checkpoint", "step-N")),
    "native of other sizes": ({"n_layers": 3}, {"initial_load": "run"}, ("another model",)),
}


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its export, and damaged copies of the export."""
    folder = tmp_path_factory.mktemp("starts")
    export(saver(folder)(LLAMA), folder / "hf")
    for name, damage in (("broken", _break), ("lacking", _lack)):
        shutil.copytree(folder / "hf", folder / name)
        damage(folder / name / "model.safetensors")
    return folder


@pytest.mark.parametrize("case", BAD_STARTS)
def test_bad_place_to_start_from(case: str, starts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, section, says = BAD_STARTS[case]
    monkeypatch.chdir(starts)
    with pytest.raises(UserError) as error:
        resolved(LLAMA | changes, starts / "run", **section)
    sentence = str(error.value)
    assert sentence.startswith("checkpoint")
    assert "\n" not in sentence
    assert all(words in sentence for words in says), sentence


# ---------------------------------------------------------------------------- mistakes


BAD_COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "export: no folder": ("export nowhere --to hf --out new", ("nowhere", "no such folder")),
    "export: no run": ("export empty --to hf --out new", ("empty", "run.yaml")),
    "export: no step": ("export run --to hf --out new --step 7", ("step 7", "valid: 3")),
    "export: format": ("export run --to onnx --out new", ("--to", "onnx", "hf")),
    "export: no out": ("export run --to hf", ("--out",)),
    "export: out in use": ("export run --to hf --out full", ("full", "not empty")),
    "export: out is a file": ("export run --to hf --out full/file", ("full/file", "is a file")),
    "export: dtype": ("export run --to hf --out new --dtype int8", ("int8", "bfloat16")),
    "export: size": ("export run --to hf --out new --shard-size big", ("big", "500MB")),
    "export: damaged": ("export damaged --to hf --out new", ("damaged", "bytes instead of")),
    "export: altered": ("export altered --to hf --out new", ("altered", "other content")),
    "export: no counterpart": ("export softmax --to hf --out new", ("architecture.name=deepseek",)),
    "generate: no folder": ("generate nowhere x", ("nowhere", "no such folder")),
    "generate: no tokens": ("generate run x --tokens 0", ("--tokens", "'0'", "from 1")),
    "generate: cold": ("generate run x --temperature -1", ("--temperature", "'-1'", "from 0")),
    "generate: no number": ("generate run x --temperature nan", ("--temperature", "'nan'")),
    "generate: no share": ("generate run x --top-p 0", ("--top-p", "'0'", "above 0 and at most 1")),
    "generate: too long": ("generate run x --tokens 999999999", ("--tokens 999999999", "reaches")),
    "generate: no step": ("generate run x --step 7", ("step 7", "valid: 3")),
}


@pytest.fixture
def places(run: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with runs, whole and damaged."""
    run(LLAMA)
    run(FAMILIES["deepseek_v3"] | {"score_func": "softmax"}, "softmax")
    for name in ("damaged", "altered"):
        shutil.copytree(tmp_path / "run", tmp_path / name)
        (file,) = (tmp_path / name / "checkpoint/step-3").glob("*.distcp")
        content = file.read_bytes()
        file.write_bytes(content[:-1] + (b"" if name == "damaged" else bytes([content[-1] ^ 1])))
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_mistakes_are_one_sentence(places: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(places.rglob("*"))
    for case, (command, says) in BAD_COMMANDS.items():
        assert cli.main(command.split()) == 2, case
        out, sentence = capfd.readouterr()
        assert not out, case
        assert sentence.startswith("atom: "), case
        assert sentence.count("\n") == 1, sentence
        assert all(words in sentence for words in says), f"{case}: {sentence}"
    assert sorted(places.rglob("*")) == before


def test_an_export_that_fails_leaves_nothing(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left")

    monkeypatch.setattr("atom.titan.weights.export.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        export(places / "run", places / "new")
    assert not list(places.glob("*new*"))


# ---------------------------------------------------------------------------- saying


def test_what_is_said_depends_on_the_seed_alone(run: Save) -> None:
    generator = Generator(run(LLAMA), step=3, kind="cpu")

    def said(**options: Any) -> list[int]:
        tokens = options.pop("tokens", 5)
        sampling = Sampling(**{"temperature": 1.0} | options)
        return list(generator.ids(generator.encode("abc"), tokens=tokens, sampling=sampling))

    assert said() == said()
    assert said() != said(seed=1)
    assert said(temperature=0) == said(temperature=0, seed=1) == said(top_k=1, seed=2)
    assert said(temperature=1e-12) == said(temperature=0)
    assert said(temperature=0)[:3] == said(temperature=0, tokens=3)


def test_bytes_say_the_same_in_transformers(run: Save, tmp_path: Path) -> None:
    """A greedy continuation, by the files of the export alone."""
    transformers = pytest.importorskip("transformers")
    folder = run(LLAMA)
    chosen = saved_model.trained(folder).selection[Tokenizer]
    context = TokenizerContext(documents=lambda: iter(()), digest="", cache=tmp_path / "cache")
    (folder / "tokenizer").mkdir()
    for name, path in chosen.call("prepare", context).files.items():
        shutil.copyfile(path, folder / "tokenizer" / name)
    assert export(folder, tmp_path / "hf").tokenizer

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    prompt = tokenizer("né <x>", return_tensors="pt")
    made = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0]
    made = made[prompt.input_ids.shape[1] :].tolist()
    for source in (folder, tmp_path / "hf"):
        generator = Generator(source, step=None, kind="cpu")
        ids = generator.encode("né <x>")
        assert ids == prompt.input_ids[0].tolist()
        said = list(generator.ids(ids, tokens=24, sampling=Sampling()))
        assert said == [token for token in made if token != tokenizer.eos_token_id]


def test_text_comes_in_whole_characters(run: Save) -> None:
    tokenizer = Generator(run(LLAMA), step=None, kind="cpu").tokenizer
    written = "né €!".encode()
    assert list(pieces(tokenizer, [65], iter(written))) == ["n", "é", " ", "€", "!", ""]
    # What is no text: a character that breaks off, and one at the end.
    assert "".join(pieces(tokenizer, [], iter(b"a\xe2\x82b\xf0\x9f"))) == "a�b�"


# ---------------------------------------------------------------------------- whole


PLAIN = (
    "tokenizer=bpe",
    "tokenizer.vocab_size=512",
    "tokenizer.train_bytes=200000",
    "architecture.vocab_size=512",
    "optimizer.lr=1e-2",
)


def test_from_training_to_transformers_and_back(
    tmp_path: Path, atom: Callable[..., Any], train: Callable[..., list[dict]]
) -> None:
    """Two ranks train and save; one file after another goes out; other layouts start from it."""
    transformers = pytest.importorskip("transformers")
    train(
        tmp_path / "run", *PLAIN, "training.steps=3", "parallelism=fsdp",
        "parallelism.data_parallel_shard_degree=2",
    )  # fmt: skip
    arguments = ("--to", "hf", "--out", "hf", "--shard-size", "200KB")
    made = atom("export", "run", *arguments, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert not made.stderr
    hf = tmp_path / "hf"
    assert len(list(hf.glob("*.safetensors"))) > 1

    model = transformers.AutoModelForCausalLM.from_pretrained(hf)
    tokenizer = transformers.AutoTokenizer.from_pretrained(hf)
    ids = tokenizer("def main", return_tensors="pt")
    assert ids.input_ids[0, 0] == tokenizer.bos_token_id == model.config.bos_token_id
    said = model.generate(**ids, max_new_tokens=20, do_sample=False)[0]
    expected = tokenizer.decode(said, skip_special_tokens=True)
    for source in ("run", "hf"):
        result = atom(
            "generate", source, "def main", "--tokens", "20", "--temperature", "0", cwd=tmp_path
        )
        assert result.stdout == printing.clean(expected, keep="\n\t") + "\n", result.stderr

    layout = (
        "parallelism=fsdp", "parallelism.data_parallel_shard_degree=2",
        "parallelism.tensor_parallel_degree=2",
    )  # fmt: skip
    once = (*PLAIN, "training.steps=2")
    fresh = train(tmp_path / "fresh", *once)
    native = train(tmp_path / "native", *once, f"checkpoint.initial_load={tmp_path / 'run'}")
    split = train(tmp_path / "split", *once, *layout, f"checkpoint.initial_load=hf:{hf}")
    assert native[0]["loss"] < fresh[0]["loss"] - 0.1, "nothing was loaded"
    for row, expected_row in zip(split, native, strict=True):
        assert abs(row["loss"] - expected_row["loss"]) <= 2e-4
