"""Write the model card and the data card of a release, from its facts and a person's words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import yaml

from atom.io.numbers import human
from atom.release.facts import Facts
from atom.release.form import Form
from atom.release.verdicts import Verdicts

_UNSAID = "Not said by the makers of this release."


def model_card(facts: list[Facts], form: Form, verdicts: Verdicts, level: str) -> str:
    """Return ``README.md``."""
    last = facts[-1]
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if form.licence:
        head["license"] = form.licence.lower()
    if form.languages:
        head["language"] = list(form.languages)
    head["tags"] = ["atom", f"mof-class-{verdicts.roman.lower()}"]
    if results := _results(last):
        head["model-index"] = [{"name": form.name, "results": results}]
    parameters = last.parameters
    size = f"{human(parameters)} parameters" if parameters else "unknown size"
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {form.name}",
        form.description or _UNSAID,
        "## Facts",
        _table(
            ("", ""),
            [
                ("architecture", f"{last.run.architecture.name}, {size}"),
                ("tokenizer", last.run.tokenizer.name),
                ("tokens", f"{sum(_new(facts)):,}"),
                ("licence of the weights", form.licence or "none"),
                ("Model Openness Framework", f"class {verdicts.roman}"),
                ("Open Source AI Definition 1.0", verdicts.definition),
                ("reproduction", level),
            ],
        ),
        "## Stages",
        _table(
            ("stage", "begins from", "steps", "tokens", "dataset", "loss of the last step"),
            [_stage(each) for each in facts],
        ),
        "## Evaluation",
        _evaluations(last),
        "## Intended use",
        form.intended_use or _UNSAID,
        "## Limitations",
        form.limitations or _UNSAID,
        "## Check it, repeat it, continue it",
        "```\natom verify FOLDER\natom reproduce FOLDER --segments all\n```",
        "`runs/` has the settings, locks, metrics and events of every start, `code/` the code that "
        "ran, `checkpoints/` weights and optimizer state.",
    ]
    if form.authors or form.contact:
        parts += ["## Authors", ", ".join([*form.authors, *filter(None, [form.contact])])]
    if missing := verdicts.missing():
        parts += ["## Missing for the next class", "\n".join(f"- {each}" for each in missing)]
    return "\n\n".join(parts) + "\n"


def data_card(facts: list[Facts], form: Form) -> str:
    """Return ``DATA.md``."""
    rows = []
    for each in facts:
        data = each.run.resolved.data if each.run.resolved else None
        digest = str((each.inputs.get("dataset") or {}).get("digest", ""))[:16]
        rows.append(
            (
                each.stage.name,
                each.run.dataset.name,
                each.data_origin or form.data_access or "not said",
                each.data_licence or form.data_licence or "none",
                f"{data.documents:,}" if data and data.documents is not None else "unknown",
                f"`{digest}`",
            )
        )
    parts = [
        f"# The data of {form.name}",
        form.data_description or _UNSAID,
        _table(("stage", "dataset", "from", "licence", "documents", "digest"), rows),
        "The order of the data is a function of the seed, the step and the recipe in `runs/`; "
        "`metrics.jsonl` has a digest of the tokens of each logged step and of all up to it.",
        "## Access",
        form.data_access or _UNSAID,
        "## Personal data",
        form.personal_data or _UNSAID,
        "## Opt-out",
        form.opt_out or _UNSAID,
    ]
    return "\n\n".join(parts) + "\n"


def _new(facts: list[Facts]) -> list[int]:
    """Return the tokens of each stage, without those of a run that it continues."""
    found = []
    for each in facts:
        before = each.rows[0].tokens_seen if each.rows and each.run.resume.origin else 0
        found.append(each.tokens - before)
    return found


def _stage(each: Facts) -> tuple[str, ...]:
    origin = each.stage.origin
    return (
        each.stage.name,
        f"{origin[0]}, step {origin[1]}" if origin else each.run.checkpoint.initial_load or "seed",
        f"{each.rows[-1].step:,}" if each.rows else "0",
        f"{each.tokens:,}",
        each.run.dataset.name,
        f"{each.rows[-1].loss:.4f}" if each.rows else "",
    )


def _evaluations(last: Facts) -> str:
    rows = [
        (e.task, e.metric, f"{e.value:.4f}", "" if e.stderr is None else f"{e.stderr:.4f}")
        for e in last.evaluations
        if math.isfinite(e.value)
    ]
    validated = next((row.validation for row in reversed(last.rows) if row.validation), None) or {}
    rows += [(name, "loss", f"{each.loss:.4f}", "") for name, each in validated.items()]
    if not rows:
        return "None."
    return _table(("task", "metric", "value", "standard error"), rows)


def _results(last: Facts) -> list[dict[str, Any]]:
    return [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": each.task, "type": each.task},
            "metrics": [{"type": each.metric, "name": each.metric, "value": each.value}],
        }
        for each in last.evaluations
        if math.isfinite(each.value)
    ]


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Escape what would end a cell or begin markup: names come from files of others."""
    kept = "".join(c if c.isprintable() else " " for c in str(text))
    return kept.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
