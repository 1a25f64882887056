"""How good predictions are: weights, an annotation table, or a MATLAB file against labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import model_validator

from cpm_core.estimator import Estimator
from cpm_core.finder import PoseFinder
from cpm_core.poses import SAME_PERSON
from cpm_core.skeleton import load_skeleton
from pipeline.config import setting
from pipeline.errors import UsageError
from pipeline.evaluation.annotations import compare_annotations
from pipeline.evaluation.comparison import Comparison
from pipeline.evaluation.figures import Metric, measure
from pipeline.evaluation.mat import compare_mat
from pipeline.evaluation.pictures import find_in_pictures
from pipeline.evaluation.report import check_matplotlib, plot, table
from pipeline.evaluation.weights import estimate_samples
from pipeline.people import locator_of, same_person_of
from pipeline.settings import Settings, flag_of
from pipeline.storage import StorageOptions
from pipeline.weights import estimator

DEFAULT_WEIGHTS = "cpm-lite"
_PLOTS = (".png", ".svg", ".pdf")
_ONLY_PEOPLE = ("person_threshold", "same_person")
_ONLY_WEIGHTS = ("weights", "people", *_ONLY_PEOPLE, "precision", "device", "flip", "scales")
_ONLY_SAMPLES = (*_ONLY_WEIGHTS, "samples", "split", "annotations")


class EvaluateSettings(Settings):
    """Measure predictions by their labels. One of:

    posemill evaluate --samples val.parquet --weights cpm-lite
    posemill evaluate --samples val.parquet --weights cpm-lite --people person-net
    posemill evaluate --annotations OUT --samples labels.parquet
    posemill evaluate --predictions prediction.mat --labels joints.mat
    """

    samples: str | None = setting("run", None, "samples table with the labels (.parquet)")
    split: str | None = setting("run", None, "only this split of it (default: all)")
    weights: str | None = setting(
        "run", None, "shipped weights or a .safetensors file (default: cpm-lite)"
    )
    people: str | None = setting(
        "run",
        None,
        "find people in the whole pictures: person-net, whole-image or detector:FILE.onnx "
        "(default: everybody at the box of the table)",
    )
    person_threshold: float | None = setting(
        "run", None, "least score of a found person (default: the locator's own)", ge=0.01, lt=1
    )
    same_person: float | None = setting(
        "run",
        None,
        f"OKS from which two poses are one person found twice; 1: never (default: {SAME_PERSON})",
        ge=0.1,
        le=1,
    )
    annotations: str | None = setting("run", None, "output of posemill annotate: folder or s3://")
    predictions: str | None = setting("run", None, ".mat file with points (14, 2, N), LSP order")
    labels: str | None = setting("run", None, ".mat file with the joints of LSP or LSPET")
    metric: tuple[Metric, ...] = setting(
        "run",
        (),
        "pck_lsp, pck_lspet, pckh, oks; several allowed (default: what suits the input)",
    )
    threshold: float | None = setting(
        "run",
        None,
        "share of the reference length that still counts (default: 0.2; pckh 0.5)",
        gt=0,
    )
    precision: Literal["auto", "fp32", "bf16"] = setting("run", "auto", "arithmetic")
    device: Literal["cpu", "cuda"] | None = setting("run", None, "default: a GPU if there is one")
    flip: bool = setting("run", False, "average over mirrored crops")
    scales: tuple[float, ...] = setting("run", (1.0,), "average over crops at these scales")
    s3_endpoint: str | None = setting("run", None, "URL of an S3-compatible server")
    json_to: str | None = setting("run", None, "also write all figures to this file")
    plot: str | None = setting("run", None, "also draw the curves: .png, .svg or .pdf")

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if self.predictions or self.labels:
            if not (self.predictions and self.labels):
                raise ValueError("--predictions and --labels go together")
            self._refuse(_ONLY_SAMPLES, "--predictions")
        elif self.samples is None:
            raise ValueError(
                "give --samples and --weights, --annotations and --samples, "
                "or --predictions and --labels"
            )
        elif self.annotations is not None:
            self._refuse(_ONLY_WEIGHTS, "--annotations")
        if self.people is None:
            self._refuse(_ONLY_PEOPLE, "the table's boxes; give --people")
        elif self.people == "boxes":
            raise ValueError("--people boxes: without --people the table's boxes are taken")
        if self.plot is not None and not self.plot.endswith(_PLOTS):
            raise ValueError(f"--plot {self.plot}: use a name with {', '.join(_PLOTS)}")
        only_oks = set(self.metric) == {"oks"} or (self.people is not None and not self.metric)
        if self.threshold is not None and only_oks:
            raise ValueError("--threshold is one of PCK; --metric oks has none")
        if self.plot is not None and only_oks:
            raise ValueError("--plot draws curves of PCK; --metric oks has none")
        return self

    def _refuse(self, names: tuple[str, ...], given: str) -> None:
        for name in names:
            # What has no effect is refused even where it is the default.
            if name in self.model_fields_set and getattr(self, name) is not None:
                raise ValueError(f"{flag_of(name)} does not go with {given}")


def evaluate(settings: EvaluateSettings) -> dict[str, Any]:
    """The figures, in percent; also written where the settings say. Raises UsageError."""
    _check_outputs(settings)
    comparison, default = _compare(settings)
    metrics = tuple(dict.fromkeys(settings.metric)) or default
    figures = {"input": _input(settings), **measure(comparison, metrics, settings.threshold)}
    try:
        if settings.json_to is not None:
            text = json.dumps(figures, indent=2, allow_nan=False)
            Path(settings.json_to).write_text(text + "\n", encoding="utf-8")
        if settings.plot is not None:
            plot(figures, settings.plot)
    except OSError as error:
        raise UsageError(f"the figures cannot be written: {error}") from error
    return figures


def report(figures: dict[str, Any]) -> str:
    """The figures as a readable table."""
    return table(figures)


def _compare(settings: EvaluateSettings) -> tuple[Comparison, tuple[Metric, ...]]:
    """What is compared, and the metrics that suit it."""
    options, split = StorageOptions(settings.s3_endpoint), settings.split
    if settings.predictions is not None and settings.labels is not None:
        compared, layout = compare_mat(settings.predictions, settings.labels, options)
        return compared, ("pck_lsp",) if layout == "lsp" else ("pck_lspet",)
    assert settings.samples is not None
    if settings.annotations is not None:
        compared = compare_annotations(settings.annotations, settings.samples, split, options)
        return compared, ("pck_lspet", *_pckh(compared), "oks")
    weights = settings.weights or DEFAULT_WEIGHTS
    network = estimator(
        weights, options, settings.device, settings.precision, settings.flip, settings.scales
    )
    if settings.people is not None:
        finder = _finder(settings, network)
        compared = find_in_pictures(settings.samples, split, weights, finder, options)
        return compared, ("oks",)
    compared = estimate_samples(settings.samples, split, weights, network, options)
    return compared, ("pck_lspet", *_pckh(compared))


def _finder(settings: EvaluateSettings, network: Estimator) -> PoseFinder:
    """What `posemill annotate` would do with a picture."""
    assert settings.people is not None
    spec = locator_of(settings.people, settings.person_threshold)
    locator = spec.build(str(network.device), torch.get_num_threads())
    assert locator is not None
    return PoseFinder(locator, network, same_person_of(spec, settings.same_person))


def _pckh(compared: Comparison) -> tuple[Metric, ...]:
    """MPII's own metric, where its labels are."""
    of_mpii = compared.skeleton.keypoints == load_skeleton("mpii16").keypoints
    return ("pckh",) if of_mpii and not np.isnan(compared.head_size).all() else ()


def _input(settings: EvaluateSettings) -> dict[str, Any]:
    """The settings that the figures depend on."""
    names = {"samples", "split", "annotations", "predictions", "labels"}
    if settings.annotations is not None or settings.predictions is not None:
        given = settings.model_dump(include=names)
    else:
        used = {"weights", "people", *_ONLY_PEOPLE, "precision", "flip", "scales"}
        given = settings.model_dump(include=names | used)
        given["weights"] = settings.weights or DEFAULT_WEIGHTS
    return {name: value for name, value in given.items() if value}


def _check_outputs(settings: EvaluateSettings) -> None:
    for flag, path in (("--json-to", settings.json_to), ("--plot", settings.plot)):
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise UsageError(f"{flag} {path}: that folder does not exist")
    if settings.plot is not None:
        check_matplotlib()
