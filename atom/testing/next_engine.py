"""``make next``: report what another release of torchtitan would break.

The release is installed into a separate environment, ahead of this environment's packages, which do
not change. The report lists the repairs, config fields and imports that it changes, and the unit
tests that fail with it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from xml.etree import ElementTree

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from atom.testing import releases, repairs

PACKAGE = "torchtitan"
TESTS = tuple(
    f"tests/test_{name}.py"
    for name in (
        "put_off", "moe", "device", "callbacks", "step_kernels", "initial_weights",
        "engine_keys", "ranges", "effects", "kernels", "plan_torch", "trackers",
    )
)  # fmt: skip
"""Unit tests that touch the engine, without those that take seconds."""

_LONGEST = 160
_MOST_LINES = 30


def main(arguments: list[str] | None = None) -> int:
    """Print what breaks with a release; return 1 if anything does.

    Args:
        arguments: arguments of the command line.
    """
    parser = argparse.ArgumentParser("python -m atom.testing.next_engine", description=__doc__)
    parser.add_argument("wheel", help="a wheel, a folder, or what pip can install: torchtitan==…")
    parser.add_argument("--no-tests", action="store_true", help="compare sources only")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="atom-next-") as folder:
        python, site = _environment(Path(folder), options.wheel)
        broken = _compare(site)
        if not options.no_tests:
            broken += _probe(python, site)
            broken += _test(python, Path(folder, "report.xml"))
    print(f"\n{broken} findings" if broken else "\nnothing breaks")
    return 1 if broken else 0


def _environment(folder: Path, wheel: str) -> tuple[Path, Path]:
    """Create an environment with a release ahead of this environment's packages.

    Missing dependencies of the release are installed beside it.

    Args:
        folder: an empty folder.
        wheel: the requirement for pip to install.

    Returns:
        Its Python, and the folder of its packages.
    """
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    own = sysconfig.get_path("purelib")
    _install(python, wheel)
    if not (site / PACKAGE / "__init__.py").is_file():
        raise SystemExit(f"{wheel} does not install {PACKAGE}")
    tried: set[str] = set()
    while lacking := {str(each) for each in _needed(site, own)} - tried:
        tried |= lacking
        _install(python, *sorted(lacking))
    (site / "atom_next.pth").write_text(f"import site; site.addsitedir({own!r})\n")
    for found in distributions(path=[str(site)]):
        print(f"installed: {found.name} {found.version}")
    return python, site


def _install(python: Path, *specifications: str) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    done = subprocess.run([*pip, *specifications], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"not installed: {', '.join(specifications)}\n{done.stderr.strip()[-500:]}")


def _needed(site: Path, own: str) -> Iterator[Requirement]:
    """Yield the requirements of an environment's packages that neither it nor this one fulfils."""
    have = {
        canonicalize_name(each.name): each.version for each in distributions(path=[own, str(site)])
    }
    open_ended = [Requirement(each.name) for each in distributions(path=[str(site)])]
    seen: set[str] = set()
    while open_ended:
        requirement = open_ended.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        name = canonicalize_name(requirement.name)
        if name not in have or not requirement.specifier.contains(have[name], prereleases=True):
            yield requirement
            continue
        if found := next(iter(Distribution.discover(name=name, path=[str(site)])), None):
            for text in found.requires or ():
                its = Requirement(text)
                extras = requirement.extras or {""}
                if its.marker is None or any(its.marker.evaluate({"extra": e}) for e in extras):
                    open_ended.append(its)


# ---------------------------------------------------------------------------- by source


