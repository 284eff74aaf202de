"""`atom report`: one page that needs nothing else, as a real browser shows it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from atom.cli import main
from atom.recipe.run import DEGREES, parse
from atom.run_dir import events
from atom.run_dir.histograms import Histograms
from atom.run_dir.metrics import FILE_NAME, StepMetrics
from atom.run_dir.validated import SetResult

HOSTILE = "</title><script>document.title='owned'</script><img src=x onerror=alert(1)>\x1b\u202e"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


def row(step: int, loss: float) -> StepMetrics:
    return StepMetrics(
        step=step,
        loss=loss,
        grad_norm=loss / 2,
        lr=1e-3 / step,
        tokens_seen=512 * step,
        tokens_per_second=1000.0 + step,
        step_seconds=0.5,
        memory_gib=0.5,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was started again, and whose files hold what a stranger may have put there."""
    place = tmp_path / "runs" / "<b>bold"
    place.mkdir(parents=True)
    degrees = dict.fromkeys(DEGREES, 1) | {"tensor_parallel_degree": 2, DEGREES[1]: 6}
    parse(
        {
            "architecture": {"name": "llama3", "note": HOSTILE},
            "tokenizer": {"name": "bytes"},
            "dataset": {"name": "local", "path": HOSTILE},
            "parallelism": {"name": "mesh"},
            "training": {"steps": 6, "seq_len": 64},
            "optimizer": {"name": "AdamW", "lr": 0.125},
            "resolved": {
                "device": "cpu",
                "world_size": 12,
                "vocab_size": 320,
                "global_batch_size": 8,
                "degrees": degrees,
                "kernels": {"attention": "reference"},
            },
        }
    ).write(place / "run.yaml")
    losses = [4.0, 3.0, math.nan, math.inf, 1e300, 2.0]
    lines = [row(step, loss).to_json() for step, loss in enumerate(losses, start=1)]
    (place / FILE_NAME).write_text("".join(f"{line}\n" for line in lines))
    (place / "metrics.rolled_back.jsonl").write_text(row(3, 2.9).to_json() + "\n")
    events.record(place, events.STARTED, ranks=12, attempt=1)
    phases = {"imports": 0.25, "first_batch": 1.5}
    events.record(place, events.UNDER_WAY, step=1, seconds=phases, slowest={"imports": HOSTILE})
    events.record(place, events.CHECKPOINT_SAVED, step=2, seconds=0.5)
    events.record(place, events.FAILED, step=3, reason=HOSTILE, restart=True)
    events.record(place, events.STARTED, ranks=12, attempt=2)
    events.record(place, events.FINISHED, step=6)
    origins = {"optimizer.lr": "command line", "training.steps": "/etc/x/my_pkg/conf/train.yaml"}
    (place / "origins.json").write_text(json.dumps(origins))
    (place / "lock.json").write_text(
        json.dumps({"python": HOSTILE, "packages": {"torch": "2.15.0"}})
    )
    return place


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def test_each_validation_set_has_a_curve(run: Path) -> None:
    """And a stranger's name of one is text; a repeated step is drawn, too."""
    results = [SetResult(loss=4.0 / step, tokens=10, bytes=30) for step in (1, 2, 3)]
    rows = [
        dataclasses.replace(row(step, 2.0), validation={"web": result, HOSTILE: result})
        for step, result in enumerate(results, start=1)
    ]
    (run / FILE_NAME).write_text("".join(f"{each.to_json()}\n" for each in rows))
    (run / "metrics.rolled_back.jsonl").write_text(rows[2].to_json() + "\n")
    assert main(["report", str(run)]) == 0
    page = Page((run / "report.html").read_text())
    said = f"validation loss of web, nats per token; the last: {results[-1]}"
    assert said in page.words
    assert "bits/byte 0.6412" in said
    assert not [tag for tag, _ in page.tags if tag in ("script", "img")]


def measured(step: int) -> StepMetrics:
    """Return a row with values of callbacks: of 60 layers, of which one explodes, and of a name
    that a stranger chose."""
    layers = {f"gradient/layers.{n}": 10.0 ** (-n / 30) for n in range(60)}
    layers["gradient/layers.7"] = math.nan if step == 3 else 50.0 * step
    values = {"norms": layers, HOSTILE: {"loss": 0.25 * step}}
    return dataclasses.replace(row(step, 2.0), callbacks=values)


def test_values_of_callbacks_are_curves_and_heat_maps(run: Path) -> None:
    lines = [measured(step).to_json() for step in range(1, 5)]
    (run / FILE_NAME).write_text("".join(f"{line}\n" for line in lines))
    page = Page(report(run))
    (told,) = [
        str(attributes["aria-label"])
        for tag, attributes in page.tags
        if tag == "svg" and attributes["class"] == "heat"
    ]
    assert "norms: gradient: 0.0108 (light) to 200.0000 (dark), logarithmic; 48 of 60 rows" in told
    assert "highest: 200.0000 in layers.7 at step 4; first not finite: layers.7 at step 3" in told
    cells = [str(a["d"]).count("z") for _, a in page.tags if "fill-opacity" in a]
    assert sum(cells) == 48 * 4 - 1, "all rows that are drawn, but for one value"
    assert "onerror" not in [name for _, attributes in page.tags for name in attributes]
    assert f"{HOSTILE[:8]}" in page.words
    assert "Callbacks" in page.words


