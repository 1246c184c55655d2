"""The report's pictures, drawn by matplotlib: learning curves, the graph of the stages, the README's picture.

Takes curves and boxes, makes inline SVGs. Their text stays text and their colours are CSS (`currentColor`,
`var(--series-1)`), so that one drawing follows the light and the dark theme. matplotlib cannot write CSS
colours: it draws with stand-in colours, which are replaced in the finished SVG. It is imported only when
something is drawn. The curves are those of DeepSeek-R1 (arXiv 2501.12948 v2, Figure 1: accuracy and response
length of R1-Zero), with the quantities added that show why a run fails. Command: `make report RUN=NAME`.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.report_measures import Measure
from pipeline.report_run import Curve

MAX_POINTS = 400  # in one line of one drawing
COLUMN_IN, ROW_IN = 1.35, 0.8  # inches between the boxes of the lineage graph
BOX_WIDTH, BOX_HEIGHT = 0.86, 0.84  # as shares of a column and a row
Place = tuple[int, float]  # column, row
DARK_INK = "#24292f"  # of the README's picture, which is always light
INK = "#010203"  # stands for currentColor
PAPER = "#010204"  # stands for the background of a box
SERIES = tuple(f"#0102{n:02x}" for n in range(0x10, 0x18))  # stand for --series-1 ... --series-8
CSS_COLOURS = {INK: "currentColor", PAPER: "var(--raised)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)
}


@dataclass(frozen=True)
class Panel:
    """One axes of the small multiples: its title, metrics (`reward/*` = every part) and unit."""

    title: str
    metrics: tuple[str, ...]
    unit: str = ""
    percent: bool = False
    instead_of: str | None = None  # shown only where this metric is absent


PANELS = (
    Panel("Reward and its parts", ("reward", "reward/*")),
    Panel("pass@1 of the training samples", ("pass_at_1",), "%", percent=True),
    Panel("Mean response", ("mean_response_tokens",), "tokens"),
    Panel("Entropy", ("entropy",), "nats per token"),
    Panel("Without a signal, or cut", ("zero_variance_share", "clipped_share"), "%", percent=True),
    Panel("KL to the reference", ("kl",), "nats per token"),
    Panel("Loss", ("loss", "eval_loss"), instead_of="reward"),
    Panel("Tokens predicted rightly", ("mean_token_accuracy",), "%", percent=True),
    Panel("Pairs in the right order", ("accuracy",), "%", percent=True),
    Panel("Watch for reward hacking", ("alarm/preference_score", "alarm/pass_at_1"), "%", percent=True),
    Panel("Sampler against trainer", ("engine_gap",), "nats per token"),
    Panel("Speed", ("tokens_per_s",), "tokens per second"),
)
SERIES_LABELS = {
    "reward": "reward, the weighted sum",
    "zero_variance_share": "groups with equal rewards",
    "clipped_share": "responses cut at the limit",
    "loss": "in training",
    "eval_loss": "held out",
    "alarm/preference_score": "the reward model's score",
    "alarm/pass_at_1": "held-out pass@1",
}


@dataclass(frozen=True)
class Drawing:
    """An inline SVG with its title, the unit of its y axis and its legend, (label, CSS colour) pairs."""

    title: str
    unit: str
    svg: str
    legend: tuple[tuple[str, str], ...] = ()

    def __html__(self) -> str:
        """What jinja2 puts into a page as it is; matplotlib has escaped the text in it."""
        return self.svg


@dataclass(frozen=True)
class Node:
    """A box of the lineage graph: its reference, what is written in it and the references it is made from."""

    ref: str
    name: str
    lines: tuple[str, ...]
    parents: tuple[str, ...] = ()
    done: bool = True


def draw_curves(curves: Mapping[str, Curve], published: Mapping[str, Curve] | None = None) -> list[Drawing]:
    """The small multiples of one training stage; panels with nothing to show are left out.

    Where others have `published` points of a metric that is shown, they are drawn behind it.
    """
    panels = [(panel, _series(panel, curves)) for panel in PANELS if panel.instead_of not in curves]
    shown = {name: points for name, points in (published or {}).items() if name in curves}
    return [_draw_panel(panel, series, _series(panel, shown)) for panel, series in panels if series]


def _series(panel: Panel, curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """Label -> finite points, for every metric of the panel that has some."""
    names: list[str] = []
    for metric in panel.metrics:
        prefix = metric.removesuffix("*")
        names += sorted(n for n in curves if n.startswith(prefix)) if metric.endswith("*") else [metric]
    finite = {name: [point for point in curves.get(name, []) if point[1] is not None] for name in names}
    return {SERIES_LABELS.get(n, n.removeprefix("reward/")): points for n, points in finite.items() if points}


def _draw_panel(panel: Panel, series: Mapping[str, Curve], published: Mapping[str, Curve]) -> Drawing:
    figure = _new_figure(3.5, 2.05)
    axes = figure.add_axes((0.145, 0.12, 0.835, 0.84))
    colours = [SERIES[number % len(SERIES)] for number in range(len(series))]
    for (label, points), colour in zip(series.items(), colours, strict=True):
        _draw_series(axes, points, colour, factor=100 if panel.percent else 1, thick=label == SERIES_LABELS["reward"])
    for points in published.values():
        steps, values = zip(*points, strict=True)
        scaled = [value * (100 if panel.percent else 1) for value in values]
        axes.plot(
            steps, scaled, color=INK, alpha=0.5, linewidth=1, linestyle=(0, (4, 3)), marker="o", markersize=4, zorder=0
        )
    if panel.percent:
        axes.set_ylim(0, min(101.5, axes.get_ylim()[1]))
    _dress(axes)
    legend = tuple(zip(series, (CSS_COLOURS[colour] for colour in colours), strict=True))
    legend += tuple((f"{label}, as published", CSS_COLOURS[INK]) for label in published)
    legend = legend if len(legend) > 1 else ()
    return Drawing(panel.title, panel.unit, _svg(figure, panel.title), legend)


def _draw_series(
    axes: Any, points: Curve, colour: str, factor: float, thick: bool = False, label: str | None = None
) -> None:
    """Faint dots for what was logged, a line for their rolling mean."""
    import numpy as np

    steps = np.array([step for step, _ in points], dtype=float)
    values = np.array([value for _, value in points], dtype=float) * factor
    keep = np.unique(np.linspace(0, len(steps) - 1, MAX_POINTS).round().astype(int))
    # A dot is a very short line with round ends: one SVG path for all of them instead of one element each.
    dots_x, dots_y = np.repeat(steps[keep], 3), np.repeat(values[keep], 3)
    dots_x[1::3] += (steps[-1] - steps[0] or 1) * 1e-4
    dots_y[2::3] = np.nan
    axes.plot(dots_x, dots_y, color=colour, alpha=0.35, linewidth=2.6, solid_capstyle="round", snap=False)
    width = 2.2 if thick else 1.5
    axes.plot(steps[keep], rolling_mean(values)[keep], color=colour, linewidth=width, label=label)


def smoothing_window(num_points: int) -> int:
    """How many neighbouring steps the smooth line averages; always odd, 1 for short curves."""
    return max(1, num_points // 12) // 2 * 2 + 1


def rolling_mean(values: Any) -> Any:
    """Centred mean over `smoothing_window` values, over fewer at both ends."""
    import numpy as np

    window = np.ones(smoothing_window(len(values)))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def draw_lineage(nodes: Sequence[Node]) -> Drawing | None:
    """Boxes in columns by their distance from the first models, with arrows; None without boxes."""
    if not nodes:
        return None
    places = _columns(nodes)
    edges = [(places[p], places[node.ref]) for node in nodes for p in node.parents if p in places]
    num_columns = 1 + max(column for column, _ in places.values())
    lowest = 0.5 + max(row for _, row in places.values())
    tops = [start[1] - BOX_HEIGHT / 2 - _rise(start, end, places) - 0.1 for start, end in edges]
    highest = min([-0.5, *tops])
    figure = _new_figure(COLUMN_IN * num_columns, ROW_IN * (lowest - highest))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.5, num_columns - 0.5), ylim=(lowest, highest))
    axes.axis("off")
    for start, end in edges:
        _draw_arrow(axes, start, end, _rise(start, end, places))
    for node in nodes:
        _draw_node(axes, node, places[node.ref])
    return Drawing("Where every model comes from", "", _svg(figure, "graph of the stages"))


def _rise(start: Place, end: Place, places: Mapping[str, Place]) -> float:
    """How many rows an arrow rises above the boxes to pass those in its way; 0 where there are none."""
    in_the_way = [
        place for place in places.values() if start[0] < place[0] < end[0] and abs(place[1] - start[1]) < BOX_HEIGHT / 2
    ]
    return 0.25 + 0.08 * (end[0] - start[0]) if start[1] == end[1] and in_the_way else 0.0


def _columns(nodes: Sequence[Node]) -> dict[str, Place]:
    """Reference -> (column, row): one column right of the farthest parent, every column centred."""
    column: dict[str, int] = {}
    for node in nodes:  # a parent stands before its children in a recipe
        column[node.ref] = 1 + max((column[parent] for parent in node.parents if parent in column), default=-1)
    members = {c: [node.ref for node in nodes if column[node.ref] == c] for c in column.values()}
    tallest = max(len(names) for names in members.values())
    return {ref: (c, row + (tallest - len(names)) / 2) for c, names in members.items() for row, ref in enumerate(names)}


def _draw_node(axes: Any, node: Node, place: Place) -> None:
    from matplotlib.patches import FancyBboxPatch

    x, y = place
    style: dict[str, Any] = {
        "linestyle": "-" if node.done else (0, (3, 2)),
        "linewidth": 1.0,
        "edgecolor": INK,
        "facecolor": PAPER,
    }
    corner = (x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2)
    box = FancyBboxPatch(corner, BOX_WIDTH, BOX_HEIGHT, boxstyle="round,pad=0,rounding_size=0.05", **style)
    axes.add_patch(box)
    for number, line in enumerate((node.name, *node.lines)):
        top = y + (number - len(node.lines) / 2) * 0.21
        bold = {"fontweight": "bold"} if number == 0 else {"alpha": 0.75}
        size = 7 if len(line) <= 16 else 6
        axes.text(x, top, line[:22], ha="center", va="center", fontsize=size, color=INK, parse_math=False, **bold)


def _draw_arrow(axes: Any, start: Place, end: Place, rise: float) -> None:
    """From the side of one box to the side of another, or from top to top where it rises above those between."""
    style: dict[str, Any] = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
    (x, y), (right, below) = start, end
    if rise:
        tail, head = (float(x), y - BOX_HEIGHT / 2), (float(right), below - BOX_HEIGHT / 2)
    else:
        tail, head = (x + BOX_WIDTH / 2, y), (right - BOX_WIDTH / 2, below)
    # The curve's one control point lies twice as high as its top.
    bend = f"arc3,rad={-2 * rise * ROW_IN / (COLUMN_IN * (right - x)):.3f}"
    axes.annotate("", xy=head, xytext=tail, arrowprops={**style, "connectionstyle": bend}, zorder=0)


def save_learning_picture(
    path: Path,
    curves: Mapping[str, Curve],
    before: Mapping[str, Measure],
    after: Mapping[str, Measure],
    title: str,
) -> None:
    """The README's picture: pass@1 and response length over the steps, held-out values at both ends."""
    from matplotlib import rc_context

    style: Any = {
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.labelcolor": DARK_INK,
        "text.color": DARK_INK,
        "text.parse_math": False,
    }
    with rc_context(style):
        figure = _new_figure(9.0, 3.4, ink=DARK_INK, paper="white")
        figure.suptitle(title, x=0.012, y=0.97, ha="left", fontsize=12, fontweight="bold")
        panels = (
            ("pass_at_1", "pass@1, %", 100, "#2a66c8"),
            ("mean_response_tokens", "response, tokens", 1, "#c2571a"),
        )
        for number, (metric, label, factor, colour) in enumerate(panels, start=1):
            axes = figure.add_subplot(1, 2, number)
            axes.set_title(label)
            _draw_learning(axes, curves.get(metric, []), (before.get(metric), after.get(metric)), factor, colour)
        figure.tight_layout()
        figure.savefig(path, format="png", dpi=160)


