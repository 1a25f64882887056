"""Person locators side by side: recall, false detections and time of person-net and of detectors.

    python benchmarks/locators.py --detectors yolox_nano.onnx > table.md

Labelled pictures are the val2017 part of a folder with COCO people; recall is of their labelled
people at least 80 px tall, at an IoU of 0.5, each locator at its default threshold. Not everybody
in these pictures is labelled, so false detections are counted on pictures without people. Times are
of one picture after the other on the given number of CPU threads, the locators taking turns.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cpm_core.people import Locator, People, Picture, YoloxDetector
from cpm_core.person_net import PersonNetLocator
from cpm_core.person_net.measure import MATCH_IOU, SHORTEST, hits

DATA = Path(__file__).resolve().parents[2] / "shared/data"
BUCKETS = ((SHORTEST, 160), (160, 320), (320, 10_000))
"""Heights in pixels."""
_TIMED = 40


@dataclass(frozen=True)
class Row:
    """A locator's figures: which people (P,) of `heights` (P,) in pixels it finds, detections in
    each negative (N,), milliseconds per picture."""

    name: str
    found: NDArray[np.bool_]
    heights: NDArray[np.float64]
    alarms: NDArray[np.int64]
    milliseconds: float = float("nan")

    def recall(self, low: float, high: float = np.inf) -> str:
        """Percent of the people of these heights, and their number."""
        asked = (self.heights >= low) & (self.heights < high)
        return f"{100 * self.found[asked].mean():.1f} ({asked.sum()})" if asked.any() else "-"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--labelled", type=Path, default=DATA / "coco_people")
    parser.add_argument("--split", default="val2017", help="the coco_split of the pictures")
    parser.add_argument("--negatives", type=Path, default=DATA / "bulk_unlabelled/no_person")
    parser.add_argument(
        "--peopled", nargs="*", default=[], help="names of negatives that do show people"
    )
    parser.add_argument("--weights", default="person-net", help="person-net, or a file")
    parser.add_argument("--threshold", type=float, help="of person-net")
    parser.add_argument("--detectors", type=Path, nargs="*", default=[], help=".onnx files")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for folder in (options.labelled, options.negatives):
        if not folder.is_dir():
            sys.exit(f"error: no folder {folder}")
    locators: dict[str, Locator] = {
        "person-net": PersonNetLocator(options.weights, options.threshold, threads=options.threads)
    }
    for path in options.detectors:
        locators[path.stem] = YoloxDetector(path, threads=options.threads)
    pictures, labels = labelled(options.labelled, options.split)
    paths = sorted(options.negatives.glob("*.jpg"))
    negatives = [read(path) for path in paths]
    empty = np.array([path.name not in options.peopled for path in paths])
    rows = [
        measure(name, locator, pictures, labels, negatives) for name, locator in locators.items()
    ]
    times = clock(list(locators.values()), pictures[:_TIMED], options.rounds)
    rows = [replace(row, milliseconds=ms) for row, ms in zip(rows, times, strict=True)]
    print(
        f"{len(pictures)} labelled pictures, {len(negatives)} negatives, {empty.sum()} of them "
        f"without people; recall in percent at IoU {MATCH_IOU} (people); {options.threads} "
        f"thread(s), {platform.machine()}\n"
    )
    print(table(rows, empty))


def labelled(folder: Path, split: str) -> tuple[list[Picture], list[NDArray[np.float64]]]:
    """The pictures of a split and their labelled boxes (N, 4)."""
    entries = json.loads((folder / "annotations.json").read_text())["images"]
    chosen = [entry for entry in entries if entry["coco_split"] == split]
    pictures = [read(folder / "images" / entry["file"]) for entry in chosen]
    boxes = [
        np.array([person["bbox"] for person in entry["people"]], np.float64).reshape(-1, 4)
        for entry in chosen
    ]
    return pictures, boxes


def read(path: Path) -> Picture:
    """An RGB picture."""
    image = cv2.imread(str(path))
    if image is None:
        sys.exit(f"error: no readable picture at {path}")
    return np.ascontiguousarray(image[..., ::-1])


def measure(
    name: str,
    locator: Locator,
    pictures: Sequence[Picture],
    labels: Sequence[NDArray[np.float64]],
    negatives: Sequence[Picture],
) -> Row:
    """Everything but the time."""
    people: list[People] = [locator.locate(picture) for picture in pictures]
    found = np.concatenate([hits(p, boxes) for p, boxes in zip(people, labels, strict=True)])
    heights = np.concatenate([boxes[:, 3] for boxes in labels])
    alarms = np.array([len(locator.locate(picture)) for picture in negatives])
    return Row(name, found, heights, alarms)


def clock(
    locators: Sequence[Locator], pictures: Sequence[Picture], rounds: int
) -> NDArray[np.float64]:
    """(L,) milliseconds per picture: the median over rounds and pictures."""
    seconds = np.zeros((len(locators), rounds, len(pictures)))
    for turn in range(rounds):
        for i, picture in enumerate(pictures):
            for j, locator in enumerate(locators):
                started = time.perf_counter()
                locator.locate(picture)
                seconds[j, turn, i] = time.perf_counter() - started
    return 1000 * np.median(seconds, axis=(1, 2))


def table(rows: Sequence[Row], empty: NDArray[np.bool_]) -> str:
    """The rows in markdown; `empty` (N,) says which negatives really show nobody."""
    ranges = [f"{low}-{high} px" if high < 10_000 else f"from {low} px" for low, high in BUCKETS]
    heads = ["locator", f"recall >= {SHORTEST} px", *ranges, "all", "false per picture"]
    heads += ["in all negatives", "ms"]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        lines.append(
            [
                row.name,
                row.recall(SHORTEST),
                *(row.recall(low, high) for low, high in BUCKETS),
                row.recall(0),
                f"{row.alarms[empty].mean():.3f}",
                f"{row.alarms.mean():.3f}",
                f"{row.milliseconds:.1f}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
