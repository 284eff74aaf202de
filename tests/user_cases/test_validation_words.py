"""What pydantic finds is told in words of the user's, with the key at fault."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel, TypeAdapter
from pydantic_core._pydantic_core import list_all_errors

from atom.compose import command_line
from atom.errors import UserError
from atom.recipe import validation, validation_words
from atom.recipe.run import Run
from atom.registry.host import Host

# ---------------------------------------------------------------------------- what was validated

SPOKEN_OF_ELSEWHERE = {
    "missing",
    "missing_argument",
    "missing_keyword_only_argument",
    "missing_positional_only_argument",
    "extra_forbidden",
    "unexpected_keyword_argument",
    "value_error",
    "assertion_error",
}
CANNOT_OCCUR = {
    "no_such_attribute",  # of assignments
    "frozen_field",
    "frozen_instance",
    "get_attribute_error",  # of objects with attributes
    "needs_python_object",  # of JSON
    "multiple_argument_values",  # of calls
}


def test_every_fault_that_pydantic_finds_has_words() -> None:
    faults = list_all_errors()
    kinds = {fault["type"] for fault in faults} - SPOKEN_OF_ELSEWHERE - CANNOT_OCCUR
    assert kinds - validation_words.WORDS.keys() == set()
    for fault in faults:
        if fault["type"] in kinds:
            # The names in braces are those that pydantic gives.
            context = dict(fault["example_context"] or {})
            context |= {"actual_length": 0} if "length" in str(context) else {}
            said = validation_words.words({"type": fault["type"], "ctx": context, "input": None})
            assert said
            assert "nput" not in said


class _Inner(BaseModel, extra="forbid"):
    either: typing.Annotated[str, "text"] | list[int] | None = None
    pairs: dict[str, list[tuple[int, float]]] = {}


class _Outer(BaseModel, extra="forbid"):
    inner: _Inner = _Inner()
    both: _Inner | int = 1


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"inner": {"either": {}}}, "top.inner.either={}: must be text or a list, such as [a,b]"),
        ({"inner": {"either": ["x"]}}, "top.inner.either=[x]: must be text"),
        (
            {"inner": {"pairs": {"list": [[1, 2], [1, "x"]]}}},
            "top.inner.pairs.list.1.1=x: must be a number",
        ),
        ({"both": "x"}, "top.both=x: must be a section of keys or a whole number"),
    ],
)
def test_the_key_at_fault_holds_no_type_of_pydantics(section: dict, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        validation.validated(TypeAdapter(_Outer), section, key="top", fields=[])
    assert refused.value.sentence() == sentence


def test_keys_of_text_are_those_of_torchtitan() -> None:
    # torch is needed to ask: what the table says is compared with torchtitan's own dataclasses.
    code = (
        "import dataclasses, json, typing\n"
        "from atom.titan import translate\n"
        "found = [*translate.CONFIGS.items()]\n"
        "found += [('activation_checkpoint', c) for c in "
        "translate.ACTIVATION_CHECKPOINT.values() if c]\n"
        "print(json.dumps(sorted({f'{section}.{field.name}' for section, schema in found\n"
        "    for field in dataclasses.fields(schema) if field.init\n"
        "    if typing.get_type_hints(schema)[field.name] in (str, str | None)})))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = {*json.loads(done.stdout), "activation_checkpoint.mode"}
    assert expected == command_line.ENGINE_TEXT


def test_every_path_of_a_run_is_known_as_one() -> None:
    found = {
        f"{section}.{name}"
        for section, field in Run.model_fields.items()
        for name, below in getattr(field.annotation, "model_fields", {}).items()
        if Path in (below.annotation, *typing.get_args(below.annotation))
    }
    assert {"run.dir", "plugins.locked"} <= found
    assert all(command_line.taken(f"{key}=").path for key in found)
    assert dataclasses.asdict(command_line.taken("optimizer.lr=", Host.load()))["numbers"]


@pytest.mark.slow
def test_a_run_lives_in_a_folder_of_any_name(
    atom: Callable, forked: Callable, tmp_path: Path
) -> None:
    place = "runs/[x] é,=#%'$ {a} (b) *?::2024_01"
    tiny = "tokenizer=bytes training.seq_len=64 training.global_batch_size=4 device=cpu"
    tiny += " architecture.n_layers=2 architecture.dim=64 metrics=none checkpoint.interval=1"
    for steps in (1, 2):
        result = atom(
            "train", f"training.steps={steps}", *tiny.split(), f"run.dir={place}", cwd=tmp_path
        )
        assert result.returncode == 0, result.stdout + result.stderr
    assert "resumed after step 1" in result.stdout
    assert {"run.yaml", "metrics.jsonl"} <= {path.name for path in (tmp_path / place).iterdir()}
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [Path(place).name]
    for command in (["status", place], ["logs", place], ["report", place], ["runs", "runs"]):
        result = forked(*command, cwd=tmp_path)
        assert result.returncode == 0, (command, result.stderr)
