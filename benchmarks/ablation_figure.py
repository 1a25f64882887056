"""The results of `ablation.py` as one figure: what stages and their losses do to PCK and gradients.

After Fig. 5, 6b and 6c of the CPM paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ablation_table import Document, Rate, groups, variant_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

_EVERY, _LAST = "#1f5fa8", "#d1641a"
_MANY = 12
_ASIDE = 0.05
_INK, _FAINT, _BAND = "#333333", "#8a8a8a", "#f3f3f0"


def figure(document: Document) -> Figure:
    """PCK above, gradients below."""
    most = document["settings"]["most_stages"]
    drawn = Figure(figsize=(11, 8.2), facecolor="white")
    grid = drawn.add_gridspec(2, 2, left=0.075, right=0.98, top=0.86, bottom=0.065)
    grid.update(hspace=0.34, wspace=0.19)
    axes = [drawn.add_subplot(grid[0, 0]), drawn.add_subplot(grid[0, 1])]
    axes.append(drawn.add_subplot(grid[1, 0]))
    axes.append(drawn.add_subplot(grid[1, 1], sharey=axes[2]))
    for one in axes:
        _plain(one)
    _by_stages(axes[0], document)
    _by_stage(axes[1], document)
    every, last = (variant_of(document, most, i)["gradients"] for i in (True, False))
    steps = [step for step in every if int(step) < document["settings"]["steps"]]
    curves = [(every[s], last[s], s) for s in steps]
    _gradients(axes[2], curves, f"Gradient by layer: cpm-lite, {most} stages")
    paper = document["paper"]["gradients"]
    title = "Gradient by layer: the paper's net, no batch norm"
    _gradients(axes[3], [(paper["all"], paper["last"], "0")], title)
    _heading(drawn, document)
    return drawn


def _heading(drawn: Figure, document: Document) -> None:
    settings = document["settings"]
    title = "What a loss after every stage is worth"
    drawn.text(0.018, 0.965, title, size=15, weight="bold", color=_INK, va="center")
    small = (
        f"{settings['steps']:,} steps of {settings['batch_size']} crops of {settings['size']} px, "
        f"one seed; bars: standard error over {document['tune']:,} people"
    )
    drawn.text(0.018, 0.928, small, size=10, color=_FAINT, va="center")
    names = ((_EVERY, "loss after every stage"), (_LAST, "loss after the last stage only"))
    handles = [Line2D([], [], color=c, lw=2.2, marker="o", ms=5, label=n) for c, n in names]
    place = {"loc": "upper right", "bbox_to_anchor": (0.985, 0.99)}
    drawn.legend(handles=handles, frameon=False, fontsize=10.5, labelcolor=_INK, **place)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=9.5, length=3)
    axes.grid(axis="y", color="#e6e6e2", lw=0.8)
    axes.set_axisbelow(True)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", size=11, color=_INK, weight="bold", pad=9)


def _by_stages(axes: Axes, document: Document) -> None:
    """PCK after the last stage of every net."""
    most = document["settings"]["most_stages"]
    for intermediate, color in ((True, _EVERY), (False, _LAST)):
        # A net of one stage has but one loss: both lines start from it.
        nets = [variant_of(document, t, intermediate or t == 1) for t in range(1, most + 1)]
        rates = [Rate.of(net, net["stages"]) for net in nets]
        _line(axes, rates, color, first=1 if intermediate else 2)
    _title(axes, "PCK by number of stages")
    axes.set_xlabel("stages of the net", color=_INK)
    axes.set_ylabel("PCK@0.2, limb joints, %", color=_INK)


def _by_stage(axes: Axes, document: Document) -> None:
    """PCK within the deepest nets; hollow: a stage without a loss of its own."""
    most = document["settings"]["most_stages"]
    for intermediate, color in ((True, _EVERY), (False, _LAST)):
        net = variant_of(document, most, intermediate)
        rates = [Rate.of(net, stage) for stage in range(1, most + 1)]
        _line(axes, rates, color, hollow=0 if intermediate else most - 1)
    _title(axes, f"PCK by stage within the net of {most} stages")
    axes.set_xlabel("after stage (hollow: without a loss of its own)", color=_INK)


def _line(axes: Axes, rates: Sequence[Rate], color: str, hollow: int = 0, first: int = 1) -> None:
    """PCK from place `first` on, values beside the marks, the first `hollow` of them hollow."""
    # Side by side, so that neither hides the other.
    side = 1 if color == _LAST else -1
    places = np.arange(1, len(rates) + 1) + side * _ASIDE
    values = [rate.percent for rate in rates]
    errors = [rate.error for rate in rates]
    axes.errorbar(places, values, yerr=errors, color=color, lw=2.2, elinewidth=1.2, capsize=3)
    fills = ["white"] * hollow + [color] * (len(rates) - hollow)
    axes.scatter(places, values, s=40, c=fills, edgecolors=color, linewidths=1.8, zorder=3)
    axes.set_xticks(range(1, len(rates) + 1))
    axes.set_xlim(0.5, len(rates) + 0.5)
    axes.margins(y=0.12)
    style: dict[str, Any] = {"textcoords": "offset points", "size": 9.5, "color": color}
    style |= {
        "ha": "left" if side > 0 else "right",
        "path_effects": [withStroke(linewidth=3, foreground="white")],
    }
    for place, value in list(zip(places, values, strict=True))[first - 1 :]:
        axes.annotate(f"{value:.1f}", (place, value), (side * 7, -13 if side > 0 else 7), **style)


def _gradients(axes: Axes, curves: Sequence[tuple[Any, Any, str]], title: str) -> None:
    """Mean |gradient| of the layers in order; the start faint where a later step is there too."""
    _title(axes, title)
    axes.set_yscale("log")
    latest = curves[-1][2]
    for every, last, step in curves:
        for gradients, color in ((every, _EVERY), (last, _LAST)):
            _segments(axes, gradients, color, step == latest)
    _bands(axes, curves[0][0])
    axes.set_ylabel("mean |gradient| of the weights", color=_INK)
    first = curves[0][2]
    note = f"layers from image to output, at step {latest}"
    note += f" (faint: at step {first})" if first != latest else ""
    axes.set_xlabel(note, color=_INK)


def _rooms(layers: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """From where to where each group goes on the axis; a deep trunk needs the room of two."""
    rooms, start = {}, 0.0
    for name, values in layers.items():
        width = 2.0 if len(values) > _MANY else 1.0
        rooms[name] = start, start + width
        start += width
    return rooms


def _segments(axes: Axes, gradients: Any, color: str, full: bool) -> None:
    layers = groups(gradients)
    for name, (start, end) in _rooms(layers).items():
        values = [value for _, value in layers[name]]
        places = start + (np.arange(len(values)) + 0.5) * (end - start) / len(values)
        size = 2.2 if len(values) > _MANY else 3.6
        style: dict[str, Any] = {"lw": 1.8, "marker": "o", "ms": size}
        if not full:
            style = {"lw": 1.3, "alpha": 0.45}
        axes.plot(places, values, color=color, **style)


def _bands(axes: Axes, gradients: Any) -> None:
    """Every second group shaded, names below."""
    rooms = _rooms(groups(gradients))
    for start, end in list(rooms.values())[::2]:
        axes.axvspan(start, end, color=_BAND, lw=0, zorder=0)
    axes.set_xticks([(start + end) / 2 for start, end in rooms.values()], list(rooms))
    axes.tick_params(axis="both", which="both", length=0)
    axes.set_xlim(0, max(end for _, end in rooms.values()))
