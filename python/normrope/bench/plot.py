"""Draws how far the operator is from a copy of the same bytes, and PyTorch where it was timed: time over the copy's.

Reads what `normrope bench --json` and `python -m normrope.bench --json` write; where two files have the same
measurement, the first one holds. Their copies may differ (torch's stores through the caches): what a later file adds is
drawn by its distance to the operator, which both have timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

DIRECTIONS = ("forward", "backward")
PRECISIONS = {"float32": 0, "bfloat16": 1, "float16": 2}
TICKS = (0.5, 1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000)
GAP = 0.45  # between presets, in rows


@dataclass(frozen=True)
class Series:
    """How one variant is drawn: Okabe and Ito's colours, which colour-blind people tell apart, and a shape each."""

    label: str
    colour: str
    marker: str


SERIES = {
    "operator": Series("normrope", "#0072B2", "o"),
    "normrope": Series("normrope in PyTorch", "#56B4E9", "P"),
    "compile": Series("torch.compile", "#009E73", "s"),
    "eager": Series("PyTorch eager", "#D55E00", "D"),
    "onednn": Series("oneDNN, inference", "#CC79A7", "^"),
}
COPY_COLOUR, GRID_COLOUR, TEXT_COLOUR = "#333333", "#dddddd", "#222222"


@dataclass(frozen=True)
class Point:
    """A variant's median and quartiles, in copies."""

    variant: str
    ratio: float
    lower: float
    upper: float


Key = tuple[str, str, str]  # preset, direction, dtype


def read(files: Iterable[dict[str, Any]]) -> dict[Key, list[Point]]:
    """All points of what the files say, in their order."""
    found: dict[Key, dict[str, Point]] = {}
    for everything in files:
        fastest: dict[tuple[Key, str], tuple[float, dict[str, Any]]] = {}
        for result in everything["results"]:
            key = (result["preset"], result["direction"], result["dtype"])
            if result["direction"] not in DIRECTIONS:
                continue
            for variant in (name for name in SERIES if name in result["seconds"]):
                # Of one file's instruction sets and numbers of threads, the fastest.
                median = result["seconds"][variant]["median"]
                if median < fastest.get((key, variant), (float("inf"), result))[0]:
                    fastest[key, variant] = (median, result)
        earlier = {key: points["operator"].ratio for key, points in found.items() if "operator" in points}
        for (key, variant), (_, result) in fastest.items():
            seconds = result["seconds"]
            copy = seconds[result["copy"]]["median"]
            if key in earlier and (key, "operator") in fastest:
                copy = fastest[key, "operator"][0] / earlier[key]
            ratios = (seconds[variant][name] / copy for name in ("median", "lower_quartile", "upper_quartile"))
            found.setdefault(key, {}).setdefault(variant, Point(variant, *ratios))
    return {key: list(points.values()) for key, points in found.items()}


def draw_panel(axes: Axes, points: dict[Key, list[Point]], direction: str, rows: dict[tuple[str, str], float]) -> None:
    """One direction: a row for each preset and dtype, at these heights."""
    for (preset, dtype), y in rows.items():
        axes.axhline(y, color=GRID_COLOUR, linewidth=0.8, zorder=0)
        for point in points.get((preset, direction, dtype), ()):
            series, ours = SERIES[point.variant], point.variant == "operator"
            if ours:
                axes.plot([1, point.ratio], [y, y], color=series.colour, linewidth=3, alpha=0.35, solid_capstyle="butt")
            axes.plot([point.lower, point.upper], [y, y], color=series.colour, linewidth=1.2)
            axes.plot(
                point.ratio,
                y,
                series.marker,
                color=series.colour,
                markersize=6.5,
                markeredgecolor="white",
                markeredgewidth=0.7,
                zorder=4 if ours else 3,
            )
            if ours:
                axes.annotate(
                    f"{point.ratio:.2f}",
                    (max(point.ratio, point.upper), y),
                    xytext=(6, 0),
                    textcoords="offset points",
                    va="center",
                    color=TEXT_COLOUR,
                    fontsize=8,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
                    zorder=5,
                )
    axes.axvline(1, color=COPY_COLOUR, linewidth=1.4, zorder=2)
    axes.set_title(direction, fontsize=11, loc="left", color=TEXT_COLOUR)
    axes.set_xscale("log")
    axes.tick_params(length=0, labelsize=9, colors=TEXT_COLOUR)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


