"""Texts generated from what layers keep are those computed from all tokens, for each family.

That the tokens are those of ``transformers`` is a test of each export (``test_export.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, saver
from torch import nn

from atom.titan.generation import cache, decoding
from atom.titan.generation.cache import Recomputed
from atom.titan.generation.generate import generate, stream
from atom.titan.generation.generator import Generator
from atom.titan.generation.sampling import Sampler, Sampling, probabilities

pytestmark = pytest.mark.slow

PROMPTS = [[5, 6, 7], list(range(40, 64)), [9], [7, 7, 7]]
"""Of different lengths; the longest has more tokens than the window of gpt-oss."""

Load = Callable[[str], Generator]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def load(folder: Path) -> Load:
    """Return a family's model with random weights; each is made once."""
    made: dict[str, Generator] = {}

    def loaded(family: str) -> Generator:
        if family not in made:
            name = family.replace(", ", "-").replace(" ", "_")
            run = saver(folder)(FAMILIES[family], name)
            made[family] = Generator(run, step=None, kind="cpu")
        return made[family]

    return loaded


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_tokens_are_those_of_whole_texts(
    family: str, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone and together, greedy and sampled, while the memory of the cache grows."""
    monkeypatch.setattr(cache, "_LEAST", 8)
    model = load(family).model
    assert decoding.uncached(model) is None
    sampling = Sampling(temperature=1.0, top_k=50, top_p=0.9, seed=3)
    together = generate(model, PROMPTS, tokens=8)
    sampled = generate(model, PROMPTS, tokens=8, sampling=sampling)
    assert sampled != together
    for row, prompt in enumerate(PROMPTS):
        assert generate(model, [prompt], tokens=8) == [together[row]]
        assert generate(model, [prompt], tokens=8, sampling=sampling) == [sampled[row]]
    monkeypatch.setitem(decoding._refused, model, "asked to")
    assert generate(model, PROMPTS, tokens=8) == together


def test_logits_are_those_of_whole_texts(load: Load) -> None:
    """To rounding, however the tokens are cut, with texts that end before others."""
    model = load("gpt_oss").model
    texts = [list(range(20, 60)), list(range(80, 120))]
    state, _ = decoding.begin(model, [text[:7] for text in texts])
    for begin, end in ((7, 8), (8, 30), (30, 40)):
        logits_BV = state.extend([text[begin:end] for text in texts])
    expected_BV = Recomputed(model).extend(texts)
    assert (logits_BV - expected_BV).abs().max() <= 1e-5
    state.keep([1])
    assert (state.extend([[3]]) - Recomputed(model).extend([[*texts[1], 3]])).abs().max() <= 1e-5


def test_texts_end_apart(load: Load) -> None:
    """At an id that ends them, which is not said, or where the caller says so."""
    model = load("llama3").model
    whole = generate(model, PROMPTS, tokens=10)
    end = whole[0][4]
    cut = [text[: text.index(end)] if end in text else text for text in whole]
    assert generate(model, PROMPTS, tokens=10, ends={end}) == cut
    finished = generate(
        model, PROMPTS, tokens=10, batch=3, finished=lambda text, ids: len(ids) == text + 2
    )
    assert finished == [text[: row + 2] for row, text in enumerate(whole)]
    came = list(stream(model, PROMPTS[:2], tokens=2))
    assert came == [(0, whole[0][0]), (1, whole[1][0]), (0, whole[0][1]), (1, whole[1][1])]


class Shifted(nn.Module):
    """A layer that mixes each token with the one before, as some feed-forwards do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        before_BLD = nn.functional.pad(x_BLD, (0, 0, 1, 0))[:, :-1]
        return self.inner(x_BLD + 0.1 * before_BLD)


class Repeated(nn.Module):
    """Attention twice, with the same weights."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x_BLD: torch.Tensor, *others: Any) -> torch.Tensor:
        return self.inner(self.inner(x_BLD, *others), *others)


@pytest.mark.parametrize(
    ("part", "kind", "says"),
    [
        ("feed_forward", Shifted, "its logits would differ"),
        ("attention", Repeated, "an attention that is called twice"),
    ],
)
def test_a_model_that_no_cache_knows_is_computed_whole(
    part: str,
    kind: type[nn.Module],
    says: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = Generator(saver(folder)(FAMILIES["llama3"], part), step=None, kind="cpu").model
    layer = model.layers["0"]
    setattr(layer, part, kind(getattr(layer, part)))
    first, _ = generate(model, PROMPTS[:2], tokens=6)
    assert capsys.readouterr().err.count(says) == 1
    again = generate(model, PROMPTS[:1], tokens=6)
    assert not capsys.readouterr().err, "said twice"
    whole, more = Recomputed(model), PROMPTS[0]
    for token in first:
        assert token == whole.extend([more]).argmax()
        more = [token]
    assert again == [first]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 7},
        {"temperature": 1.3, "top_p": 0.6},
        {"temperature": 0.8, "top_k": 30, "top_p": 0.9},
        {"temperature": 1.0, "top_p": 1e-9},
    ],
)
def test_probabilities_are_those_of_transformers(settings: dict[str, float]) -> None:
    processes = pytest.importorskip("transformers.generation.logits_process")
    logits_V = torch.randn(200, generator=torch.Generator().manual_seed(0)) * 3
    expected_1V = logits_V[None].double()
    for name, kind in (
        ("temperature", processes.TemperatureLogitsWarper),
        ("top_k", processes.TopKLogitsWarper),
        ("top_p", processes.TopPLogitsWarper),
    ):
        if name in settings:
            expected_1V = kind(settings[name])(None, expected_1V)
    found_V = probabilities(logits_V, Sampling(**settings))  # type: ignore[arg-type]
    found_V = found_V / found_V.sum()
    assert torch.allclose(found_V, expected_1V.softmax(dim=-1)[0], atol=1e-12)
    assert (found_V > 0).sum() < 200 or set(settings) == {"temperature"}


def test_draws_have_the_probabilities() -> None:
    logits_BV = torch.tensor([[0.0, 1.0, 2.0, 0.5]]).expand(4000, -1)
    drawn = Sampler(Sampling(temperature=1.0), 1).draw(logits_BV, [0] * 4000)
    found_V = torch.bincount(torch.tensor(drawn), minlength=4) / 4000
    assert (found_V - logits_BV[0].softmax(dim=-1)).abs().max() < 0.03


def test_the_command_says_each_text_as_alone(load: Load, folder: Path, atom: Any) -> None:
    load("llama3")
    settings = ("--tokens", "8", "--temperature", "1", "--top-p", "0.9", "--seed", "2")
    alone = [atom("generate", "llama3", text, *settings, cwd=folder) for text in ("def", "né €")]
    together = atom("generate", "llama3", "def", "né €", *settings, cwd=folder)
    assert together.stdout == "\n".join(each.stdout for each in alone), together.stderr
    longer = atom("generate", "llama3", "x" * 2050, "--tokens", "1", cwd=folder)
    assert "trained on 2048 tokens at a time; this text may get 2052" in longer.stderr
