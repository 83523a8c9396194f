"""The report of a run: report.md, report.png and heads.png, made from metrics.jsonl and samples.md alone.

What the heads' measures mean, and what each must beat, is handed in. May be written at any time, also for an unfinished
run. Never here: measuring anything, a display (the figures are drawn on an off-screen canvas), the network. matplotlib is
imported only when a figure is drawn.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lm.files import replace_text
from lm.metrics import read_metrics
from lm.printable import fenced, table_cell
from lm.samples import read_samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = dict[str, Any]
# Okabe & Ito's palette without yellow: told apart on white, by colour-blind readers too; repeated with dashes beyond 7.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":")
LINES_TO_LABEL = 12  # more sources than this are drawn in one grey, without names


class Measure(Protocol):
    """A head's measure beside its baseline, as aux_heads/measures.py has it."""

    @property
    def name(self) -> str: ...
    @property
    def baseline(self) -> str | float: ...
    @property
    def meaning(self) -> str: ...
    @property
    def baseline_meaning(self) -> str: ...
    @property
    def less_is_better(self) -> bool: ...
    @property
    def head(self) -> str: ...

    def values(self, measured: Mapping[str, float | None]) -> tuple[float | None, float | None]: ...

    def beats(self, value: float, baseline: float) -> bool: ...


def write_report(
    checkpoint_dir: Path, preset_json: str, facts: Mapping[str, str], measures: Sequence[Measure] = ()
) -> Path:
    """Write `report.md` and its pictures into `checkpoint_dir` and return the path of report.md.

    `facts` are the rows of the first table, in order: machine, versions, time, and whatever else a reader should know;
    `measures` the rows of the table of heads.
    """
    records = read_metrics(checkpoint_dir / "metrics.jsonl")
    if records:
        draw(records, checkpoint_dir / "report.png")
    heads = _heads(records, measures)
    if heads:
        draw_heads(records, measures, checkpoint_dir / "heads.png")
    parts = [f"# {table_cell(facts.get('preset', 'Run'))}", table(("", ""), facts.items())]
    if records:
        parts += ["![loss, bits per byte, mixture and speed over tokens](report.png)", *held_out_table(records), *heads]
        parts += _read(records)
    parts += [*_interruptions(records), *_samples(checkpoint_dir), "## Preset", fenced(preset_json)]
    replace_text(checkpoint_dir / "report.md", "\n\n".join(part.rstrip("\n") for part in parts) + "\n")
    return checkpoint_dir / "report.md"


# ----------------------------------------------------------------------------------------------------------------- text


def table(header: tuple[str, ...], rows: Any, *, numbers: bool | None = None) -> str:
    """A Markdown table; the first column left, the others too unless they are `numbers` (default: if there are two)."""
    numbers = len(header) > 2 if numbers is None else numbers
    align = ["---"] + ["---:" if numbers else "---"] * (len(header) - 1)
    lines = [header, align, *rows]
    return "\n".join("| " + " | ".join(table_cell(str(value)) for value in line) + " |" for line in lines)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def held_out_table(records: Sequence[Record]) -> list[str]:
    """The last evaluation: a heading and a table, if there was one."""
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
    rows = [
        (label, *(number(values.get(key)) for key in keys), f"{values['tokens']:,}")
        for label, values in (everything | evaluation["per_source"]).items()
    ]
    return [f"## Held-out text after {last['tokens']:,} tokens", table(header, rows)]


def _heads(records: list[Record], measures: Sequence[Measure]) -> list[str]:
    """What each head measured last on held-out text, beside what it must beat; nothing without heads."""
    measured = [record for record in records if record.get("heads")]
    if not measured:
        return []
    values, rows = measured[-1]["heads"], []
    for measure in measures:
        value, baseline = measure.values(values)
        if value is not None:
            verdict = "" if baseline is None else "yes" if measure.beats(value, baseline) else "**no**"
            shown = (number(value), number(baseline))
            rows.append((measure.head, measure.meaning, shown[0], measure.baseline_meaning, shown[1], verdict))
    header = ("head", "what is measured", "held-out", "what it must beat", "that is", "beaten")
    others = [
        f"{name} {number(value)}" for name, value in values.items() if value is not None and not _in(name, measures)
    ]
    return [
        f"## Heads after {measured[-1]['tokens']:,} tokens",
        "![measures of the heads over tokens, their baselines dashed](heads.png)",
        table(header, rows, numbers=False),
        *([f"Also measured: {', '.join(others)}."] if others else []),
    ]


def _in(name: str, measures: Sequence[Measure]) -> bool:
    return any(name in (measure.name, measure.baseline) for measure in measures)


def _read(records: list[Record]) -> list[str]:
    read = [record for record in records if record.get("sources")]
    return [f"## Sources after {read[-1]['tokens']:,} tokens", _sources(read[-1]["sources"])] if read else []


def _sources(sources: Mapping[str, Mapping[str, Any]]) -> str:
    header = ("source", "asked", "realised", "documents", "tokens", "MB read", "begun anew", "retries", "left out")
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
    return ["## Taken up again", table(("at token", "when, on what"), resumed)]


