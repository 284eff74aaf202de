"""``atom plan OVERRIDES…``: what a run of any size will take, before it exists."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from atom.cli.plan_numbers import number
from atom.cli.plan_page import page
from atom.compose import compose, plugin_lists
from atom.errors import UserError, nearest
from atom.io.files import write_given
from atom.io.json_data import dumps
from atom.io.process import call
from atom.plan.device import DeviceDescription
from atom.plan.estimate import Estimate
from atom.plan.execution import FSDP, ZERO1
from atom.plan.outlook import Interruptions, Outlook, Prices, outlook
from atom.plan.what_if import zero1
from atom.recipe.run import Run
from atom.registry.host import Host
from atom.registry.select import select
from atom.run_dir.prepare import prepare

NETWORKS = {
    "infiniband_ndr": 400, "infiniband_hdr": 200, "roce_400": 400, "roce_200": 200,
    "efa_p5": 400, "efa_p4d": 50,
}  # fmt: skip
"""Network -> Gb/s of a GPU in one direction: NDR and HDR with a NIC a GPU; EC2 p5 has 3,200 and
p4d 400 Gb/s a node of eight."""

_RANGES = {
    "price_gpu_hour": (0.0, 1e6),
    "watts_gpu": (0.0, 1e5),
    "co2_kwh": (0.0, 100.0),
    "nodes": (1, 2**24),
    "tokens": (1.0, 1e18),
    "failure_rate": (0.0, 10.0),
    "spares": (0, 2**20),
    "repair_hours": (0.0, 1e5),
    "checkpoint_write": (1e-3, 1e6),
}
_WHOLE = ("nodes", "spares")
KEYS = {"network", "sharding", *_RANGES}


@dataclass(frozen=True)
class Settings:
    """The ``plan.`` settings of the command line; None where a default holds."""

    network: str | None = None
    sharding: str = FSDP
    nodes: float | None = None
    tokens: float | None = None
    price_gpu_hour: float | None = None
    watts_gpu: float | None = None
    co2_kwh: float | None = None
    failure_rate: float | None = None
    spares: float | None = None
    repair_hours: float | None = None
    checkpoint_write: float | None = None

    @property
    def prices(self) -> Prices:
        return Prices(**self._given(Prices))

    @property
    def interruptions(self) -> Interruptions:
        found = Interruptions(**self._given(Interruptions))
        return found if found.spares is None else replace(found, spares=int(found.spares))

    def _given(self, kind: type) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(kind)}
        return {name: value for name, value in values.items() if value is not None}


def run(options: argparse.Namespace) -> int:
    """Print the plan of each run that the overrides compose; return the exit code."""
    settings = read([word for word in options.overrides if word.startswith("plan.")])
    overrides = [word for word in options.overrides if not word.startswith("plan.")]
    overrides = [*overrides, "dry_run=true", *(["--multirun"] if options.multirun else [])]
    if options.html is not None:
        check_page(options.html)
    plans: list[Outlook] = []
    host = Host.load(plugin_lists.trust(overrides))

    def job(composed: Run) -> None:
        # In a child process, for sweeps: torchtitan supports one device per process.
        found = call(partial(_plan, composed, host, settings))
        plans.append(found)
        print(dumps(found.told, indent=2) if options.json else page(found.told), flush=True)

    compose.main(overrides, partial(compose.do, host=host, job=job), host)
    if options.html is not None:
        # Imported here, because few plans need it.
        from atom.watch import plan_report

        write_given(options.html, plan_report.page(plans))
    return 0


def check_page(file: Path, key: str = "--html") -> None:
    """Refuse a file that cannot be written, before anything is computed.

    Raises:
        UserError: its folder is missing, or it is a folder.
    """
    if file.is_dir() or not file.absolute().parent.is_dir():
        why = "is a folder" if file.is_dir() else f"there is no folder {file.absolute().parent}"
        raise UserError(why, key=key, value=str(file), valid="a file in an existing folder")


def read(words: list[str]) -> Settings:
    """Return the settings of ``plan.KEY=VALUE`` words.

    Raises:
        UserError: a key is unknown or a value is invalid.
    """
    found: dict[str, Any] = {}
    for word in words:
        key, _, text = word.partition("=")
        name = key.removeprefix("plan.")
        origin = "command line"
        if name not in KEYS:
            known = [f"plan.{each}" for each in sorted(KEYS)]
            raise UserError(f"is no key of a plan; {nearest(key, known)}", key=key, value=text)
        if name in found:
            raise UserError("is given twice", key=key, value=text, origin=origin)
        if name == "sharding" and text not in (FSDP, ZERO1):
            raise UserError(key=key, value=text, origin=origin, valid=f"{FSDP}, {ZERO1}")
        if name == "network":
            _gigabits(text)
        limits = _RANGES.get(name)
        found[name] = text if limits is None else number(key, text, limits, whole=name in _WHOLE)
    return Settings(**found)


def _gigabits(text: str) -> float:
    if text in NETWORKS:
        return NETWORKS[text]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1e5:
        names = ", ".join(NETWORKS)
        raise UserError(
            key="plan.network", value=text, origin="command line",
            valid=f"Gb/s a GPU above 0, or {names}",
        )  # fmt: skip
    return value


def changed(settings: Settings, device: DeviceDescription, ranks: int) -> DeviceDescription:
    """Return ``device`` in the nodes and network of ``settings``."""
    if settings.network is not None:
        device = replace(device, network_bandwidth=_gigabits(settings.network) / 8 * 1e9)
    if settings.nodes is not None:
        each, left = divmod(ranks, int(settings.nodes))
        if left:
            raise UserError(
                f"{ranks} ranks cannot be divided among them", key="plan.nodes",
                value=int(settings.nodes), origin="command line", valid="a divisor of world_size",
            )  # fmt: skip
        device = replace(device, devices_per_node=each)
    return device


def _plan(composed: Run, host: Host, settings: Settings) -> Outlook:
    selection = select(composed, host)
    prepared = call(partial(prepare, selection, composed))
    from atom.titan.preflight.planned import planned

    plan = planned(
        composed,
        selection,
        host,
        tokenizer=prepared.tokenizer,
        contents=prepared.contents,
        changed=partial(changed, settings),
    )

    def estimated(found: Estimate) -> Estimate:
        return zero1(found, plan.model, plan.device) if settings.sharding == ZERO1 else found

    found, of = estimated(plan.estimate), plan.batches
    layout, steps = found.layout, plan.steps
    if settings.tokens is not None:
        steps = max(round(settings.tokens / of.tokens(1)), 1)
        if not of.constant:
            steps = of.steps(round(settings.tokens))
    seconds = None
    if not of.constant:
        times = {size: estimated(plan.at(size)).step.seconds for size in of.counts(steps)}
        seconds = sum(times[size] * count for size, count in of.counts(steps).items())
    ahead = outlook(
        found,
        plan.model,
        plan.device,
        steps,
        settings.prices,
        settings.interruptions,
        tokens=of.tokens(steps),
        seconds=seconds,
    )
    told = ahead.told
    told |= {
        "device": plan.device.name,
        "ranks": layout.ranks,
        "parameters": plan.model.numel,
        "sharding": settings.sharding,
        "batches": of.counts(steps),
    }
    degrees = ("dp_replicate", "dp_shard", "cp", "tp", "pp", "ep")
    told["layout"] = {name: getattr(layout, name) for name in degrees}
    told["layout"]["checkpointing"] = layout.checkpointing
    told["explanation"] = plan.explanation.splitlines()
    return ahead
