"""``atom bench kernels`` on the CPU: what it says is what it measured, and why it did not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from atom.bench.ceiling import Ceiling
from atom.bench.measure import Bench, Row
from atom.bench.report import made
from atom.bench.subjects import SHAPES, chosen
from atom.cli import main
from atom.cli.bench import _SHAPES
from atom.kernels.operations import OPERATIONS
from atom.plan.device import named
from atom.plugin import Kernel, Needs
from atom.registry.host import Component, Host
from atom.testing import models
from atom.titan.contracts import functions, operations

pytestmark = pytest.mark.slow

QUICK = ("--device", "cpu", "--shapes", "tiny", "--seconds", "0.001")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    with models.one_thread():
        yield


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.load()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a bench of everything."""
    folder = tmp_path_factory.mktemp("bench")
    files = [f"--{kind}={folder / name}" for kind, name in FILES.items()]
    with pytest.MonkeyPatch.context() as patch, models.one_thread():
        patch.delenv("TRITON_INTERPRET", raising=False)
        assert main(["bench", "kernels", *QUICK, "--no-compile", *files]) == 0
    return folder


FILES = {"json": "found.json", "markdown": "found.md", "picture": "found.svg"}


def test_every_kernel_is_timed_or_has_a_reason(found: Path, host: Host) -> None:
    data = json.loads((found / "found.json").read_text())
    assert data["command"].startswith("atom bench kernels --device cpu")
    assert data["device"]["kind"] == "cpu"
    assert "1 thread" in data["timer"]
    assert {"python", "atom-train", "torch", "triton", "torchtitan"} <= data["versions"].keys()
    assert data["ceiling"]["flops"].keys() == {"float32"}
    rows = data["rows"]
    installed = {
        (c.declaration.operation, c.declaration.name)
        for c in host.components
        if isinstance(c.declaration, Kernel)
    }
    assert {(row["operation"], row["kernel"]) for row in rows} == installed
    for row in rows:
        assert bool(row["passes"]) != bool(row["reason"]), row
        assert not row["failed"], row
    reasons = {(r["function"], r["kernel"]): r["reason"] for r in rows}
    assert reasons["attention", "flex"] == "needs cuda, and this is cpu"
    assert "interpreter" in reasons["silu_mul", "triton"]
    assert reasons["rms_norm", "reference"] is None


def test_numbers_go_together(found: Path) -> None:
    data = json.loads((found / "found.json").read_text())
    sizes = SHAPES["tiny"][0]
    ceiling = data["ceiling"]
    for row in data["rows"]:
        passes = row["passes"]
        if not passes:
            continue
        contract = functions.FUNCTIONS[row["function"]]
        assert passes["forward"]["flops"] == contract.forward(sizes).flops
        assert passes["forward"]["bytes"] == contract.forward(sizes).bytes(4)
        for name, one in passes.items():
            assert one["seconds"] > 0
            assert one["flops_per_second"] == pytest.approx(one["flops"] / one["seconds"])
            assert one["bytes_per_second"] == pytest.approx(one["bytes"] / one["seconds"])
            least = {
                "compute": one["flops"] / ceiling["flops"][row["dtype"]],
                "memory": one["bytes"] / ceiling["bandwidth"],
            }
            assert least[one["bound"]] == max(least.values())
            assert one["fraction"] == pytest.approx(max(least.values()) / one["seconds"])
            if name != "backward":
                assert one["low"] <= one["seconds"] <= one["high"]
            if row["kernel"] == "reference":
                assert one["speedup"] == {"reference": 1.0}
        if "backward" in passes:
            difference = passes["both"]["seconds"] - passes["forward"]["seconds"]
            assert passes["backward"]["seconds"] == pytest.approx(difference)


def test_the_table_says_that_it_is_of_a_cpu(found: Path) -> None:
    table = (found / "found.md").read_text()
    assert "**Timed on a CPU, not on a GPU.**" in table
    assert "| rms_norm | float32 | 64 × 64 | reference | forward |" in table
    assert "| moe_dispatch | reference |" in table.partition("Not timed:")[2]


