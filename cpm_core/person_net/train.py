"""Train a person-net: `python -m cpm_core.person_net.train --lspet DIR --coco DIR ...`.

One process. Stopped at any time, the same command goes on from the last checkpoint of its `--run`
folder. A part of the pictures is kept apart: it chooses the best checkpoint and the threshold.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpm_core.errors import ConfigError, CpmError
from cpm_core.people import YoloxDetector
from cpm_core.person_net.config import PersonNetConfig
from cpm_core.person_net.fit import Fit, Plan
from cpm_core.person_net.info import PersonNetInfo
from cpm_core.person_net.locate import PersonNetLocator
from cpm_core.person_net.measure import Curve, curve
from cpm_core.person_net.net import PersonNet
from cpm_core.person_net.photos import (
    SUSPECT,
    Photo,
    PhotosError,
    coco_photos,
    folder_photos,
    lspet_photos,
    video_photos,
)
from cpm_core.person_net.remember import Remembered
from cpm_core.person_net.scenes import SceneMaker
from cpm_core.person_net.weights import (
    PersonNetWeights,
    load_person_net,
    save_person_net,
)
from cpm_core.person_net.yolox import load_yolox_nano

log = logging.getLogger("posemill")

_THRESHOLDS = np.round(np.arange(0.1, 0.901, 0.02), 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train until the plan's last step; 0, or 2 for a mistake of the user."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        train(options)
    except CpmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def train(options: argparse.Namespace) -> None:
    """Load the pictures, then step, report, save and measure in turn."""
    run: Path = options.run
    run.mkdir(parents=True, exist_ok=True)
    photos = load_photos(options)
    training = [photo for photo in photos if not photo.tuning]
    tuning = [photo for photo in photos if photo.tuning]
    if not any(len(photo.boxes) for photo in training):
        raise PhotosError("nobody is labelled in the training pictures; give --lspet or --coco")
    maker = SceneMaker(training)
    log.info(
        "%d pictures, %d person-free windows; %d pictures for tuning",
        len(training), len(maker.free), len(tuning),
    )  # fmt: skip
    fit = Fit(start(options), plan_of(options))
    checkpoint = run / "checkpoint.pt"
    if checkpoint.is_file():
        resume(fit, checkpoint)
    best = best_recall(run / "best.safetensors")
    if fit.step_number >= fit.plan.steps:
        log.info("all %d steps are done; measuring again", fit.plan.steps)
        export(fit, options, tuning, best)
    first, started = fit.step_number, time.monotonic()
    losses: dict[str, float] = {}
    while fit.step_number < fit.plan.steps:
        for name, value in fit.step(maker).items():
            losses[name] = losses.get(name, value) * 0.98 + value * 0.02
        done = fit.step_number
        last = done == fit.plan.steps
        if done % options.report_every == 0 or last:
            pace = (time.monotonic() - started) / (done - first)
            parts = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
            left = (fit.plan.steps - done) * pace / 60
            log.info(
                "step %d/%d  size %d  %.2f s/step  %.0f min left  %s",
                done, fit.plan.steps, fit.plan.size_at(done - 1), pace, left, parts,
            )  # fmt: skip
        if done % options.save_every == 0 or last:
            save(fit, checkpoint)
        if done % options.measure_every == 0 or last:
            best = export(fit, options, tuning, best)


def load_photos(options: argparse.Namespace) -> list[Photo]:
    """All pictures the options name, completed by the detector."""
    remembered = Remembered(YoloxDetector(options.detector, SUSPECT), options.run / "labels.json")
    sources: list[Iterator[Photo]] = []
    sources += [lspet_photos(folder, remembered) for folder in options.lspet]
    sources += [coco_photos(folder, remembered) for folder in options.coco]
    sources += [folder_photos(folder, remembered) for folder in options.people]
    sources += [video_photos(path, remembered) for path in options.videos]
    sources += [folder_photos(folder, remembered, "negative") for folder in options.negatives]
    photos = [photo for source in sources for photo in source]
    remembered.save()
    return photos


def start(options: argparse.Namespace) -> PersonNet:
    """A new network with the trunk of the YOLOX-Nano that also labels."""
    torch.manual_seed(options.seed)
    model = PersonNet(PersonNetConfig(input_size=options.input_size))
    load_yolox_nano(model.trunk.base, options.start or options.detector)
    return model


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan that the options describe."""
    try:
        pairs = [part.split(":") for part in options.sizes]
        sizes = tuple((float(share), int(side)) for share, side in pairs)
    except ValueError as error:
        raise ConfigError(f"--sizes {options.sizes}: give share:pixels, as 0:192") from error
    for _, side in sizes:
        PersonNetConfig(input_size=side)
    return Plan(
        steps=options.steps,
        batch_size=options.batch_size,
        sizes=sizes,
        learning_rate=options.learning_rate,
        trunk_learning_rate=options.trunk_learning_rate,
        ema_decay=options.ema_decay,
        seed=options.seed,
    )