def test_histograms_are_heat_maps_over_layers_and_bins(run: Path) -> None:
    """Those of the first and of the last step that have any."""
    edges = [-1.0, -0.5, 0.5, 1.0]
    lines = []
    for step in range(1, 5):
        counts = {"weight/layers.0": [0, 3 - step / 4, step / 4], f"gradient/{HOSTILE}": [1, 0, 0]}
        found = {"histograms": Histograms(edges, counts)} if step != 2 else None
        lines.append(dataclasses.replace(row(step, 2.0), histograms=found).to_json())
    (run / FILE_NAME).write_text("".join(f"{line}\n" for line in lines))
    page = Page(report(run))
    told = [
        str(attributes["aria-label"])
        for tag, attributes in page.tags
        if tag == "svg" and attributes["class"] == "heat"
    ]
    assert [words.partition(":")[2].partition(":")[0] for words in told] == [
        *(
            f" {kind}, histograms of step {step}"
            for kind in ("weight", "gradient")
            for step in (1, 4)
        )
    ]
    assert (
        "0.083 (light) to 0.92 (dark), logarithmic. highest: 0.92 in layers.0 at -0.5 to 0.5"
        in (told[0])
    )
    assert "highest: 0.67 in layers.0 at -0.5 to 0.5" in told[1]
    assert "onerror" not in [name for _, attributes in page.tags for name in attributes]


def report(run: Path) -> str:
    assert main(["report", str(run)]) == 0
    return (run / "report.html").read_text()


def test_what_a_report_tells(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = Page(report(run))
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    for words in ("runs/<b>bold", "6 of 6", "0.125", "command line", "my_pkg/conf/train.yaml",
                  "2.15.0", "kernels.default=auto", "3,072 tokens", "The first 4 of dp_shard 6",
                  "Checkpoints saved: 1, of steps 2",
                  "seconds imports 0.25, first batch 1.5; "):  # fmt: skip
        assert words in page.words, words
    told = {attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg"}
    (loss,) = [words for words in told if words and words.startswith("loss")]
    assert "4.0000 at step 1, 2.0000 at step 6" in loss
    assert "not finite at 2 steps" in loss
    assert "Marked: checkpoints, restarts" in loss
    restarts = [attributes for tag, attributes in page.tags if attributes.get("class") == "restart"]
    assert len(restarts) == 5, "one a curve"
    assert any(attributes.get("class") == "line old" for _, attributes in page.tags)


def test_a_report_needs_no_network_and_runs_nothing(run: Path) -> None:
    text = report(run)
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "iframe", "link", "object", "embed", "base", "b"}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "src"]
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\(|@import|https?://", text)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "document.title='owned'" in page.words, "shown as text"


def test_origins_that_were_not_kept_are_said_to_be(run: Path) -> None:
    (run / "origins.json").unlink()
    assert "origins.json" in Page(report(run)).words


def test_a_run_without_a_step_has_a_report(run: Path) -> None:
    (run / FILE_NAME).unlink()
    (run / "metrics.rolled_back.jsonl").unlink()
    (run / "lock.json").write_text("[")
    assert "No step has been logged yet." in Page(report(run)).words


def test_no_report_of_no_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run.parent)]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert main(["report", str(run), "--out", str(run / "none" / "x.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.skipif(
    not CHROMIUM, reason="Chromium is not installed here (apt-get install chromium)"
)
@pytest.mark.parametrize("width", [1100, 500])
def test_a_browser_shows_it(run: Path, tmp_path: Path, width: int) -> None:
    """Laid out by the real engine: nothing has run, and nothing is wider than the window."""
    page = report(run)
    probe = (
        "<script>onload = () => { document.body.dataset.seen = [document.title, innerWidth,"
        "document.documentElement.scrollWidth, document.querySelectorAll('svg').length,"
        "[...document.querySelectorAll('svg.chart')].every(s => s.clientHeight > 100)"
        "].join('|') }</script>"
    )
    probed = tmp_path / "probed.html"
    # The page itself forbids every script; the probe is ours.
    allowed = page.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    assert allowed != page
    probed.write_text(allowed.replace("</body>", f"{probe}</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}",
               f"--window-size={width},900", "--virtual-time-budget=2000", "--dump-dom",
               probed.as_uri()]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    seen = re.search(r'data-seen="([^"]*)"', result.stdout)
    assert seen is not None, result.stderr
    title, inner, scroll, pictures, drawn = seen[1].split("|")
    assert title == "runs/&lt;b&gt;bold: a run of ATOM", "a script of the files' has run"
    assert int(scroll) <= int(inner) <= width
    assert (pictures, drawn) == ("6", "true")
