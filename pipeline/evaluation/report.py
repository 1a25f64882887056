"""The figures for the eye: a table and a plot."""

from __future__ import annotations

from typing import Any

from pipeline.errors import UsageError

_OKS = ("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR")


def table(figures: dict[str, Any]) -> str:
    """All metrics, one after the other."""
    lines = [f"note: {note}" for note in figures["notes"]]
    for metric, values in figures["metrics"].items():
        lines += ["", *(_oks(values) if metric == "oks" else _pck(metric, values, figures))]
    return "\n".join(lines).lstrip("\n")


def _pck(metric: str, values: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    people = figures["people"]
    name = "PCKh" if metric == "pckh" else "PCK"
    lines = [
        f"{name} over {people} people ({metric}, {values['joints_counted']} joints)",
        f"  unit: {values['unit']}",
    ]
    if left_out := people - values["people_counted"]:
        lines.append(f"  {left_out} people without that unit, or without a joint, do not count")
    heads = [f"@{threshold:g}" for threshold in values["thresholds"]]
    lines += ["", _line("", [*heads, "AUC"])]
    lines += [_figures(row, line) for row, line in values["by_row"].items() if _known(line)]
    if values["limb_joints"]:
        lines.append(_figures("Limb joints", values["limb_joints"]))
    lines.append(_figures("Total", values["all"]))
    for t, stage in enumerate(values.get("by_stage", ())):
        lines.append(_figures(f"  after stage {t + 1}", stage["all"]))
    if values["limb_joints"] and "by_stage" in values:
        first = f"{values['thresholds'][0]:g}"
        stages = [_number(stage["limb_joints"]["at"][first]) for stage in values["by_stage"]]
        lines.append(f"  Limb joints @{first} by stage: {', '.join(stages)}")
    return lines


def _oks(values: dict[str, Any]) -> list[str]:
    ignored = f", {values['ignored']} ignored" if values["ignored"] else ""
    return [
        f"OKS: {values['predicted']} predicted people for {values['labelled']} labelled ones"
        f"{ignored}, {values['joints']} joints",
        "",
        _line("", list(_OKS), width=11),
        _line("", [_number(values[name]) for name in _OKS], width=11),
    ]


def _known(line: dict[str, Any]) -> bool:
    return any(value is not None for value in line["at"].values())


def _figures(name: str, line: dict[str, Any]) -> str:
    return _line(name, [_number(value) for value in [*line["at"].values(), line["auc"]]])


def _line(name: str, cells: list[str], width: int = 8) -> str:
    label = f"  {name:<16}" if width == 8 else ""
    return label + "".join(f"{cell:>{width}}" for cell in cells)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def check_matplotlib() -> None:
    """Raises UsageError where it is not installed: before hours of work, not after."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "--plot needs matplotlib: pip install 'posemill[train]' (or pip install matplotlib)"
        ) from error


def plot(figures: dict[str, Any], path: str) -> None:
    """Write the threshold curves, one panel for each PCK metric."""
    # No pyplot: it would choose a backend for the whole process.
    from matplotlib.figure import Figure

    panels = {m: values for m, values in figures["metrics"].items() if m != "oks"}
    figure = Figure(figsize=(6.4 * len(panels), 4.8), layout="constrained")
    for i, (metric, values) in enumerate(panels.items()):
        _panel(figure.add_subplot(1, len(panels), i + 1), metric, values)
    figure.savefig(path, dpi=150)


def _panel(axes: Any, metric: str, values: dict[str, Any]) -> None:
    curve = values["curve"]
    for name, line in values["by_row"].items():
        if _known(line):
            label = f"{name}, AUC {_number(line['auc'])}"
            axes.plot(curve["thresholds"], curve["by_row"][name], label=label)
    label = f"Total, AUC {_number(values['all']['auc'])}"
    axes.plot(curve["thresholds"], curve["all"], "k--", linewidth=2, label=label)
    axes.set(xlabel=f"distance / {values['unit']}", ylabel="correct joints, %", title=metric)
    axes.set_ylim(0, 100)
    axes.set_xlim(0, curve["thresholds"][-1])
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
