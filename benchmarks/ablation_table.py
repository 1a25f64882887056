"""The results of `ablation.py` in numbers: PCK with standard errors, and tables of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.progress import duration

Document = dict[str, Any]


@dataclass(frozen=True)
class Rate:
    """Joints that were right, by batch of the tuning split, out of those that counted."""

    correct: NDArray[np.float64]
    counted: NDArray[np.float64]

    @classmethod
    def of(cls, variant: dict[str, Any], stage: int) -> Self:
        """Of a net's stage, counted from 1."""
        correct = variant["correct_by_stage"][stage - 1]
        return cls(np.array(correct, float), np.array(variant["counted"], float))

    @property
    def percent(self) -> float:
        """PCK over all joints."""
        return float(100 * self.correct.sum() / max(1, self.counted.sum()))

    @property
    def error(self) -> float:
        """Standard error of `percent`, of a ratio over batches; NaN for fewer than two.

        Not from the joints one by one: those of a person are right or wrong together.
        """
        return self._error(self.correct - self.percent / 100 * self.counted)

    def minus(self, other: Rate) -> tuple[float, float]:
        """The difference in points to another net, and its standard error.

        On the same people: what is hard for both of them cancels out.
        """
        points = self.percent - other.percent
        residual = self.correct - other.correct - points / 100 * self.counted
        return points, self._error(residual)

    def _error(self, residual: NDArray[np.float64]) -> float:
        n = len(residual)
        if n < 2:
            return float("nan")
        return float(100 * np.sqrt(n / (n - 1) * (residual**2).sum()) / self.counted.sum())


def variant_of(document: Document, stages: int, intermediate: bool) -> dict[str, Any]:
    """The measurements of one net."""
    wanted = stages, intermediate
    return next(v for v in document["variants"] if (v["stages"], v["intermediate"]) == wanted)


def groups(gradients: Sequence[Sequence[Any]]) -> dict[str, list[tuple[str, float]]]:
    """Layers along the longest way from the image to the output: the trunk, then stage by stage.

    The paper's net has a second trunk, for its later stages; it is no part of that way.
    """
    trunk = "first." if any(name.startswith("first.") for name, _ in gradients) else "shared."
    found: dict[str, list[tuple[str, float]]] = {"trunk": []}
    stages: dict[str, list[tuple[str, float]]] = {}
    for name, value in gradients:
        if name.startswith(trunk):
            found["trunk"].append((name, value))
        elif name.startswith("stages.") and ".feature." not in name:
            stages.setdefault(f"stage {int(name.split('.')[1]) + 1}", []).append((name, value))
    return found | stages


def table(document: Document) -> str:
    """All of it in Markdown."""
    parts = (_by_stages, _by_stage, _gradients, _origin)
    return "\n\n".join("\n".join(part(document)) for part in parts) + "\n"


def _by_stages(document: Document) -> Iterator[str]:
    yield "PCK@0.2 of the limb joints after the last stage, percent ± standard error"
    yield ""
    yield (
        "| stages | loss after every stage | loss after the last only | every minus last only "
        "| every minus 1 stage |"
    )
    yield "|---:|---:|---:|---:|---:|"
    single = Rate.of(variant_of(document, 1, True), 1)
    yield f"| 1 | {_percent(single)} | the same | | |"
    for stages in range(2, document["settings"]["most_stages"] + 1):
        every, last = (Rate.of(variant_of(document, stages, i), stages) for i in (True, False))
        points = f"{_points(*every.minus(last))} | {_points(*every.minus(single))}"
        yield f"| {stages} | {_percent(every)} | {_percent(last)} | {points} |"


def _by_stage(document: Document) -> Iterator[str]:
    most = document["settings"]["most_stages"]
    yield f"The same after each stage of the net with {most} stages"
    yield ""
    yield "| after stage | loss after every stage | loss after the last only |"
    yield "|---:|---:|---:|"
    for stage in range(1, most + 1):
        rates = [Rate.of(variant_of(document, most, i), stage) for i in (True, False)]
        yield f"| {stage} | {_percent(rates[0])} | {_percent(rates[1])} |"


def _percent(rate: Rate) -> str:
    return f"{rate.percent:.1f} ± {rate.error:.1f}"


def _points(difference: float, error: float) -> str:
    return f"{difference:+.1f} ± {error:.1f}"


def _gradients(document: Document) -> Iterator[str]:
    most = document["settings"]["most_stages"]
    every, last = (variant_of(document, most, i)["gradients"] for i in (True, False))
    yield (
        "Mean |gradient| of a layer's weights, median over the layers: with a loss after the last "
        "stage only, as a share of that with a loss after every stage"
    )
    yield ""
    columns = {f"cpm-lite, step {step}": (every[step], last[step]) for step in every}
    paper = document["paper"]["gradients"]
    columns["the paper's net, step 0"] = (paper["all"], paper["last"])
    yield "| layers of | " + " | ".join(columns) + " |"
    yield "|---|" + "---:|" * len(columns)
    medians = [(_medians(a), _medians(b)) for a, b in columns.values()]
    for group in medians[0][0]:
        shares = (_share(b[group], a[group]) if group in a else "" for a, b in medians)
        yield f"| {group} | " + " | ".join(shares) + " |"


def _share(part: float, whole: float) -> str:
    """A share that may be tiny, or 0 where a gradient underflows."""
    value = part / whole if whole else float("nan")
    return f"{value:.2f}" if value >= 0.01 else f"{value:.0e}"


def _medians(gradients: Sequence[Sequence[Any]]) -> dict[str, float]:
    return {
        name: float(np.median([value for _, value in layers]))
        for name, layers in groups(gradients).items()
    }


def _origin(document: Document) -> Iterator[str]:
    settings, variants = document["settings"], document["variants"]
    counted = sum(variants[0]["counted"])
    size, steps, batch = settings["size"], settings["steps"], settings["batch_size"]
    yield (
        f"{steps:,} steps of {batch} crops of {size} px per net, from {document['train']:,} "
        f"training samples; measured on {document['tune']:,} others with {counted:,} limb joints; "
        f"{'an ImageNet trunk' if settings['trunk'] else 'no pretraining'}; seed "
        f"{settings['seed']}. {duration(sum(v['seconds'] for v in variants))} for all nets."
    )
    yield ""
    # Nets may come from several days and machines.
    for origin in dict.fromkeys(_where(variant) for variant in variants):
        yield f"{origin}"
    yield ""
    yield f"    {document['command']}"


def _where(variant: dict[str, Any]) -> str:
    threads = "1 thread" if variant["threads"] == 1 else f"{variant['threads']} threads"
    return f"{variant['date']}; {variant['machine']}, {threads}; {variant['versions']}."
