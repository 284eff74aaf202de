"""``make gpu``: parts run in order, and what fails or takes too long loses nothing of the others.

What the parts measure is for a GPU; here is what can be known of them without one.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

GPU = Path(__file__).parents[1] / "benchmarks" / "gpu"


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """The modules of the measurement can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(GPU))
        yield


@pytest.fixture(scope="module")
def parts() -> Any:
    return importlib.import_module("parts")


@pytest.fixture
def planned(tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """Return the parts of a measurement on a device, by name; results are in ``tmp_path``."""
    plan = importlib.import_module("plan")

    def on(device: str) -> dict[str, Any]:
        every = plan.parts(plan.Where(sys.executable, device, tmp_path))
        return {part.name: part for part in every}

    return on


def python(code: str, *arguments: str) -> Callable[[float], list[str]]:
    return lambda _seconds: [sys.executable, "-S", "-c", textwrap.dedent(code), *arguments]


WRITES = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('here')"
STUCK = """
    import pathlib, subprocess, sys, time
    pathlib.Path(sys.argv[1]).write_text("until then")
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    pathlib.Path(sys.argv[2]).write_text(str(child.pid))
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def ran(parts: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder and the results of parts of which one fails, one is stuck, one is refused and
    one has unreadable results."""
    folder = tmp_path_factory.mktemp("results")

    def part(name: str, code: str, share: float = 1.0, **fields: Any) -> Any:
        file = folder / f"{name}.json"
        command = python(code, str(file), str(folder / "child"))
        return parts.Part(name, f"What {name} is.", share, command, files=(file.name,), **fields)

    broken = lambda _folder: json.loads("no JSON")  # noqa: E731
    every = [
        part("first", WRITES, share=10, told=lambda _folder: ["first has said this"]),
        part("fails", f"{WRITES}; print('in these words'); sys.exit(3)", share=10),
        part("stuck", STUCK),
        part("unreadable", WRITES, share=10, told=broken),
        part("refused", "no Python", refusal=lambda: "it needs a GPU"),
    ]
    # Of which `stuck` has a twelfth.
    until = time.monotonic() + 48
    results = parts.run(every, folder, until, lambda: ["# Kernels on a test"])
    return folder, {result.part.name: result for result in results}


def test_parts_run_in_order_whatever_becomes_of_those_before(ran: Any) -> None:
    _, results = ran
    assert [(name, result.status) for name, result in results.items()] == [
        ("first", "passed"),
        ("fails", "failed"),
        ("stuck", "stopped"),
        ("unreadable", "passed"),
        ("refused", "not run"),
    ]
    assert {name for name, result in results.items() if result.complete} == {
        *("first", "unreadable", "refused")
    }


def test_what_a_part_had_written_stays(ran: Any) -> None:
    folder, _ = ran
    found = {file.stem: file.read_text() for file in folder.glob("*.json")}
    assert found == {"first": "here", "fails": "here", "stuck": "until then", "unreadable": "here"}
    assert "in these words" in (folder / "log.txt").read_text()


def test_a_part_is_ended_with_what_it_has_started(ran: Any) -> None:
    folder, results = ran
    assert results["stuck"].seconds < 10
    child = Path("/proc") / (folder / "child").read_text() / "stat"
    assert not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z"


def test_the_summary_says_what_was_not_run_and_why(ran: Any) -> None:
    folder, _ = ran
    summary = (folder / "summary.md").read_text()
    assert summary.startswith("# Kernels on a test\n")
    assert "| fails | **failed**: exit code 3 |" in summary
    assert "| refused | **not run**: it needs a GPU | - | - |" in summary
    assert "\n\nfirst has said this\n" in summary
    assert "**Stopped at its limit of " in summary
    assert "Its results cannot be read: JSONDecodeError" in summary


def test_without_time_a_part_is_not_begun(parts: Any, tmp_path: Path) -> None:
    late = parts.Part("late", "", 1, python(WRITES, str(tmp_path / "late.json")))
    (tmp_path / "log.txt").touch()
    (result,) = parts.run([late], tmp_path, time.monotonic() + 1, lambda: [])
    assert (result.status, result.reason, result.complete) == ("not run", "1 s were left", False)
    assert "| late | **not run**: 1 s were left |" in (tmp_path / "summary.md").read_text()
    assert not (tmp_path / "late.json").exists()


def test_asked_to_stop_it_still_says_what_there_is(tmp_path: Path) -> None:
    code = """
        import sys, time
        from pathlib import Path
        from parts import Part, run
        folder = Path(sys.argv[1])
        wait = "print('begun', flush=True); import time; time.sleep(60)"
        sleep = [sys.executable, "-S", "-c", wait]
        every = [
            Part("before", "", 1, lambda _: [sys.executable, "-S", "-c", ""]),
            Part("stuck", "", 1, lambda _: sleep),
            Part("after", "", 1, lambda _: sleep),
        ]
        run(every, folder, time.monotonic() + 90, lambda: ["# Stopped"])
    """
    command = python(code, str(tmp_path))(0)
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(GPU)})
    log = tmp_path / "log.txt"
    while not log.exists() or "\nbegun" not in log.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    summary = (tmp_path / "summary.md").read_text()
    assert "| before | passed |" in summary
    assert "| stuck | **stopped**: the measurement was stopped |" in summary
    assert "| after | **not run**: the measurement was stopped |" in summary


