"""What files, models and plugins say does not steer the terminal of whoever looks at it."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
from rich.text import Text

from atom.io.printing import Printed, as_it_is, clean, escaped, protected
from atom.io.terminal import Encodable, Styled
from atom.recipe.run import parse
from atom.run_dir import events, logs

STEERS = {
    "color": "\x1b[31m",
    "clipboard": "\x1b]52;c;ZWNobyBvd25lZA==\x07",
    "title": "\x1b]0;owned\x07",
    "C1": "\x9b2J\x9d0;x\x9c",
    "carriage return": "\rfine",
    "backspace": "\b\b\b",
    "delete": "\x7f",
    "right to left": "\u202eevil\u202c",
    "isolates": "\u2066a\u2069",
    "lines": "\u2028b\u2029",
}
ALL = "".join(STEERS.values())
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose every text steers."""
    place = tmp_path / f"run{STEERS['color']}"
    (place / "logs").mkdir(parents=True)
    sections: dict = {
        name: {"name": f"x{ALL}"} for name in ("architecture", "tokenizer", "dataset", "optimizer")
    }
    sections["dataset"][f"key{ALL}"] = ALL
    sections |= {"parallelism": {"name": f"x{ALL}"}, "training": {"steps": 2}}
    parse(sections).write(place / "run.yaml")
    events.record(place, events.STARTED, ranks=1)
    events.record(place, events.FAILED, step=1, reason=f"why{ALL}", restart=False)
    line = {"time": ALL, "level": ALL, "event": f"hello{ALL}", f"k{ALL}": [ALL], "exception": ALL}
    for ascii_only, name in ((True, "launcher"), (False, "rank_0")):
        text = json.dumps(line, ensure_ascii=ascii_only)
        (place / f"logs/{name}.jsonl").write_text(f"{text}\nraw {ALL}\n", newline="")
    (place / "logs/rank_0.txt").write_text(f"printed {ALL}\n", newline="")
    (place / "lock.json").write_text(json.dumps({"platform": ALL, "packages": {ALL: ALL}}))
    return place


COMMANDS = {
    "status": ("status", "{run}"),
    "status --json": ("status", "{run}", "--json"),
    "runs": ("runs", "{run}/.."),
    "runs --json": ("runs", "{run}/..", "--json"),
    "logs": ("logs", "{run}", "--rank", "all"),
    "logs --json": ("logs", "{run}", "--rank", "all", "--json"),
    "logs --printed": ("logs", "{run}", "--printed"),
    "compare": ("compare", "{run}", "{run}"),
    "report": ("report", "{run}"),
    "stop": ("stop", "{run}"),
    "train": ("train", "run.dir={run}/logs", "device=cpu", "tokenizer=bytes"),
    "an option": ("status", f"--{ALL}"),
    "a command": (f"x{ALL}",),
    "a key": ("train", f"x{ALL}=1"),
    "a folder": ("status", f"none{ALL}"),
    "generate": ("generate", f"none{ALL}", "x"),
    "chat": ("chat", f"none{ALL}"),
    "export": ("export", f"none{ALL}", "--to", "hf", "--out", "x"),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_command_passes_nothing_on(command: tuple[str, ...], run: Path, forked: Callable) -> None:
    result = forked(*(word.replace("{run}", str(run)) for word in command), cwd=run.parent)
    said = result.stdout + result.stderr
    assert said.strip()
    assert "Traceback" not in said
    assert not FORBIDDEN.search(said), ascii(FORBIDDEN.search(said))


def test_pages_and_logs_hold_nothing_of_it(run: Path, forked: Callable) -> None:
    assert forked("report", str(run)).returncode == 0
    page = (run / "report.html").read_text()
    assert "why" in page
    assert not FORBIDDEN.search(page)
    found = forked("logs", str(run), "--rank", "0", "--json").stdout.splitlines()
    # What is JSON says the same as before.
    assert json.loads(found[0])["event"] == f"hello{ALL}"


def test_logs_keep_what_was_said(tmp_path: Path) -> None:
    path = tmp_path / "logs/launcher.jsonl"
    path.parent.mkdir()
    logs.setup_launcher(path)
    structlog.get_logger("atom").warning(f"said {ALL}", value=ALL)
    written = path.read_bytes().decode()
    assert not FORBIDDEN.search(written)
    assert json.loads(written)["value"] == ALL


def test_a_plugin_says_nothing_to_the_terminal(install: Callable, forked: Callable) -> None:
    code = (
        "from atom.plugin import Dataset, hookimpl\n"
        "ATOM_INTERFACE = 1\n"
        f"print({ALL!r})\n"
        "@hookimpl\n"
        "def atom_datasets():\n"
        f"    yield Dataset(name='d', summary={ALL!r}, source='loud_plugin:source')\n"
        "def broken():\n"
        f"    raise ValueError({ALL!r})\n"
    )
    site = install("loud-plugin", {"__init__.py": code})
    for words in (("plugins",), ("plugins", "dataset"), ("train", "dataset=d", "--help")):
        result = forked(*words, PYTHONPATH=str(site))
        assert not FORBIDDEN.search(result.stdout + result.stderr), words


@pytest.mark.slow
def test_a_model_says_nothing_to_the_terminal(
    train: Callable, atom: Callable, tmp_path: Path
) -> None:
    """The prompt is printed as well."""
    train(tmp_path / "run", "training.steps=1", "architecture.n_layers=1")
    said = atom("generate", str(tmp_path / "run"), f"x{ALL}", "--tokens", "200").stdout
    assert said.startswith("x?[31m?]52;c;")
    assert not FORBIDDEN.search(said)


# ---------------------------------------------------------------------------- the mechanism


@pytest.mark.parametrize("text", STEERS.values(), ids=STEERS.keys())
def test_a_stream_and_a_console(text: str) -> None:
    plain, styled = io.StringIO(), io.StringIO()
    print(f"a{text}b\tc\nd", file=Printed(plain))  # type: ignore[arg-type]
    assert plain.getvalue() == clean(f"a{text}b\tc\nd\n", keep="\n\t")
    assert not FORBIDDEN.search(plain.getvalue())
    console = Styled(Encodable(styled))
    console._force_terminal = True
    console.print(Text(f"a{text}b", "bold red"))
    console.print(f"a{text}b")
    own = re.sub(r"\x1b\[[\d;]*m", "", styled.getvalue())
    assert not FORBIDDEN.search(own)
    assert json.loads(f'"{escaped(text)}"') == text


def test_windows_lines_are_lines() -> None:
    out = io.StringIO()
    Printed(out).write("a\r\nb")
    assert out.getvalue() == "a\nb"


def test_streams_come_back() -> None:
    before = sys.stdout, sys.stderr
    with protected():
        assert isinstance(sys.stdout, Printed)
        assert (as_it_is(sys.stdout), as_it_is(sys.stderr)) == before
        assert sys.stdout.encoding == before[0].encoding
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.slow
def test_bars_of_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar of ``datasets`` moves to the start of its line, and names nothing that steers."""
    from datasets.utils import tqdm  # type: ignore[attr-defined]

    from atom_datasets.quiet import quiet

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", Printed(shown))
    with quiet():
        list(tqdm(range(2), desc=f"split {STEERS['clipboard']}{STEERS['title']}"))
    assert "split ?]52;c;" in shown.getvalue()
    assert "\r" in shown.getvalue()
    assert not FORBIDDEN.search(shown.getvalue().replace("\r", ""))