def test_the_picture_is_one(found: Path) -> None:
    svg = "{http://www.w3.org/2000/svg}"
    picture = ElementTree.fromstring((found / "found.svg").read_text())
    assert picture.tag == f"{svg}svg"
    titles = [title.text or "" for title in picture.iter(f"{svg}title")]
    assert any(title.startswith("rms_norm float32 64 × 64, reference, forward") for title in titles)
    _, _, width, height = map(float, picture.attrib["viewBox"].split())
    for text in picture.iter(f"{svg}text"):
        assert 0 <= float(text.attrib["x"]) <= width
        assert 0 <= float(text.attrib["y"]) <= height


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--operation", "rmsnorm"], "--operation rmsnorm: no kernel has it; did you mean rms_nor"),
        (["--kernel", "tritn"], "--kernel tritn: there is no such kernel; did you mean triton?"),
        (
            ["--operation", "embedding", "--kernel", "triton"],
            "--kernel triton: there is no such kernel of embedding; valid: reference",
        ),
        (["--seconds", "0"], "'0' is not a number of seconds; valid: above 0, at most 60"),
        (["--within", "soon"], "'soon' is not a number of seconds; valid: above 0"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--picture", "found.png"], "valid: FILE.svg"),
        (["--json", "no/such/found.json"], "there is no folder no/such"),
        (["--device", "cuda"], "torch finds no CUDA device here; valid: auto, cpu"),
    ],
)
def test_what_cannot_be(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "kernels", *arguments]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert (said.out, len(said.err.splitlines())) == ("", 1)


def test_bench_of_nothing_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 2
    assert (
        capsys.readouterr().err
        == "atom: atom bench: needs the name of a benchmark; valid: kernels\n"
    )
    assert main(["bench", "krnels"]) == 2


def test_the_reference_is_timed_beside_a_kernel_that_is_named(host: Host) -> None:
    assert list(SHAPES) == list(_SHAPES)
    names = [(s.function, s.kernel.name) for s in chosen(host, ["feed_forward"], ["triton"])]
    assert names == [
        ("feed_forward", "reference"),
        ("feed_forward", "triton"),
        ("silu_mul", "reference"),
        ("silu_mul", "triton"),
    ]
    assert {s.function for s in chosen(host, ["silu_mul"], [])} == {"silu_mul"}


# ---------------------------------------------------------------------------- little time


def test_after_the_time_given_no_kernel_is_begun(tmp_path: Path) -> None:
    place = tmp_path / "found.json"
    within = ["--operation", "silu_mul", "--within", "1e-9", f"--json={place}"]
    assert main(["bench", "kernels", *QUICK, *within]) == 0
    reasons = {row["kernel"]: row["reason"] for row in json.loads(place.read_text())["rows"]}
    assert reasons["reference"] == "the time given was over"
    assert "interpreter" in reasons["triton"]


def test_what_was_timed_is_not_lost_when_the_bench_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, measured = Bench._measured, []

    def stopped(self: Bench, row: Row, *rest: Any) -> Row:
        if len(measured) == 2:
            raise SystemExit(75)
        measured.append(row.function)
        return measure(self, row, *rest)

    monkeypatch.setattr(Bench, "_measured", stopped)
    place = tmp_path / "found.json"
    assert main(["bench", "kernels", *QUICK, "--no-compile", f"--json={place}"]) == 75
    rows = json.loads(place.read_text())["rows"]
    assert [row["function"] for row in rows if row["passes"]] == measured


def test_every_function_is_timed_before_one_is_at_another_size(host: Host) -> None:
    subjects = chosen(host, ["rms_norm", "silu_mul"], ["triton"])
    bench = Bench(named("cpu"), Ceiling({"float32": 1e9}, 1e9), 0.001, False, until=0.0)
    rows = [r for r in bench.rows(subjects, SHAPES["small"], ["float32"]) if r.kernel != "triton"]
    order = [(row.function, row.shape) for row in rows]
    assert order == [
        *(("silu_mul", "256 × 1024"), ("add_rms_norm", "256 × 256"), ("rms_norm", "256 × 256")),
        *(("silu_mul", "1024 × 2048"), ("add_rms_norm", "1024 × 512"), ("rms_norm", "1024 × 512")),
    ]
    report = made("", named("cpu"), bench.ceiling, rows)
    names = [row.function for row in report.rows]
    assert names == [name for name in ("silu_mul", "add_rms_norm", "rms_norm") for _ in "12"]


# ---------------------------------------------------------------------------- other kernels