def _draw_learning(
    axes: Any, points: Curve, held_out: tuple[Measure | None, Measure | None], factor: float, colour: str
) -> None:
    known = [point for point in points if point[1] is not None]
    if known:
        _draw_series(axes, known, colour, factor, label="training samples")
    last = known[-1][0] if known else 1
    for step, measure in zip((0, last), held_out, strict=True):
        if measure is None or measure.value is None:
            continue
        low, high = measure.ci95 or (measure.value, measure.value)
        bars = [[max(0.0, measure.value - low) * factor], [max(0.0, high - measure.value) * factor]]
        dot = {"fmt": "o", "color": DARK_INK, "markersize": 6, "capsize": 4, "zorder": 5, "clip_on": False}
        axes.errorbar(
            [step],
            [measure.value * factor],
            yerr=bars,
            label="held-out problems, 95 %" if step else None,
            **dot,
        )
        side = {"xytext": (9, -12), "ha": "left"} if step == 0 else {"xytext": (-9, -16), "ha": "right"}
        axes.annotate(
            f"{measure.value * factor:.0f}",
            (step, measure.value * factor),
            textcoords="offset points",
            **side,
        )
    axes.set_ylim(bottom=0)
    _dress(axes, ink=DARK_INK)
    axes.set_xlabel("training step")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="lower right", fontsize=9)


def _new_figure(width: float, height: float, ink: str = INK, paper: str = "none") -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor=paper)
    figure.set_layout_engine("none")
    return figure


def _dress(axes: Any, ink: str = INK) -> None:
    """A quiet frame: horizontal grid, no box, few ticks."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_facecolor("none")
    axes.grid(axis="y", color=ink, alpha=0.13, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(ink)
    axes.spines["bottom"].set_alpha(0.4)
    axes.tick_params(colors=ink, length=0, labelsize=8 if ink == INK else 9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(value, 9):g}".replace("-", "−")))


def _svg(figure: Any, label: str) -> str:
    """The figure as an inline SVG: text as text, CSS colours, nothing that names another document."""
    from matplotlib import rc_context

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": label, "path.simplify": False}
    buffer = io.StringIO()
    with rc_context(style):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same ids would appear once in every drawing
    svg = re.sub(r"font: (?:bold |700 )?([\d.]+px) [^;\"]*", _font, svg)
    svg = re.sub("|".join(CSS_COLOURS), lambda found: CSS_COLOURS[found[0]], svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _font(found: re.Match[str]) -> str:
    bold = "bold " if found[0].startswith(("font: bold", "font: 700")) else ""
    return f"font: {bold}{found[1]} var(--sans)"