def _samples(checkpoint_dir: Path) -> list[str]:
    """The first, a middle and the last section of samples.md."""
    sections = read_samples(checkpoint_dir / "samples.md")
    chosen = sorted({0, len(sections) // 2, len(sections) - 1}) if sections else []
    parts = [f"### After {sections[i].tokens:,} tokens\n\n{sections[i].text.strip()}" for i in chosen]
    return ["## Samples", *parts, "All of them: [samples.md](samples.md)."] if parts else []


# --------------------------------------------------------------------------------------------------------------- figure


def draw(records: list[Record], path: Path) -> None:
    """Four panels over tokens: loss, held-out bits per byte per source, mixture, tokens per second."""
    from matplotlib.ticker import EngFormatter

    figure = _figure(8.4)
    (loss, sources), (mixture, speed) = figure.subplots(2, 2, sharex=True)
    evaluated = [record for record in records if record.get("eval")]
    named = [record["eval"]["per_source"] for record in evaluated] + [record.get("mixture") or {} for record in records]
    labels = list(dict.fromkeys(label for names in named for label in names))

    _title(loss, "Loss, nats per token")
    x, y = _series(records, "loss")
    loss.plot(x, y, color="#B8CBDD", linewidth=0.6)
    _line(loss, x, _running_median(y), "training (running median)", COLOURS[0])
    held_out = [(record["tokens"], record["eval"]["loss"]) for record in evaluated]
    _line(loss, *_columns(held_out), "held-out", COLOURS[1], marker="o")
    if len(y) > 20:  # the first steps fall from ln V and would flatten everything after them
        loss.set_ylim(top=max([*sorted(y)[: int(len(y) * 0.97)], *(value for _, value in held_out if value)]) * 1.02)
    loss.legend(frameon=False)

    _title(sources, "Held-out bits per byte, per source")
    for index, label in enumerate(labels):
        points = [(r["tokens"], r["eval"]["per_source"].get(label, {}).get("bits_per_byte")) for r in evaluated]
        _source_line(sources, points, index, label, len(labels))

    _title(mixture, "Mixture, share of tokens")
    for index, label in enumerate(labels):
        points = [(r["tokens"], r["mixture"].get(label, 0.0)) for r in records if r.get("mixture")]
        _source_line(mixture, points, index, label, len(labels))
    mixture.set_ylim(bottom=0)

    _title(speed, "Tokens per second")
    x, y = _series(records, "tokens_per_second")
    speed.plot(x, y, color="#B8CBDD", linewidth=0.6)
    _line(speed, x, _running_median(y), "", COLOURS[0])
    speed.set_ylim(bottom=0)
    speed.yaxis.set_major_formatter(EngFormatter(sep=""))
    for panel in (mixture, speed):
        panel.set_xlabel("tokens seen")
    if labels and len(labels) <= LINES_TO_LABEL:
        panel_with_names = sources if evaluated else mixture
        panel_with_names.legend(frameon=False, fontsize="small", ncols=1 + (len(labels) > 6))
    _save(figure, path)


def draw_heads(records: list[Record], measures: Sequence[Measure], path: Path) -> None:
    """A panel a head over tokens: its measures, and in the same colour, dashed, what they must beat."""
    measured = [record for record in records if record.get("heads")]
    known = [
        measure for measure in measures if any(measure.values(record["heads"])[0] is not None for record in measured)
    ]
    heads = list(dict.fromkeys(measure.head for measure in known))
    if not heads:
        return
    figure = _figure(1 + 3.2 * -(-len(heads) // 2))
    panels = figure.subplots(-(-len(heads) // 2), 2, squeeze=False).ravel()
    for panel, head in zip(panels, heads, strict=False):
        own = [measure for measure in known if measure.head == head]
        better = "less is better" if own[0].less_is_better else "more is better"
        _title(panel, f"{head.replace('_', ' ').capitalize()} ({better})")
        for colour, measure in zip(COLOURS, own, strict=False):
            pairs = [(record["tokens"], *measure.values(record["heads"])) for record in measured]
            baseline = measure.baseline_meaning
            name = measure.name.partition("/")[2].replace("_", " ")
            _line(panel, *_columns([pair[:2] for pair in pairs]), f"{name}; dashed: {baseline}", colour, marker="o")
            _line(panel, *_columns([pair[::2] for pair in pairs]), "", colour, linestyle="--")
        panel.set_ylim(bottom=max(panel.get_ylim()[0], -1))  # an r2 of the first steps would flatten all the rest
        panel.legend(frameon=False, fontsize="x-small")
        panel.set_xlabel("tokens seen")
    for panel in panels[len(heads) :]:
        panel.set_visible(False)
    _save(figure, path)


def _figure(height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", facecolor="white")
    os.replace(temporary, path)


def _title(panel: Axes, text: str) -> None:
    from matplotlib.ticker import EngFormatter

    panel.set_title(text, loc="left", fontsize="medium", fontweight="bold")
    panel.grid(True, color="#E6E6E6", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))


def _source_line(panel: Axes, points: list[tuple[int, float | None]], index: int, label: str, num_sources: int) -> None:
    """One source keeps its colour and dashes in every panel."""
    named = num_sources <= LINES_TO_LABEL
    colour = COLOURS[index % len(COLOURS)] if named else "#9A9A9A"
    style = STYLES[index // len(COLOURS) % len(STYLES)] if named else "-"
    _line(panel, *_columns(points), label, colour, linestyle=style, marker="o")


def _line(panel: Axes, x: list[int], y: list[float], label: str, colour: str, **style: Any) -> None:
    panel.plot(x, y, label=label.replace("$", r"\$"), color=colour, linewidth=1.2, markersize=2.5, **style)


def _series(records: list[Record], key: str) -> tuple[list[int], list[float]]:
    return _columns([(record["tokens"], record.get(key)) for record in records])


def _columns(points: list[tuple[int, float | None]]) -> tuple[list[int], list[float]]:
    """Points as x and y, without those that were not measured or not finite."""
    kept = [(x, y) for x, y in points if y is not None]
    return [x for x, _ in kept], [y for _, y in kept]


def _running_median(values: list[float]) -> list[float]:
    """Over a window of 2% of the points: robust against a single bad step."""
    half = max(1, len(values) // 100)
    return [statistics.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