def bench(components: list[Component], host: Host, dtype: str = "float32") -> list[Row]:
    """Time kernels beside the installed reference of rms_norm, on the CPU."""
    reference = host.find("kernel", "rms_norm/reference")
    found = chosen(Host(host.plugins, (reference, *components)), ["rms_norm"], [])
    ceiling = Ceiling({"float32": 1e9, "bfloat16": 1e9}, 1e9)
    timing = Bench(named("cpu"), ceiling, 0.001, compiles=False)
    rows = timing.rows(found, SHAPES["tiny"], [dtype])
    return [row for row in rows if row.function == "rms_norm"]


def other(host: Host, name: str, **fields: Any) -> Component:
    reference = host.find("kernel", "rms_norm/reference")
    changed = replace(reference.declaration, name=name, **fields)  # type: ignore[type-var]
    return replace(reference, declaration=changed)


def test_a_kernel_without_functions_is_timed_as_the_module_it_makes(host: Host) -> None:
    rows = bench([other(host, "module", functions={})], host, "bfloat16")
    assert [row.kernel for row in rows] == ["reference", "module"]
    work = functions.FUNCTIONS["rms_norm"].forward(SHAPES["tiny"][0])
    assert [row.passes["forward"].bytes for row in rows] == [work.bytes(2)] * 2
    seconds = [row.passes["both"].seconds for row in rows]
    assert rows[1].passes["both"].speedup == {"reference": pytest.approx(seconds[0] / seconds[1])}


def test_a_kernel_that_fails_is_told_apart_from_one_that_does_not_fit(host: Host) -> None:
    broken = other(host, "broken", functions={"rms_norm": "operator:neg"})
    unfit = other(host, "unfit", needs=Needs(packages=("no-such-package",)))
    rows = {row.kernel: row for row in bench([broken, unfit], host)}
    assert rows["broken"].failed
    assert "TypeError" in rows["broken"].reason
    assert not rows["unfit"].failed
    assert rows["unfit"].reason == "needs the package no-such-package"


def test_the_interpreter_is_not_timed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    triton = host.find("kernel", "rms_norm/triton")
    rows = [row for row in bench([triton], host) if row.kernel == "triton"]
    assert [row.reason for row in rows] == ["not timed: interpreter"] * len(rows)
    assert rows


def test_the_compiled_reference_is_timed_beside(tmp_path: Path) -> None:
    place = tmp_path / "found.json"
    assert main(["bench", "kernels", *QUICK, "--operation", "silu_mul", f"--json={place}"]) == 0
    rows = {row["kernel"]: row for row in json.loads(place.read_text())["rows"]}
    compiled, reference = (rows[n]["passes"] for n in ("reference, compiled", "reference"))
    assert compiled["forward"]["speedup"]["reference"] == pytest.approx(
        reference["forward"]["seconds"] / compiled["forward"]["seconds"]
    )


# ---------------------------------------------------------------------------- without


WITHOUT_TORCHTITAN = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
import atom.cli
sys.exit(atom.cli.main(sys.argv[1:]))
"""


def without(*packages: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = f"REFUSED = {packages!r}\n{WITHOUT_TORCHTITAN}"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )

    return run


def test_help_and_mistakes_need_no_torch() -> None:
    run = without("torch", "torchtitan", "numpy", "triton")
    asked = run("bench", "kernels", "--help")
    assert (asked.returncode, asked.stderr) == (0, "")
    wrong = run("bench", "kernels", "--operation", "rmsnorm")
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)


def test_kernels_that_need_no_torchtitan_are_timed_without_it(tmp_path: Path) -> None:
    """And without the others that CONTRIBUTING does not name."""
    place = tmp_path / "found.json"
    others = ("hydra", "omegaconf", "structlog", "rich", "copier", "hypothesis", "transformers")
    run = without("torchtitan", "datasets", *others)
    result = run("bench", "kernels", *QUICK, "--no-compile", f"--json={place}")
    assert result.returncode == 0, result.stderr
    rows = json.loads(place.read_text())["rows"]
    timed = {row["function"] for row in rows if row["passes"]}
    assert timed == {*functions.FUNCTIONS} - {"newton_schulz"}  # which is in bfloat16


def test_every_contract_of_an_operation_is_also_one_of_a_function() -> None:
    """A kernel without functions is timed as its module, and its work is the function's. What
    takes tokens to other ranks has no speed of its own."""
    with_contract = {name for name in OPERATIONS if operations.contract_of(name) is not None}
    assert with_contract - functions.FUNCTIONS.keys() == {"moe_dispatch"}
    for function in functions.FUNCTIONS.values():
        assert function.operation in functions.FUNCTIONS