def draw(points: dict[Key, list[Point]], title: str) -> Figure:
    """The picture: forward and backward side by side, one axis of times over the copy's."""
    presets = list(dict.fromkeys(preset for preset, _, _ in points))
    dtypes = sorted({dtype for _, _, dtype in points}, key=lambda dtype: PRECISIONS[dtype])
    shown = [(p, d) for p in presets for d in dtypes if any((p, direction, d) in points for direction in DIRECTIONS)]
    rows = {row: number + GAP * presets.index(row[0]) for number, row in enumerate(shown)}
    height = max(rows.values())
    directions = [d for d in DIRECTIONS if any(d == key[1] for key in points)]
    used = [name for name in SERIES if any(p.variant == name for all_ in points.values() for p in all_)]

    figure = Figure(figsize=(9, 1.4 + 0.25 * height), layout="constrained")
    panels = figure.subplots(1, len(directions), sharey=True, sharex=True, squeeze=False)[0]
    for axes, direction in zip(panels, directions, strict=True):
        draw_panel(axes, points, direction, rows)
    every = [ratio for all_ in points.values() for p in all_ for ratio in (p.lower, p.upper)]
    left, right = min(0.93, *every), max(every) * 1.35
    for axes in panels:
        axes.set_xlim(left, right)
        axes.xaxis.set_major_locator(FixedLocator([t for t in TICKS if left <= t <= right]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "copy" if value == 1 else f"{value:g}"))
        axes.grid(axis="x", color=GRID_COLOUR, linewidth=0.6, zorder=0)
        axes.set_axisbelow(True)
    first = panels[0]
    first.set_ylim(height + 0.6, -0.6)
    first.set_yticks(list(rows.values()), [dtype for _, dtype in rows])
    for preset in presets:
        heights = [y for (name, _), y in rows.items() if name == preset]
        first.annotate(
            preset,
            (0, sum(heights) / len(heights)),
            xycoords=first.get_yaxis_transform(),
            xytext=(-64, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=10,
            fontweight="bold",
            color=TEXT_COLOUR,
        )
    figure.suptitle(title, fontsize=11, color=TEXT_COLOUR)
    if len(used) > 1:
        figure.legend(
            handles=[
                mpl.lines.Line2D(
                    [], [], color=SERIES[n].colour, marker=SERIES[n].marker, linestyle="", label=SERIES[n].label
                )
                for n in used
            ],
            loc="outside lower center",
            ncols=len(used),
            frameon=False,
            fontsize=9,
        )
    return figure


def describe(everything: dict[str, Any]) -> str:
    """The title: what is drawn, and on which machine."""
    threads = sorted({result["threads"] for result in everything["results"]})
    machine = f"{everything['machine'].get('cpu') or 'this machine'}, {', '.join(map(str, threads))} threads"
    return f"Time over that of a copy of the same bytes; left is faster ({machine})"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="JSON of normrope bench or python -m normrope.bench"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="by its name .svg or .png")
    parser.add_argument("--preset", metavar="LIST", help="only these, in this order, with commas")
    parser.add_argument("--title", help="instead of one that names the machine")
    arguments = parser.parse_args(argv)
    try:
        files = [json.loads(path.read_text()) for path in arguments.files]
        points = read(files)
        title = arguments.title or describe(files[-1])
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"plot: not the JSON of a benchmark: {error!r}", file=sys.stderr)
        return 2
    if arguments.preset:
        order = arguments.preset.split(",")
        points = {key: points[key] for preset in order for key in points if key[0] == preset}
    if not points:
        print("plot: there is nothing to draw", file=sys.stderr)
        return 2
    save(points, title, arguments.output)
    return 0


def save(points: dict[Key, list[Point]], title: str, path: Path) -> None:
    """Draws into a file, by its name .svg or .png."""
    # The same numbers give the same bytes, and letters are paths: the picture looks alike everywhere.
    mpl.rcParams.update({"svg.hashsalt": "normrope", "svg.fonttype": "path", "font.family": "DejaVu Sans"})
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    draw(points, title).savefig(path, dpi=150, metadata=metadata)


if __name__ == "__main__":
    sys.exit(main())
