"""The figures of a run: its curves, and its heads' measures beside their baselines.

Drawn from the records of metrics.jsonl on an off-screen canvas, never on a display; matplotlib is
imported only when a figure is drawn.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from aux_heads.metrics import Measure

Record = dict[str, Any]
# Okabe & Ito's palette without yellow: distinct on white, also to colour-blind readers; beyond 7
# the colours repeat with dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":")
LINES_TO_LABEL = 12  # more sources than this are drawn in one grey, without names


def draw(records: list[Record], path: Path) -> None:
    """Draw four panels over tokens: loss, held-out bits per byte by source, mixture, speed."""
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
    if held_out:
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
    for panel in (sources, mixture):
        if not panel.lines:
            panel.text(0.5, 0.5, "nothing measured yet", transform=panel.transAxes, ha="center", color="#9A9A9A")
    for panel in (mixture, speed):
        panel.set_xlabel("tokens seen")
    if labels and len(labels) <= LINES_TO_LABEL:
        panel_with_names = sources if evaluated else mixture
        panel_with_names.legend(frameon=False, fontsize="small", ncols=1 + (len(labels) > 6))
    _save(figure, path)


def draw_heads(records: list[Record], measures: Sequence[Measure], path: Path) -> None:
    """Draw a panel per head over tokens: its measures and, dashed in their colour, baselines."""
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
        # The r2 of the first steps would flatten everything else.
        last = [value for value in (measure.values(measured[-1]["heads"])[0] for measure in own) if value is not None]
        panel.set_ylim(bottom=max(panel.get_ylim()[0], min([-1, *last])))
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
    """Draw one source, with the same colour and dashes in every panel."""
    named = num_sources <= LINES_TO_LABEL
    colour = COLOURS[index % len(COLOURS)] if named else "#9A9A9A"
    style = STYLES[index // len(COLOURS) % len(STYLES)] if named else "-"
    _line(panel, *_columns(points), label, colour, linestyle=style, marker="o")


def _line(panel: Axes, x: list[int], y: list[float], label: str, colour: str, **style: Any) -> None:
    panel.plot(x, y, label=label.replace("$", r"\$"), color=colour, linewidth=1.2, markersize=2.5, **style)


def _series(records: list[Record], key: str) -> tuple[list[int], list[float]]:
    return _columns([(record["tokens"], record.get(key)) for record in records])


def _columns(points: list[tuple[int, float | None]]) -> tuple[list[int], list[float]]:
    """Return points as x and y, without those that were not measured or not finite."""
    kept = [(x, y) for x, y in points if y is not None]
    return [x for x, _ in kept], [y for _, y in kept]


def _running_median(values: list[float]) -> list[float]:
    """Return the median over a window of 2% of the points, robust against a single bad step."""
    half = max(1, len(values) // 100)
    return [statistics.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