def _compare(site: Path) -> int:
    own = [sysconfig.get_path("purelib")]
    new = [str(site), *own]
    broken = 0
    _heading("Repairs whose target has changed")
    for repair in repairs.every():
        if found := repairs.problems(repair, new):
            broken += 1
            print(repairs.message(repair, found, new))
            lines = list(releases.differences(repair, own, new))
            print("\n".join(f"    {line[:_LONGEST]}" for line in lines[:_MOST_LINES]))
            if len(lines) > _MOST_LINES:
                print(f"    … {len(lines) - _MOST_LINES} more lines")
    _heading("Config fields that have changed")
    for line, breaks in _fields(Path(own[0], PACKAGE), site / PACKAGE):
        broken += breaks
        print(line)
    _heading("Imports that are gone")
    for place, users in releases.missing_imports(_files(), PACKAGE, new).items():
        broken += 1
        print(f"{place}: {', '.join(users)}")
    return broken


def _fields(old: Path, new: Path) -> Iterator[tuple[str, bool]]:
    """Yield a line for each changed field of what ATOM imports, and whether it breaks ATOM."""
    texts = [file.read_text() for file in _files("py", "yaml", "md")]
    before, after = releases.configs(old), releases.configs(new)
    imported = releases.imported(_files(), PACKAGE)
    kept = {
        owner: fields
        for owner, fields in before.items()
        if owner.partition(":")[2].split(".")[0] in imported
    }
    for change in releases.changed_fields(kept, after):
        word = re.compile(rf"\b{change.name}\b")
        used = sum(bool(word.search(text)) for text in texts) if change.name else 0
        breaks = not change.name or (bool(used) and not change.what.startswith("is new"))
        named = f" ({used} files of ATOM have that word)" if used else ""
        yield f"{change.owner}.{change.name}".rstrip(".") + f" {change.what}{named}", breaks


def _files(*kinds: str) -> list[Path]:
    folders = [Path(name) for name in ("atom", "plugins", "conf")]
    return [
        file
        for folder in folders
        for kind in kinds or ("py",)
        for file in sorted(folder.rglob(f"*.{kind}"))
        if "tests" not in file.parts and "templates" not in file.parts
    ]


# ---------------------------------------------------------------------------- by running


def _probe(python: Path, site: Path) -> int:
    _heading("Faults")
    try:
        found = repairs.probed(str(python))
    except RuntimeError as error:
        print(error)
        return 1
    broken, path = 0, [str(site), sysconfig.get_path("purelib")]
    for repair in repairs.every():
        if repair.probe is not None and found[repair.probe] is not True:
            broken += 1
            print(repairs.gone(repair, found[repair.probe], path))
    if not broken:
        print("all are still there")
    return broken


def _test(python: Path, report: Path) -> int:
    """Run the unit tests; print the failures, once per reason."""
    _heading("Unit tests of the engine")
    tests = [test for test in TESTS if Path(test).is_file()]
    options = ["-q", "-m", "not slow", "-p", "no:cacheprovider", f"--junitxml={report}"]
    options.append("--continue-on-collection-errors")
    done = subprocess.run(
        [str(python), "-m", "pytest", *options, *tests],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if not report.is_file():
        print("\n".join((done.stdout + done.stderr).splitlines()[-_MOST_LINES:]))
        return 1
    reasons: Counter[str] = Counter()
    first: dict[str, str] = {}
    ran = 0
    for case in ElementTree.parse(report).iter("testcase"):
        ran += 1
        for problem in (*case.iter("failure"), *case.iter("error")):
            reason = _reason(problem)
            reasons[reason] += 1
            first.setdefault(reason, f"{case.get('classname')}::{case.get('name')}")
    for reason, count in reasons.most_common():
        more = f" and {count - 1} more" if count > 1 else ""
        print(f"{first[reason].removeprefix('::')}{more}: {reason}")
    failed = sum(reasons.values())
    print(f"{ran - failed} of {ran} pass")
    return failed


def _reason(problem: ElementTree.Element) -> str:
    """Return in one line why a test failed or could not be imported."""
    said = (problem.get("message") or "").strip()
    if said == "collection failure":
        errors = re.findall(r"^E +(.+)$", problem.text or "", re.MULTILINE)
        said = errors[-1] if errors else said
    return said.splitlines()[0][:_LONGEST] if said else "no reason is given"


def _heading(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