def save(fit: Fit, path: Path) -> None:
    """Write the checkpoint, at once or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(fit.state_dict() | {"plan": asdict(fit.plan)}, partial)
    partial.replace(path)


def resume(fit: Fit, path: Path) -> None:
    """Continue from a checkpoint of the same network. A changed plan holds from now on."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    fit.load_state_dict(state)
    log.info("going on after step %d of %s", fit.step_number, path)


def best_recall(path: Path) -> float:
    """The tuning recall of weights that an earlier part of the run left, or 0."""
    return load_person_net(path).info.metrics.get("tuning_recall", 0.0) if path.is_file() else 0.0


def tuning_curve(model: PersonNet, photos: Sequence[Photo]) -> Curve:
    """Recall and false detections of a model on the pictures that were kept apart."""
    info = PersonNetInfo("tuning", model.config, threshold=float(_THRESHOLDS[0]))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    threads = torch.get_num_threads()
    locator = PersonNetLocator(PersonNetWeights(info, state, ""), threads=threads)
    found = locator.locate_batch([photo.image for photo in photos])
    labels = [photo.boxes for photo in photos]
    # COCO's crowds and spectators have no labels, and a detector does not find them all.
    ignore = [None if photo.kind == "coco" else photo.ignore for photo in photos]
    return curve(found, labels, ignore, _THRESHOLDS)


def export(fit: Fit, options: argparse.Namespace, tuning: Sequence[Photo], best: float) -> float:
    """Write the averaged weights with the threshold that the tuning pictures suggest.

    `last.safetensors` always, `best.safetensors` if the recall there is not below `best`. The
    better of the two recalls.
    """
    config = fit.ema.config
    info = PersonNetInfo(
        "person-net",
        config,
        PersonNetInfo.threshold,
        options.training_data,
        options.licence,
        {"steps": float(fit.step_number)},
    )
    recall = 0.0
    if tuning:
        measured, most = tuning_curve(fit.ema, tuning), options.most_false
        recall, threshold = measured.recall_at(most), measured.threshold_at(most)
        log.info(
            "tuning: recall %.3f at %.2f false per picture (threshold %.2f)",
            recall, most, threshold,
        )  # fmt: skip
        metrics = info.metrics | {"tuning_recall": recall, "tuning_false_per_picture": most}
        info = replace(info, threshold=threshold, metrics=metrics)
    save_person_net(options.run / "last.safetensors", fit.ema, info)
    if recall >= best:
        save_person_net(options.run / "best.safetensors", fit.ema, info)
    return max(recall, best)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cpm_core.person_net.train", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    data: dict[str, Any] = {"type": Path, "nargs": "+", "default": []}
    add("--lspet", **data, help="folders with LSP joints (annotations.json, images/)")
    add("--coco", **data, help="folders with COCO people; their train2017 part is used")
    add("--people", **data, help="folders of pictures that the detector labels")
    add("--videos", **data, help="videos that the detector labels")
    add("--negatives", **data, help="folders of pictures without people")
    add("--detector", type=Path, required=True, help="a YOLOX .onnx file that completes labels")
    add("--run", type=Path, required=True, help="folder of the checkpoint and the weights")
    add("--start", type=Path, help="the yolox_nano.onnx of the trunk; default: the detector")
    plan = Plan()
    sizes = [f"{share}:{size}" for share, size in plan.sizes]
    add("--steps", type=int, default=plan.steps)
    add("--batch-size", type=int, default=plan.batch_size, help="at the first size")
    add("--sizes", nargs="+", default=sizes, help="share of the run:side of the scenes in pixels")
    add("--input-size", type=int, default=PersonNetConfig().input_size, help="of the locator")
    add("--learning-rate", type=float, default=plan.learning_rate)
    add("--trunk-learning-rate", type=float, default=plan.trunk_learning_rate)
    add("--ema-decay", type=float, default=plan.ema_decay)
    add("--seed", type=int, default=plan.seed)
    add("--threads", type=int, default=1)
    add(
        "--most-false",
        type=float,
        default=0.05,
        help="detections per tuning picture, not counting people known or suspected, that the "
        "threshold may give; look at some: a part will be people whom the detector missed",
    )
    add("--report-every", type=int, default=20, metavar="STEPS")
    add("--save-every", type=int, default=100, metavar="STEPS")
    add("--measure-every", type=int, default=250, metavar="STEPS")
    add("--training-data", default="unknown", help="for the metadata of the weights")
    add("--licence", default="unknown", help="for the metadata of the weights")
    return parser


if __name__ == "__main__":
    sys.exit(main())