# ---------------------------------------------------------------------------- the parts there are


def test_what_is_right_comes_first_and_the_page_has_every_part(
    planned: Callable[[str], dict[str, Any]],
) -> None:
    every = planned("cuda")
    names = list(every)
    assert names == ["parity", "tests", "bench", "one_gpu", "training", "tuning"]
    page = (GPU.parents[1] / "docs" / "gpu.md").read_text()
    assert [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")][
        : len(names)
    ] == names
    for part in every.values():
        command = part.command(100.0)
        assert {Path(word).suffix for word in command if word.startswith("--write=")} <= {
            *(".json", ".md")
        }
        assert all((GPU / Path(word).name).is_file() for word in command if str(GPU) in word)


def test_where_there_is_no_gpu_and_no_torchtitan_parts_are_refused(
    planned: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    every = planned("cpu")
    assert {name: part.refusal() for name, part in every.items() if part.refusal()} == {
        "training": "torchtitan is not installed here",
        "tuning": "it needs a GPU",
    }
    versions = {"versions": {"torchtitan": "0.3.0"}}
    (tmp_path / "device.json").write_text(json.dumps(versions))
    assert {name for name, part in every.items() if part.refusal()} == {"tuning"}


def test_functions_under_which_the_device_failed_are_not_timed(
    planned: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    bench = planned("cuda")["bench"]
    rows = [
        {"function": "rope", "kernel": "triton", "reason": "the device failed: Error: an access"},
        {"function": "rms_norm", "kernel": "triton", "reason": None},
        {"function": "attention", "kernel": "reference", "reason": None},
    ]
    assert not [word for word in bench.command(100) if word.startswith("--operation")]
    (tmp_path / "parity.json").write_text(json.dumps({"rows": rows}))
    named = [word for word in bench.command(100) if word.startswith("--operation")]
    assert named == ["--operation=rms_norm"]


def test_parity_goes_on_in_another_process_after_the_device_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parity = importlib.import_module("parity")
    place = tmp_path / "parity.json"
    arguments = ["parity.py", "--device=cpu", f"--write={place}", "--function=silu_mul"]
    compared, begun = parity.compared, []

    class Replaced(BaseException):
        """This process is another one now."""

    def other(_program: str, argv: list[str]) -> None:
        begun.append(argv)
        raise Replaced

    def fails(row: Any, subject: Any, *rest: Any) -> Any:
        if subject.kernel.name == "reference" and not begun:
            return parity.replace(row, reason=f"{parity.BROKE}an access", failed=True)
        return compared(row, subject, *rest)

    monkeypatch.setattr(parity, "compared", fails)
    monkeypatch.setattr(parity.os, "execv", other)
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(Replaced):
        parity.main()
    assert len(json.loads(place.read_text())["rows"]) == 1
    (again,) = begun
    assert again[:2] == [sys.executable, "-P"]
    monkeypatch.setattr(sys, "argv", again[2:])
    assert parity.main() == 1
    found = json.loads(place.read_text())
    reasons = [row["reason"] for row in found["rows"] if row["kernel"] == "reference"]
    assert reasons[0].startswith(parity.BROKE)
    assert set(reasons[1:]) == {"the device had failed under it at another size"}
    assert found["not_reached"] == 0
    assert {row["kernel"] for row in found["rows"]} == {"reference", "triton", "liger"}


def refusing(*packages: str) -> str:
    """Return code after which these packages are not there."""
    return f"""
        import sys
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {packages!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Refuse())
    """


def interpreted(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in Triton's interpreter, without what such a machine does not have."""
    away = refusing("torchtitan", "hydra", "omegaconf", "structlog", "rich", "copier", "datasets")
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(away) + textwrap.dedent(code), *arguments],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(GPU)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_kernels_are_compared_by_value_without_torchtitan(tmp_path: Path) -> None:
    place = tmp_path / "parity.json"
    code = "import parity; sys.exit(parity.main())"
    result = interpreted(code, "--device=cpu", f"--write={place}", "--function=silu_mul")
    assert result.returncode == 0, result.stderr
    found = json.loads(place.read_text())
    assert found["torchtitan_imported"] is False
    triton = [row for row in found["rows"] if row["kernel"] == "triton"]
    assert {row["dtype"] for row in triton} == {"float32", "bfloat16", "float16"}
    for row in triton:
        assert 0 < row["error"] <= row["tolerance"]
    assert "| `silu_mul` | `triton` |" in "\n".join(found["summary"])


def test_the_table_of_launches_takes_the_place_of_the_plugins() -> None:
    """Every kernel's launches are tried, in the interpreter, by a clock that says which is best."""
    code = """
        import json
        import tune
        from atom_kernels_triton import tuning

        best = {"rms_norm": (2, 8, 1), "rms_norm_backward": (1, 4, 3), "silu_mul": (4, 2, 1),
                "silu_mul_backward": (1, 16, 1), "cross_entropy": (1, 2, 2)}
        kept = []

        def seconds(run, how):
            run(how)
            wanted = best[list(best)[len(kept)]]
            return 1.0 if (how.rows, how.num_warps, how.stages) == wanted else 2.0

        table = tune.Table("H100", "9.0", lambda table: kept.append(table.data()), seconds)
        for module in tune.MODULES:
            module.launch = table.launch
        tune.norm(16, 1, "cpu")
        tune.gate(2048, 1, "cpu")
        tune.loss(64, 1, "cpu")
        print(json.dumps([best, kept, tuning.table()]))
    """
    result = interpreted(code)
    assert result.returncode == 0, result.stderr
    best, kept, before = json.loads(result.stdout.splitlines()[-1])
    assert len(kept) == len(best) == 5  # after each kernel
    found = kept[-1]
    timed = {row["kernel"]: row for row in found["timed"]}
    for kernel, (rows, num_warps, stages) in best.items():
        width = timed[kernel]["width"]
        row = {"width": width, "rows": rows, "num_warps": num_warps, "stages": stages}
        assert row in found["kernels"][kernel]["9.0"]
        others = [each for each in before[kernel]["9.0"] if each["width"] != width]
        assert [e for e in found["kernels"][kernel]["9.0"] if e["width"] != width] == others
        assert timed[kernel]["best_seconds"] == 1.0
    assert "measured on H100" in found["about"]


def measured(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(GPU), "--here", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_results_have_the_device_the_versions_and_the_date(tmp_path: Path) -> None:
    options = ("--device=cpu", "--seconds=120", "--part=bench", "--part=tuning")
    result = measured(*options, f"--results={tmp_path}")
    assert result.returncode == 0, result.stdout + result.stderr
    (folder,) = tmp_path.iterdir()
    assert {file.name for file in folder.iterdir()} == {
        *("device.json", "bench.json", "bench.md", "log.txt", "summary.md")
    }
    about = json.loads((folder / "device.json").read_text())
    assert folder.name.startswith(about["date"][:10])
    assert about["device"]["kind"] == "cpu"
    assert {"torch", "triton", "torchtitan", "atom-kernels-triton"} <= about["versions"].keys()
    summary = (folder / "summary.md").read_text()
    assert "**A rehearsal on a CPU: no number here says how fast anything is.**" in summary
    assert "| tuning | **not run**: it needs a GPU |" in summary
    rows = json.loads((folder / "bench.json").read_text())["rows"]
    assert f"{sum(bool(row['passes']) for row in rows)} of {len(rows)} rows were timed" in summary


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_nothing_is_begun(tmp_path: Path) -> None:
    result = measured(f"--results={tmp_path / 'results'}")
    said = "benchmarks/gpu: device=cuda: torch finds no CUDA device here; valid: auto, cpu\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", said)
    assert not any((tmp_path / "results").iterdir())


def test_an_environment_has_the_wheels_before_what_this_python_has(
    tmp_path: Path,
) -> None:
    environment = importlib.import_module("environment")
    with pytest.raises(environment.UnusableError, match="has no wheels: `make gpu-wheels`"):
        environment.make(tmp_path, tmp_path / "venv")
    with zipfile.ZipFile(tmp_path / "pluggy-99-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pluggy/__init__.py", "carried = True")
        about = "Metadata-Version: 2.1\nName: pluggy\nVersion: 99\nRequires-Dist: no-such-package"
        wheel.writestr("pluggy-99.dist-info/METADATA", about)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        wheel.writestr("pluggy-99.dist-info/WHEEL", tags)
        wheel.writestr("pluggy-99.dist-info/RECORD", "")
    there = environment.make(tmp_path, tmp_path / "venv")
    code = "import pluggy, importlib.util as u; print(pluggy.carried, u.find_spec('torch').origin)"
    said = subprocess.check_output([there, "-P", "-c", code], text=True)
    assert said.split()[0] == "True"
    assert str(tmp_path) not in said.split()[1]
