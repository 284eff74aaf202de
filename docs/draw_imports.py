"""Draw which rooms of ATOM import which, as a matrix for each revision.

    python docs/draw_imports.py docs/imports.svg c7060ef HEAD

A room is a package or a module directly below ``atom``; its row marks the rooms that it imports.
Rooms are sorted so that as few marks as possible lie above the diagonal: those are arrows back.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CELL, LABEL, MARGIN = 11, 110, 30

GRAPH = """
import json, grimp
graph = grimp.build_graph("atom", cache_dir=None, exclude_type_checking_imports=True)
found = {}
for module in graph.modules - {"atom"}:
    room = module.split(".")[1]
    found.setdefault(room, [])
    targets = graph.find_modules_directly_imported_by(module) - {"atom"}
    found[room] += {target.split(".")[1] for target in targets} - {room}
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Picture:
    """The rooms of a revision, sorted from the bottom up, and what each imports."""

    revision: str
    rooms: list[str]
    imports: dict[str, set[str]]

    @property
    def arrows(self) -> int:
        return sum(map(len, self.imports.values()))

    @property
    def back(self) -> set[tuple[str, str]]:
        """The imports of rooms that are sorted above."""
        place = {room: number for number, room in enumerate(self.rooms)}
        return {(a, b) for a, found in self.imports.items() for b in found if place[b] > place[a]}


def picture(revision: str) -> Picture:
    """Return the rooms of ``revision``."""
    with tempfile.TemporaryDirectory() as place:
        archive = subprocess.run(
            ["git", "archive", revision, "atom"], capture_output=True, check=True
        )
        subprocess.run(["tar", "-x", "-C", place], input=archive.stdout, check=True)
        printed = subprocess.check_output(
            [sys.executable, "-c", GRAPH], cwd=place, env={"PYTHONPATH": place}, text=True
        )
    imports = {room: set(others) for room, others in json.loads(printed).items()}
    return Picture(revision, _sorted(imports), imports)


def _sorted(imports: dict[str, set[str]]) -> list[str]:
    """Return the rooms, each after those that it imports as far as there is no cycle."""
    left, found = dict(imports), []
    while left:
        missing = {room: len((others & left.keys()) - {room}) for room, others in left.items()}
        users = {room: sum(room in others for others in left.values()) for room in left}
        found.append(min(sorted(left), key=lambda room: (missing[room], -users[room])))
        del left[found[-1]]
    return found


def draw(pictures: list[Picture]) -> str:
    """Return the matrices of ``pictures``, side by side, as SVG."""
    left, parts = 0, []
    for each in pictures:
        size = CELL * len(each.rooms)
        title = (
            f"{each.revision}: {len(each.rooms)} rooms, {each.arrows} arrows, {len(each.back)} back"
        )
        parts.append(f'<text x="{left + LABEL}" y="14" font-weight="bold">{title}</text>')
        for row, room in enumerate(each.rooms):
            y = MARGIN + CELL * row
            parts.append(
                f'<text x="{left + LABEL - 4}" y="{y + 9}" text-anchor="end">{room}</text>'
            )
            parts.append(_square(left, row, row, "#ccc"))
            for column, other in enumerate(each.rooms):
                if other in each.imports[room]:
                    color = "#c22" if (room, other) in each.back else "#357"
                    parts.append(_square(left, row, column, color))
        left += LABEL + size + MARGIN
    height = MARGIN + CELL * max(len(each.rooms) for each in pictures) + 4
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left} {height}" '
        f'font-family="sans-serif" font-size="9"><rect width="100%" height="100%" fill="#fff"/>'
    )
    return "\n".join([head, *parts, "</svg>\n"])


def _square(left: int, row: int, column: int, color: str) -> str:
    x, y = left + LABEL + CELL * column, MARGIN + CELL * row
    return f'<rect x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" fill="{color}"/>'


def main() -> None:
    place, *revisions = sys.argv[1:]
    pictures = [picture(revision) for revision in revisions]
    Path(place).write_text(draw(pictures))
    for each in pictures:
        print(f"{each.revision}: {len(each.rooms)} rooms, {each.arrows} arrows, {each.back=}")


if __name__ == "__main__":
    main()
