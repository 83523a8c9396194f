"""The figures of a run: its curves, and its heads' measures beside their baselines.

Drawn from the records of metrics.jsonl on an off-screen canvas, never on a display; matplotlib is
imported only when a figure is drawn.
"""

from __future__ import annotations

import io
import json
import logging
import statistics
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from aux_heads.metrics import Measure

Record = dict[str, Any]
# Okabe & Ito's palette without yellow: distinct on white, also to colour-blind readers; beyond 7
# the colours repeat with dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":")
SHORT = 12  # points: a line of so few shows them
# With Chinese, Japanese, Korean and further scripts; the last one, of newer matplotlibs, has a sign for each script.
OTHER_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
    "Droid Sans Fallback", "PingFang SC", "Hiragino Sans GB", "Arial Unicode MS", "Noto Sans Devanagari",
    "Last Resort High-Efficiency",
)  # fmt: skip
LINES_TO_LABEL = 12  # more sources than this are drawn in one grey, without names


def draw(records: list[Record], path: Path, title: str = "") -> None:
    """Draw a panel each for loss, held-out bits per byte by source, mixture and speed over tokens:
    those that have something to show."""
    write_atomically(path, _curves(json.dumps(records), title))


@lru_cache(maxsize=1)  # the export and the report of a run show the same picture
def _curves(records_json: str, title: str) -> bytes:
    records = json.loads(records_json)
    evaluated = [record for record in records if record.get("eval")]
    named = [record["eval"]["per_source"] for record in evaluated] + [record.get("mixture") or {} for record in records]
    labels = list(dict.fromkeys(label for names in named for label in names))
    has_loss = any(_series(records, "loss")[0]) or any(record["eval"].get("loss") for record in evaluated)
    shown = {
        _loss: has_loss,
        _sources: bool(evaluated),
        _mixture: len(_mixed(records)) > 1,
        _speed: any(_series(records, "tokens_per_second")[0]),
    }
    panels = [panel for panel, has_points in shown.items() if has_points] or [_loss]
    num_lines = -(-len(panels) // 2)
    figure = _figure(1 + 3.7 * num_lines, title)
    axes = figure.subplots(num_lines, 2, squeeze=False, sharex=True).ravel()
    for panel, draw_into in zip(axes, panels, strict=False):
        draw_into(panel, records, labels)
    _finish(axes, len(panels))
    if labels and len(labels) <= LINES_TO_LABEL and _sources in panels:
        axes[panels.index(_sources)].legend(frameon=False, fontsize="small", ncols=1 + (len(labels) > 6))
    return _png(figure)


def _loss(panel: Axes, records: list[Record], labels: list[str]) -> None:
    _title(panel, "Loss, nats per token")
    x, y = _series(records, "loss")
    if x:
        panel.plot(x, y, color="#B8CBDD", linewidth=0.6)
        _line(panel, x, _running_median(y), "training (running median)", COLOURS[0])
    held_out = [
        (record["tokens"], record["eval"].get("loss"), record["eval"].get("tokens"))
        for record in records
        if record.get("eval")
    ]
    _held_out_line(panel, held_out, "held-out", COLOURS[1])
    if len(y) > 20:  # the first steps fall from ln V and would flatten everything after them
        panel.set_ylim(
            top=max([*sorted(y)[: int(len(y) * 0.97)], *(value for _, value, _ in held_out if value)]) * 1.02
        )
    if panel.lines:
        panel.legend(frameon=False)


def _sources(panel: Axes, records: list[Record], labels: list[str]) -> None:
    _title(panel, "Held-out bits per byte, per source")
    evaluated = [record for record in records if record.get("eval")]
    for index, label in enumerate(labels):
        measured = [(record["tokens"], record["eval"]["per_source"].get(label, {})) for record in evaluated]
        points = [(tokens, found.get("bits_per_byte"), found.get("tokens")) for tokens, found in measured]
        colour, style = _look_of(index, len(labels))
        _held_out_line(panel, points, label, colour, linestyle=style)


def _mixed(records: list[Record]) -> set[str]:
    """Return the sources that are trained on, and not only watched."""
    return {label for record in records for label in record.get("mixture") or {}}


def _mixture(panel: Axes, records: list[Record], labels: list[str]) -> None:
    _title(panel, "Mixture, share of tokens")
    mixed = _mixed(records)
    for index, label in enumerate(labels):
        if label not in mixed:
            continue
        points = [(record["tokens"], record["mixture"].get(label, 0.0)) for record in records if record.get("mixture")]
        colour, style = _look_of(index, len(labels))
        _line(panel, *_columns(points), label, colour, linestyle=style, marker="o")
    panel.set_ylim(bottom=0)
    if finish := next((record["finish_from"] for record in reversed(records) if "finish_from" in record), None):
        panel.axvline(finish, color="#606060", linewidth=0.8, linestyle=":")
        panel.annotate(
            "finish", (finish, 1), (-3, -3), xycoords=("data", "axes fraction"), textcoords="offset points",
            horizontalalignment="right", verticalalignment="top", fontsize="small",
        )  # fmt: skip


def _speed(panel: Axes, records: list[Record], labels: list[str]) -> None:
    from matplotlib.ticker import EngFormatter

    _title(panel, "Tokens per second")
    x, y = _series(records, "tokens_per_second")
    panel.plot(x, y, color="#B8CBDD", linewidth=0.6)
    _line(panel, x, _running_median(y), "", COLOURS[0])
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_formatter(EngFormatter(sep=""))


def _held_out_line(
    panel: Axes, points: list[tuple[int, float | None, int | None]], label: str, colour: str, **style: Any
) -> None:
    """Draw (tokens seen, measure, tokens measured): one line for the text of the first evaluation,
    and a star, not joined to it, for a final one on more text."""
    size = points[0][2] if points else None
    _line(panel, *_columns([(x, y) for x, y, tokens in points if tokens == size]), label, colour, marker="o", **style)
    for x, y, tokens in points:
        if tokens != size and y is not None:
            panel.plot([x], [y], color=colour, marker="*", markersize=9, linestyle="none")


def draw_heads(records: list[Record], measures: Sequence[Measure], path: Path, title: str = "") -> None:
    """Draw a panel per head over tokens: its measures and, dashed in their colour, baselines."""
    measured = [record for record in records if record.get("heads")]
    known = [
        measure for measure in measures if any(measure.values(record["heads"])[0] is not None for record in measured)
    ]
    heads = list(dict.fromkeys(measure.head for measure in known))
    if not heads:
        return
    figure = _figure(1 + 3.2 * -(-len(heads) // 2), title)
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
    _finish(panels, len(heads))
    write_atomically(path, _png(figure))


def _figure(height: float, title: str) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(_plain(title), fontsize="large")
    return figure


def _finish(panels: Iterable[Axes], num_used: int) -> None:
    """Name the x axis of the lowest panels, and hide those that are not used."""
    for index, panel in enumerate(panels):
        panel.set_visible(index < num_used)
        if index + 2 >= num_used:
            panel.set_xlabel("tokens seen")
            panel.tick_params(labelbottom=True)


def _png(figure: Figure) -> bytes:
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_fontfamily(_fonts())
    picture = io.BytesIO()
    with warnings.catch_warnings():  # labels in other scripts are boxes where no font has them; the report has them too
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(picture, format="png", facecolor="white")
    return picture.getvalue()


@lru_cache(maxsize=1)
def _fonts() -> list[str]:
    """Return matplotlib's own font and, for what it lacks, those of OTHER_FONTS that are installed."""
    from matplotlib.font_manager import fontManager

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # that one of them has no bold letters
    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in OTHER_FONTS if name in installed)]


def _title(panel: Axes, text: str) -> None:
    from matplotlib.ticker import EngFormatter

    panel.set_title(text, loc="left", fontsize="medium", fontweight="bold")
    panel.grid(True, color="#E6E6E6", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))


def _look_of(index: int, num_sources: int) -> tuple[str, str]:
    """Return colour and line style of a source, the same in every panel."""
    if num_sources > LINES_TO_LABEL:
        return "#9A9A9A", "-"
    return COLOURS[index % len(COLOURS)], STYLES[index // len(COLOURS) % len(STYLES)]


def _line(panel: Axes, x: list[int], y: list[float], label: str, colour: str, **style: Any) -> None:
    if len(x) <= SHORT:  # a line of one point is invisible
        style.setdefault("marker", "_" if style.get("linestyle") == "--" else "o")
    style.setdefault("markersize", 12 if style.get("marker") == "_" else 2.5)
    label = f" {label}" if label.startswith("_") else label  # else matplotlib keeps it out of the legend
    panel.plot(x, y, label=_plain(label), color=colour, linewidth=1.2, **style)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # else matplotlib sets what is between two of them as a formula


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
