"""The report of a run: report.md and its figures (lm/report/figures.py), made from metrics.jsonl,
samples.md, the preset and the facts of the run.

May be written at any time, also for an unfinished run. Never here: measuring, the network.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aux_heads.metrics import MEASURES
from configs.errors import DiskError
from configs.text import fenced, human_count, table_cell
from data.files import write_atomically
from lm.evaluation.results import PUBLISHED_HEADER, SCORES, published_rows, score_rows
from lm.report.figures import Record, draw, draw_heads
from lm.report.metrics import read_metrics
from lm.report.record import choice_in_words
from lm.report.samples import read_samples

log = logging.getLogger(__name__)


def write_report(checkpoint_dir: Path, preset_json: str, facts: Mapping[str, str]) -> Path:
    """Write `report.md` and its figures into `checkpoint_dir` and return the path of report.md.
    Raises DiskError if there is no place for report.md; a figure without one is logged.

    `facts` are the rows of the first table, in order (machine, versions, time, ...).
    """
    records = read_metrics(checkpoint_dir / "metrics.jsonl")
    title = figure_title(records, facts)
    heads = _heads(records)
    try:
        if records:
            draw(records, checkpoint_dir / "report.png", title)
        if heads:
            draw_heads(records, MEASURES, checkpoint_dir / "heads.png", title)
    except DiskError as error:
        log.warning("a picture cannot be written (%s): the report lacks it.", error.__cause__)
    parts = [f"# {table_cell(facts.get('preset', 'Run'))}", table(("", ""), facts.items())]
    if records:
        parts += ["![loss, bits per byte, mixture and speed over tokens](report.png)", *held_out_table(records)]
        parts += [*before_and_after(records), *benchmark_tables(records), *heads]
        parts += _read(records)
    parts += [*_interruptions(records), *_samples(checkpoint_dir), "## Preset", fenced(preset_json)]
    write_atomically(checkpoint_dir / "report.md", ("\n\n".join(part.rstrip("\n") for part in parts) + "\n").encode())
    return checkpoint_dir / "report.md"


def figure_title(records: Sequence[Record], facts: Mapping[str, str]) -> str:
    """Return run, size and result in a line."""
    parameters = facts.get("parameters", "").replace(",", "")
    size = f"{human_count(int(parameters))} parameters" if parameters.isdecimal() else ""
    found = next((record["eval"].get("bits_per_byte") for record in reversed(records) if record.get("eval")), None)
    result = "" if found is None else f"{found:.4f} bits per byte on held-out text"
    return ", ".join(part for part in (facts.get("preset", ""), size, result) if part)


def table(header: tuple[str, ...], rows: Any, *, numbers: bool | None = None) -> str:
    """Return a Markdown table. The first column is left-aligned, the others too unless they are
    `numbers` (default: if there are at least two others)."""
    numbers = len(header) > 2 if numbers is None else numbers
    align = ["---"] + ["---:" if numbers else "---"] * (len(header) - 1)
    lines = [header, align, *rows]
    return "\n".join("| " + " | ".join(table_cell(str(value)) for value in line) + " |" for line in lines)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def held_out_table(records: Sequence[Record]) -> list[str]:
    """Return a heading and a table of the last evaluation; [] if there was none."""
    evaluated = [record for record in records if record.get("eval")]
    if not evaluated:
        return []
    last, evaluation = evaluated[-1], evaluated[-1]["eval"]
    header = (
        "source",
        "bits per byte",
        "± 1 s.e.",
        "nats per token",
        "answer bits per byte",
        "answer nats per token",
        "tokens",
    )
    keys = ("bits_per_byte", "stderr", "loss", "answer_bits_per_byte", "answer_loss")
    everything = {"all": {key: evaluation.get(key) for key in ("loss", "bits_per_byte", "tokens")}}
    mixed = {"all", *(last.get("mixture") or evaluation["per_source"])}
    rows = [
        (
            label if label in mixed else f"{label} (only watched)",
            *(number(values.get(key)) for key in keys),
            f"{values.get('tokens') or 0:,}",
        )
        for label, values in (everything | evaluation["per_source"]).items()
    ]
    heading = f"## Held-out text after {last['tokens']:,} tokens"
    return [heading, table(header, rows), *_overlapping(last), *_canonical(last), *_choice(records)]


def _choice(records: Sequence[Record]) -> list[str]:
    """Return which checkpoint was exported, and why; [] for a run that kept no best one."""
    return [choice_in_words(record["best"]) for record in records if record.get("best")][-1:]


def _overlapping(record: Record) -> list[str]:
    """Return a table of the evaluation with overlapping windows; [] if there was none."""
    if not (found := record.get("overlapping")):
        return []
    rows = [
        (label, number(values["bits_per_byte"]), number(values["plain"]))
        for label, values in ({"all": found} | found["per_source"]).items()
    ]
    return [
        f"With overlapping windows, so that at least {found['context']} tokens come before each (fewer in the first row of "
        f"a source), on {found['tokens']:,} of these tokens:",
        table(("source", "bits per byte", "without overlap"), rows),
    ]


def _canonical(record: Record) -> list[str]:
    """Return what canonical tokens save; [] if it was not measured."""
    found = record.get("canonical")
    if not found or found["saved"] is None or not found["bits_per_byte"]:
        return []
    share = found["saved"] / found["bits_per_byte"]
    return [
        f"Without the tokens that no text has after the one before, which `t` and the samples never write, {share:.2%} fewer "
        f"bits per byte, on {found['tokens']:,} of these tokens."
    ]


def before_and_after(records: Sequence[Record]) -> list[str]:
    """Return a heading and a table of what the run has changed on the same held-out text; [] for a
    run that began with an untrained model, or was not evaluated since."""
    evaluated = [record for record in records if record.get("eval")]
    if not evaluated or evaluated[0]["tokens"]:
        return []
    before = evaluated[0]["eval"]
    after = next(record for record in reversed(evaluated) if record["eval"].get("tokens") == before.get("tokens"))
    if after is evaluated[0]:
        return []
    found_before, found_after = (
        {label: values.get("bits_per_byte") for label, values in ({"all": found} | found["per_source"]).items()}
        for found in (before, after["eval"])
    )
    rows = [
        (label, number(was), number(now := found_after.get(label)), f"{now / was - 1:+.1%}" if now and was else "")
        for label, was in found_before.items()
    ]
    heading = f"## Bits per byte before the first step, and after {after['tokens']:,} tokens"
    return [heading, table(("source", "before", "after", "change"), rows)]


def benchmark_tables(records: Sequence[Record]) -> list[str]:
    """Return a heading, the last scores of each benchmark and published ones; [] if none was run."""
    if not (rows := score_rows(records)):
        return []
    published = published_rows(records)
    return [
        "## Benchmarks",
        "By lm_eval: tasks, prompts and measures are its own. The standard error is that of the choice of items.",
        table(SCORES, rows),
        *([table(PUBLISHED_HEADER, published, numbers=False)] if published else []),
    ]


def _heads(records: list[Record]) -> list[str]:
    """Return the heads' last held-out measures beside their baselines; [] without heads."""
    measured = [record for record in records if record.get("heads")]
    if not measured:
        return []
    values, rows = measured[-1]["heads"], []
    for measure in MEASURES:
        value, baseline = measure.values(values)
        if value is not None:
            verdict = "" if baseline is None else "yes" if measure.beats(value, baseline) else "**no**"
            shown = (number(value), number(baseline))
            rows.append((measure.head, measure.meaning, shown[0], measure.baseline_meaning, shown[1], verdict))
    header = ("head", "measure", "held-out", "baseline", "its value", "better")
    known = {name for measure in MEASURES for name in (measure.name, measure.baseline)}
    others = [f"{name} {number(value)}" for name, value in values.items() if value is not None and name not in known]
    return [
        f"## Heads after {measured[-1]['tokens']:,} tokens",
        "![measures of the heads over tokens, their baselines dashed](heads.png)",
        table(header, rows, numbers=False),
        *([f"Also measured: {', '.join(others)}."] if others else []),
    ]


