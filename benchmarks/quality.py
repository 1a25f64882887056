"""Our keypoints beside those of MoveNet Thunder and of a mobile CPM: accuracy, speed, file.

    python benchmarks/quality.py --write docs/quality.md

All see the same people in the same boxes, on the pictures and with the files of `--shared`. Prints
Markdown tables; `--write` puts them between the markers of a page. Four minutes on one thread.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import quality_table
import quality_threads  # noqa: F401 (before torch)
import torch
from quality_data import LEAST_SCORE, SKELETON, Floats, Set, coco_people, lspet_val, main_person
from quality_measure import Results, pck, similarity
from quality_models import SCALES, MobileCpm, Model, MoveNet, Ours
from speed import file_figures, measure

from cpm_core.errors import CpmError, WeightsError
from cpm_core.people import Locator, YoloxDetector

GIVEN, FOUND = 1.25, 1.15
"""Side of the crop in units of a box of labelled joints, or of a box around the whole person."""

_SHARED = Path(__file__).resolve().parents[2] / "shared"
_LINE_EVERY_S = 10.0


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 a file is missing or unusable."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    try:
        if options.write:
            # Before minutes of work: a page without markers.
            quality_table.replaced(options.write.read_text(), "")
        document = measured(options)
    except (CpmError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    tables = quality_table.tables(document)
    print(tables, end="")
    if options.write:
        page = options.write.read_text()
        options.write.write_text(quality_table.replaced(page, tables))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = options.add_argument
    add("--weights", default="cpm-lite", help="ours: a name or file (default: %(default)s)")
    add("--shared", type=Path, default=_SHARED, help="folder with data/ and weights/")
    add("--threads", type=int, default=1, help="of every network (default: %(default)s)")
    add("--limit", type=int, help="only so many pictures of each set, to try it out")
    add("--rounds", type=int, default=5, help="of the speed test (default: %(default)s)")
    add("--write", type=Path, help="page whose tables are replaced")
    return options


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """All figures. Raises CpmError or OSError for an unusable file."""
    files = options.shared / "weights"
    plain = Ours(options.weights)
    flip = Ours(options.weights, " --flip", flip=True)
    every = Ours(options.weights, f" --flip --scales {_words(SCALES)}", flip=True, scales=SCALES)
    movenet = MoveNet(files / "movenet_thunder_fp16w.onnx", options.threads)
    mobile = MobileCpm(files / "cpm_mv2_aichallenger.onnx", options.threads)
    models: list[Model] = [plain, flip, every, movenet, mobile]
    # Scales take six times as long; where they were left out, the table is empty.
    quick: list[Model] = [plain, flip, movenet, mobile]
    detector = str(files / "yolox_nano.onnx")
    lspet, coco = (make(options.shared, options.limit) for make in (lspet_val, coco_people))
    return {
        "name": plain.name,
        "sha256": plain.estimator(GIVEN).sha256,
        "threads": options.threads,
        "file": file_figures(options.weights),
        "speed": measure(
            options.weights, files / "movenet_thunder_fp16w.onnx", options.threads, options.rounds
        ),
        "lspet": _lspet(lspet, models, quick, detector, options.threads),
        "coco": _coco(coco, models),
        "whole": _whole(coco, [plain, every, movenet], detector, options.threads),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "versions": (
            f"Python {platform.python_version()}, torch {torch.__version__}, "
            f"onnxruntime {onnxruntime.__version__}"
        ),
        "command": command(options),
    }


def _lspet(
    people: Set, models: list[Model], quick: list[Model], detector: str, threads: int
) -> dict[str, Any]:
    """All models at the labels' boxes, the quick ones also at a detector's."""
    locator = YoloxDetector(detector, LEAST_SCORE, threads=threads)
    given = {model.name: Results() for model in models}
    found = {model.name: Results() for model in quick}

    def look(i: int, picture: np.ndarray) -> None:
        height, width = picture.shape[:2]
        box = main_person(locator.locate(picture), width, height)[None]
        for model in models:
            given[model.name].add(i, model.estimate(picture, people.labels.box[i][None], GIVEN))
        for model in quick:
            found[model.name].add(i, model.estimate(picture, box, FOUND))

    _each(people, "lspet_val", look)
    rows = [
        {
            "name": name,
            "given": pck(result, people),
            "found": pck(found[name], people) if name in found else {},
        }
        for name, result in given.items()
    ]
    return {"people": len(people.labels.box), "models": rows}


def _coco(people: Set, models: list[Model]) -> dict[str, Any]:
    results = {model.name: Results() for model in models}

    def look(i: int, picture: np.ndarray) -> None:
        boxes = people.labels.box[people.labels.picture == i]
        for model in models:
            results[model.name].add(i, model.estimate(picture, boxes, GIVEN))

    _each(people, "coco_people, given boxes", look)
    rows = [{"name": model.name, **pck(results[model.name], people)} for model in models]
    return {"people": rows[0]["people"], "models": rows}


def _whole(people: Set, models: list[Model], detector: str, threads: int) -> dict[str, Any]:
    locators: dict[str, Locator] = {"yolox_nano": YoloxDetector(detector, threads=threads)}
    notes = []
    try:
        locators["person-net"] = person_net(threads)
    except (ImportError, WeightsError) as error:
        print(f"no row for person-net: {error}", file=sys.stderr)
        notes.append("No row for person-net: its weights are not in the package.")
    results = {(model.name, name): Results() for model in models for name in locators}

    def look(i: int, picture: np.ndarray) -> None:
        for name, locator in locators.items():
            found = locator.locate(picture)
            for model in models:
                keypoints = _estimated(model, picture, found.boxes)
                results[model.name, name].add(i, keypoints, found.scores)

    _each(people, "coco_people, whole pictures", look)
    rows = [
        {"locator": name, "name": model, **similarity(result, people)}
        for (model, name), result in results.items()
    ]
    rows.sort(key=lambda row: list(locators).index(row["locator"]))
    counts = {"pictures": len(people.paths), "people": len(people.labels.box)}
    return {**counts, "models": rows, "notes": notes}


def _estimated(model: Model, picture: np.ndarray, boxes: Floats) -> Floats:
    if not len(boxes):
        return np.empty((1, 0, len(SKELETON), 3))
    return model.estimate(picture, boxes, FOUND)


def person_net(threads: int) -> Locator:
    """The locator in the box. Raises ImportError or WeightsError where there is none."""
    from cpm_core.person_net import PersonNetLocator

    return PersonNetLocator(threads=threads)


def _each(people: Set, what: str, look: Callable[[int, np.ndarray], None]) -> None:
    """Every picture, with a line on stderr from time to time."""
    last = time.monotonic()
    for i, picture in people.pictures():
        look(i, picture)
        if time.monotonic() - last >= _LINE_EVERY_S:
            last = time.monotonic()
            print(f"{what}: {i + 1} of {len(people.paths)} pictures", file=sys.stderr)


def command(options: argparse.Namespace) -> str:
    """What repeats the run; of files only the names, as folders differ from machine to machine."""
    words = ["python benchmarks/quality.py", f"--weights {Path(options.weights).name}"]
    words += [f"--threads {options.threads}"]
    return " ".join(words + ([f"--limit {options.limit}"] if options.limit else []))


def _words(values: tuple[float, ...]) -> str:
    return " ".join(map(str, values))


if __name__ == "__main__":
    sys.exit(main())
