"""Draw the layout of a run: the position of each rank in the device mesh."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from atom.watch.markup import element

DIMENSIONS = (
    ("pp", "pipeline_parallel_degree"),
    ("dp_replicate", "data_parallel_replicate_degree"),
    ("dp_shard", "data_parallel_shard_degree"),
    ("cp", "context_parallel_degree"),
    ("tp", "tensor_parallel_degree"),
)
"""Mesh dimensions and the keys of their degrees, outermost first: ranks that differ only in the
last dimension are neighbours."""

STYLE = """
.mesh { --ink: #1f2328; --faint: #6b7280; --box: #c5ccd6; --even: #dbeafe; --odd: #fde9cf;
  font: 11px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { .mesh { --ink: #e6e8eb; --faint: #9aa4b2; --box: #4b5565;
  --even: #1d3557; --odd: #5a3b12; } }
@media print { .mesh { --ink: #000; --faint: #444; --box: #999; --even: #e6eefb; --odd: #fbeedd; } }
.mesh text { fill: var(--ink); } .mesh .faint { fill: var(--faint); }
.mesh .stage { fill: none; stroke: var(--box); }
.mesh .even { fill: var(--even); } .mesh .odd { fill: var(--odd); }
"""

_MOST = 4
"""Maximum entries drawn per dimension; the caption says what is left out."""

_CELL, _GAP, _HEAD = 44, 4, 22


def mesh(degrees: dict[str, int]) -> Element:
    """Return the picture of a mesh.

    Each pipeline stage is a box, each replica or shard of the batch a row in it, and each rank a
    cell; ranks that share a tensor and a sequence are side by side.

    Args:
        degrees: from a run's ``resolved`` section.
    """
    sizes = {name: degrees.get(key, 1) for name, key in DIMENSIONS}
    drawn = {name: min(size, _MOST) for name, size in sizes.items()}
    rows = [(r, s) for r in range(drawn["dp_replicate"]) for s in range(drawn["dp_shard"])]
    columns = [(c, t) for c in range(drawn["cp"]) for t in range(drawn["tp"])]
    box_width = max(len(columns) * (_CELL + _GAP) + 2 * _GAP + _GAP * drawn["cp"], 74)
    row_gap = _GAP * drawn["dp_replicate"]
    box_height = _HEAD + len(rows) * (_CELL - 8 + _GAP) + 2 * _GAP + row_gap
    label = 0 if len(rows) == 1 else 84
    width = label + drawn["pp"] * (box_width + 10)
    height = box_height + 4
    told = " × ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "one rank"
    picture = element(
        "svg",
        element("title", f"layout: {told}"),
        class_="mesh",
        role="img",
        aria_label=f"The mesh of ranks: {told}.",
        viewBox=f"0 0 {width} {height}",
        width=width,
        style=f"max-width:100%;width:{width}px",
    )
    for stage in range(drawn["pp"]):
        x = label + stage * (box_width + 10)
        box = element(
            "rect", class_="stage", x=x + 1, y=1, rx=6, width=box_width, height=box_height
        )
        name = f"pp {stage}" if sizes["pp"] > 1 else "all layers"
        picture.append(box)
        picture.append(element("text", name, x=x + 8, y=15, class_="faint"))
        for row, (replica, shard) in enumerate(rows):
            y = _HEAD + row * (_CELL - 8 + _GAP) + _GAP * (replica + 1)
            if stage == 0 and label:
                both = [("dp_replicate", replica), ("dp_shard", shard)]
                words = ", ".join(f"{n[3:]} {i}" for n, i in both if sizes[n] > 1)
                picture.append(element("text", words, x=0, y=y + 17, class_="faint"))
            for column, (context, tensor) in enumerate(columns):
                place = (stage, replica, shard, context, tensor)
                left = x + _GAP + column * (_CELL + _GAP) + _GAP * (context + 1)
                picture.extend(_cell(_number(place, list(sizes.values())), context, left, y))
    return picture


def caption(degrees: dict[str, int]) -> str:
    """Return a caption that explains the picture and what it leaves out."""
    sizes = {name: degrees.get(key, 1) for name, key in DIMENSIONS}
    words = ["Each cell is a rank."]
    if sizes["pp"] > 1:
        words.append("A box is a pipeline stage (pp).")
    if sizes["dp_replicate"] * sizes["dp_shard"] > 1:
        words.append("Each row has a part of the batch.")
    if sizes["cp"] > 1:
        words.append("Each color has a part of the sequence (cp).")
    if sizes["tp"] > 1:
        words.append("Cells side by side of one color share each tensor (tp).")
    if larger := [f"{name} {size}" for name, size in sizes.items() if size > _MOST]:
        words.append(f"The first {_MOST} of {', '.join(larger)} are drawn.")
    return " ".join(words)


def _cell(rank: int, context: int, x: float, y: float) -> list[Element]:
    color = "odd" if context % 2 else "even"
    return [
        element("rect", class_=color, x=x, y=y, rx=3, width=_CELL, height=_CELL - 8),
        element("text", str(rank), x=x + _CELL / 2, y=y + 17, text_anchor="middle"),
    ]


def _number(place: Sequence[int], sizes: Sequence[int]) -> int:
    """Return the rank at a mesh coordinate; the last dimension varies fastest."""
    rank = 0
    for position, size in zip(place, sizes, strict=True):
        rank = rank * size + position
    return rank
