"""``run.yaml``: a run, or a user's mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from damage import damaged, is_one_sentence, json_values
from hypothesis import strategies as st

from atom.errors import UserError
from atom.recipe.run import Run, read

pytestmark = pytest.mark.slow

SOUND: dict[str, Any] = {
    "architecture": {"name": "llama3_tiny", "dim": 64, "n_layers": 2},
    "tokenizer": {"name": "bytes"},
    "dataset": {"name": "stdlib"},
    "parallelism": {"name": "fsdp", "degree": -1},
    "training": {"steps": 5, "seq_len": 64, "global_batch_size": 4},
    "optimizer": {"name": "AdamW", "lr": 1e-3},
    "plugins": {"allow": ["atom-*"], "block": [], "used": ["atom-llama"]},
    "resolved": {"device": "cpu", "world_size": 1, "vocab_size": 256, "global_batch_size": 4},
}

_TEXTS = ["&a [*a]", "<<: *x", "!!python/object:os.system", "? [a]", "{", "%YAML 9", "---", "..."]


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """A sound run with a key set or taken away, then perhaps with damaged bytes; or any text."""
    content = {name: dict(section) for name, section in SOUND.items()}
    names = st.sampled_from([*Run.model_fields, "nothing", ""])
    for _ in range(draw(st.integers(0, 3))):
        name = draw(names)
        if isinstance(content.get(name), dict) and draw(st.booleans()):
            keys = st.sampled_from([*content[name], "name", "folder"]) | st.text(max_size=4)
            content[name][draw(keys)] = draw(json_values)
        else:
            content[name] = draw(json_values)  # type: ignore[assignment]
    text = yaml.safe_dump(content, allow_unicode=True)
    if draw(st.booleans()):
        text += draw(st.sampled_from(_TEXTS) | st.text(max_size=30))
    data = text.encode(errors="surrogatepass")
    return draw(st.just(data) | damaged(data) | st.binary(max_size=200))


def test_run_yaml(fuzz: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            run = read(path)
        except UserError as error:
            is_one_sentence(error)
            return
        run.write(path)
        assert json.dumps(read(path).model_dump(mode="json")) == json.dumps(
            run.model_dump(mode="json")
        )

    check(yaml.safe_dump(SOUND | {"resolved": None}).encode())
    fuzz(documents(), check)
