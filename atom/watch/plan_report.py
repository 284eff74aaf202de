"""Write a page of plans: one self-contained file of HTML, without network access or scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from atom.io.numbers import human
from atom.plan.outlook import Outlook
from atom.watch import plan_pictures as pictures
from atom.watch.markup import Child, element
from atom.watch.report import framed
from atom.watch.report_tables import table


def page(plans: Sequence[Outlook]) -> str:
    """Return the page of a plan, or of the plans of a sweep."""
    first = plans[0].told
    model = f"{human(first['parameters'])} parameters on {first['device']}"
    header = [
        element("h1", f"Plan: {model}"),
        element("p", f"{len(plans)} layouts" if len(plans) > 1 else _layout(first)),
        _facts(first) if len(plans) == 1 else _compared(plans),
    ]
    return framed(f"{model}: a plan of ATOM", header, list(_sections(plans)), style=pictures.STYLE)


def _sections(plans: Sequence[Outlook]) -> Iterator[tuple[str, str, list[Element]]]:
    told = [plan.told for plan in plans]
    if len({each["ranks"] for each in told}) > 1:
        yield "Scaling", "scaling", [_scaling(told)]
    steps = [(_name(each), pictures.step_segments(each)) for each in told]
    yield "A step", "step", [_figure(pictures.bars("a step's time", steps, "s"), _spread(told))]
    limit = min(each["memory_limit_gib"] for each in told)
    memory = [(_name(each), pictures.memory_segments(each)) for each in told]
    words = (
        "Memory of the rank that needs the most; the line is the device's. Estimates of published "
        "runs err by at most "
        f"{told[0]['memory_gib_range'][1] / told[0]['memory_gib'] - 1:.0%}."
    )
    picture = pictures.bars("memory of a rank", memory, "GiB", limit)
    yield "Memory", "memory", [_figure(picture, words)]
    drawn = [(_name(plan.told), plan.timeline) for plan in plans if plan.timeline]
    yield "Pipeline", "pipeline", [_timeline(name, ranks) for name, ranks in drawn]
    yield "Campaign", "campaign", [_campaigns(plans), _inputs(told[0])]
    explained = [line for each in told for line in each.get("explanation", ())]
    yield "Layouts", "layouts", [element("pre", "\n".join(explained))] if explained else []


def _name(told: Mapping[str, Any]) -> str:
    return f"{told['ranks']:,} x {told['device']}, {_layout(told)}"


def _layout(told: Mapping[str, Any]) -> str:
    layout = told["layout"]
    degrees = [f"{n} {v}" for n, v in layout.items() if n != "checkpointing" and v > 1]
    return f"{' x '.join(degrees) or 'one rank'}, checkpointing {layout['checkpointing']}"


def _rows(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    def ranged(key: str, form: str) -> str:
        low, high = told[f"{key}_range"]
        return f"{told[key]:{form}} ({low:{form}} to {high:{form}})"

    yield "fits", "yes" if told["fits"] else "no"
    yield "memory, GiB", ranged("memory_gib", ".1f")
    yield "step, s", ranged("step_seconds", ".3g")
    yield "tokens/s a GPU", ranged("tokens_per_second_per_gpu", ",.0f")
    yield "MFU, causal attention", f"{told['mfu']:.1%}"
    yield "MFU, full attention", f"{told['mfu_full_attention']:.1%}"
    yield "tokens", human(told["tokens"])
    yield "days", ranged("days", ".3g")
    yield "goodput (ETTR)", ranged("goodput", ".1%")
    yield "dollars", ranged("dollars", ",.0f")
    yield "kWh", ranged("kwh", ",.0f")
    if "co2_kg" in told:
        yield "kg CO2", ranged("co2_kg", ",.0f")
    every = told["checkpoint_steps"]
    yield "checkpoint, GiB", f"{told['checkpoint_gib']:,.1f} each {every:,} steps"


def _facts(told: Mapping[str, Any]) -> Element:
    boxes = (element("div", element("dt", n), element("dd", v)) for n, v in _rows(told))
    return element("dl", *boxes, class_="facts")


def _compared(plans: Sequence[Outlook]) -> Element:
    columns = [dict(_rows(plan.told)) for plan in plans]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows: list[Sequence[Child]] = [
        (name, *(column.get(name, "") for column in columns)) for name in names
    ]
    return table(("", *(_name(plan.told) for plan in plans)), rows)


def _scaling(told: Sequence[Mapping[str, Any]]) -> Element:
    curves = (
        ("tokens/s a GPU", "tokens_per_second_per_gpu", "tokens/s"),
        ("days of the run", "days", "days"),
    )
    drawn = [
        _figure(pictures.scaling(title, [(e["ranks"], e[key]) for e in told], unit), title)
        for title, key, unit in curves
    ]
    return element("div", *drawn, class_="curves")


def _spread(told: Sequence[Mapping[str, Any]]) -> str:
    words = []
    for each in told:
        low, high = each["step_seconds_range"]
        words.append(f"{low:.3g} to {high:.3g} s")
    return (
        f"Expected: {'; '.join(dict.fromkeys(words))}. 90 % of published runs of this class "
        f"({told[0]['range_of']}) are within these factors when their source is left out."
    )


def _timeline(name: str, ranks: Sequence[Sequence[tuple[int, str, float, float]]]) -> Element:
    picture, until = pictures.timeline(ranks)
    whole = max(end for actions in ranks for *_, end in actions)
    words = f"{name}: {until:.3g} of {whole:.3g} s. Forward blue, backward orange, weights green."
    return _figure(picture, words)


def _campaigns(plans: Sequence[Outlook]) -> Element:
    drawn = []
    for plan in plans:
        found = plan.told["campaign"]
        shares = ", ".join(
            f"{name} {share:.1%}" for name, share in found["shares"].items() if share >= 0.0005
        )
        enough = found["spares_needed"]
        words = (
            f"{_name(plan.told)}: the finishing day of {found['campaigns']:,} simulated campaigns, "
            f"{found['interruptions']:.1f} interruptions on average; lost: {shares or 'nothing'}. "
            f"{enough} spare node{'s' * (enough != 1)} would be enough."
        )
        title = "finishing day"
        drawn.append(_figure(pictures.distribution(title, plan.days), words))
    return element("div", *drawn, class_="curves")


def _inputs(told: Mapping[str, Any]) -> Element:
    rows = [
        (element("code", f"plan.{name}"), "always a node" if value is None else f"{value:g}")
        for name, value in told["inputs"].items()
    ]
    return table(("input", "value"), rows)


def _figure(picture: Element, words: str) -> Element:
    return element("figure", picture, element("figcaption", words))