def _read(records: list[Record]) -> list[str]:
    read = [record for record in records if record.get("sources")]
    return [f"## Sources after {read[-1]['tokens']:,} tokens", _sources(read[-1]["sources"])] if read else []


def _sources(sources: Mapping[str, Mapping[str, Any]]) -> str:
    header = ("source", "target share", "share", "documents", "tokens", "MB read", "epochs", "retries", "skipped")
    rows = []
    for label, values in sources.items():
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in values["skipped"].items())
        asked = "" if values["asked"] is None else f"{values['asked']:.1%}"
        numbers = (values["documents"], values["tokens"], values["bytes"] // 10**6, values["epoch"], values["retries"])
        rows.append((label, asked, f"{values['realised']:.1%}", *(f"{value:,}" for value in numbers), left_out))
    return table(header, rows)


def _interruptions(records: list[Record]) -> list[str]:
    resumed = [(f"{record['tokens']:,}", record["resumed"]) for record in records if record.get("resumed")]
    if not resumed:
        return ["The run was never interrupted."] if records else []
    return ["## Resumed", table(("at token", "when, on what"), resumed)]


def _samples(checkpoint_dir: Path) -> list[str]:
    """Return the first, a middle and the last section of samples.md."""
    sections = read_samples(checkpoint_dir / "samples.md")
    chosen = sorted({0, len(sections) // 2, len(sections) - 1}) if sections else []
    parts = [f"### After {sections[i].tokens:,} tokens\n\n{sections[i].text.strip()}" for i in chosen]
    return ["## Samples", *parts, "All of them: [samples.md](samples.md)."] if parts else []
