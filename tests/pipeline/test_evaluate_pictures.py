"""Evaluation of whole pictures: locator and weights together, on the joints that both know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cpm_core.finder import Poses
from cpm_core.locators import LocatorSpec
from cpm_core.metrics import default_area, oks
from cpm_core.people import People
from cpm_core.skeleton import Skeleton, load_skeleton
from pipeline import evaluate as job
from pipeline.errors import UsageError
from pipeline.evaluate import report
from pipeline.evaluation.figures import measure
from pipeline.evaluation.pictures import find_in_pictures
from tests.pipeline.conftest import OPTIONS
from tests.pipeline.test_evaluate_weights import picture, run, sample, weights, write_samples

__all__ = ["weights"]
LSP, COCO = load_skeleton("lsp14"), load_skeleton("coco17")
FACE = COCO.keypoints[:5]


class Oracle:
    """Finds, in the n-th picture it is shown, the people of the n-th list: (K, 2) and score."""

    def __init__(self, skeleton: Skeleton, *pictures: list[tuple[Any, float]]) -> None:
        self.pictures = iter(pictures)
        self.estimator = self
        self.info = self
        self.skeleton = skeleton
        self.seen: list[NDArray[np.uint8]] = []

    def find(self, image: NDArray[np.uint8]) -> Poses:
        self.seen.append(image)
        people = next(self.pictures)
        points = np.zeros((len(people), len(self.skeleton), 3), np.float32)
        for n, (places, _) in enumerate(people):
            points[n, :, :2] = places
        boxes = People(np.zeros((len(people), 4)), np.ones(len(people)), "oracle")
        return Poses(boxes, points, np.array([score for _, score in people], np.float64))


def in_lsp(row: dict[str, Any], shift: float = 0.0) -> NDArray[np.float64]:
    """The labelled joints of a row of coco17 in the order of lsp14; the others are anywhere."""
    places = dict(zip(COCO.keypoints, zip(row["x"], row["y"], strict=True), strict=True))
    points = np.array([places.get(name, (999, 999)) for name in LSP.keypoints])
    return points + np.array([shift, 0])


def figures(path: Path, rows: list[dict[str, Any]], oracle: Oracle) -> dict[str, Any]:
    samples = write_samples(path / "s.parquet", rows, COCO)
    compared = find_in_pictures(samples, None, "oracle", oracle, OPTIONS)  # type: ignore[arg-type]
    return measure(compared, ("oks",), None)


def two_in_one() -> list[dict[str, Any]]:
    """Two people of picture 0 and one of picture 1, with the joints of coco17."""
    rows = [sample(i, COCO) for i in range(3)]
    rows[1] |= {"source": rows[0]["source"], "image": rows[0]["image"]}
    return rows


def test_perfect_people(tmp_path: Path) -> None:
    """Each picture is looked at once; the 12 joints that coco17 and lsp14 share are compared."""
    rows = two_in_one()
    oracle = Oracle(LSP, [(in_lsp(rows[1]), 0.5), (in_lsp(rows[0]), 0.9)], [(in_lsp(rows[2]), 0.1)])
    found = figures(tmp_path, rows, oracle)
    assert [image.tolist() for image in oracle.seen] == [picture(0).tolist(), picture(2).tolist()]
    measured = found["metrics"]["oks"]
    assert measured["AP"] == measured["AR"] == pytest.approx(100)
    assert (measured["labelled"], measured["predicted"], measured["joints"]) == (3, 3, 12)
    assert found["notes"] == [
        "skeletons lsp14 and coco17 share 12 joints; left out: " + ", ".join(FACE),
        "2 pictures: 3 people labelled, 3 found; 0 labelled people whom nobody stands for",
    ]
    assert "3 predicted people for 3 labelled ones, 12 joints" in report(found)


def test_a_shifted_person_has_the_similarity_of_crowdposes_sigmas(tmp_path: Path) -> None:
    """lsp14 has CrowdPose's sigmas, which are COCO's on the joints that both have."""
    row = sample(0, COCO)
    area = default_area(np.array([row["box"]], float))
    shared = [i for i, name in enumerate(LSP.keypoints) if name in COCO.keypoints]
    points, sigmas = in_lsp(row)[shared], np.array(LSP.oks_sigmas)[shared]
    every = np.ones((1, 12), bool)

    def likeness(shift: float) -> float:
        return float(oks(points[None] + [shift, 0], points[None], every, area, sigmas)[0, 0])

    for shift in (4.0, 5.0, 6.0):
        oracle = Oracle(LSP, [(in_lsp(row, shift), 1.0)])
        passed = sum(likeness(shift) >= t for t in np.arange(50, 100, 5) / 100)
        measured = figures(tmp_path, [row], oracle)["metrics"]["oks"]
        assert 0 < passed < 10
        assert measured["AP"] == pytest.approx(10 * passed)


@pytest.mark.parametrize(
    ("labelled", "ignored", "ap"),
    [
        ([False] * 17, None, 50.0),  # as long as nobody notes who is there
        ([True] * 5 + [False] * 12, None, 100.0),  # only a face: no joint of lsp14
        (None, [{"box": [10, 10, 60, 70], "area": None, "crowd": False}], 100.0),
        (None, [{"box": [300, 10, 60, 70], "area": 5.0, "crowd": True}], 50.0),
    ],
    ids=["nobody noted", "a face", "noted", "noted elsewhere"],
)
def test_who_is_there_without_labels_is_no_false_positive(
    tmp_path: Path, labelled: list[bool] | None, ignored: Any, ap: float
) -> None:
    """A bystander is found with the highest score."""
    rows = two_in_one()[:2]
    rows[0] |= {"box": [10, 10, 60, 70], "ignored": ignored}
    bystander, person = in_lsp(rows[1]), in_lsp(rows[0])
    rows[0] |= {"x": (np.array(rows[0]["x"]) + 500).tolist()}
    person[:, 0] += 500
    if labelled is None or not any(labelled):
        rows = rows[:1]
    else:
        rows[1] |= {"labelled": labelled}
    oracle = Oracle(LSP, [(bystander, 0.9), (person, 0.5)])
    assert figures(tmp_path, rows, oracle)["metrics"]["oks"]["AP"] == pytest.approx(ap)


def test_pictures_that_cannot_be_read_are_left_out_with_their_people(tmp_path: Path) -> None:
    rows = two_in_one()
    rows[0]["image"] = rows[1]["image"] = b"no picture"
    found = figures(tmp_path, rows, Oracle(LSP, [(in_lsp(rows[2]), 1.0)]))
    assert found["metrics"]["oks"]["AP"] == pytest.approx(100)
    assert found["people"] == 1
    assert found["notes"][-1].startswith("1 pictures left out: sample im0.png: ")
    rows[2]["image"] = b"x"
    with pytest.raises(UsageError, match="none of 2 samples can be used"):
        figures(tmp_path, rows, Oracle(LSP))


def test_nobody_found(tmp_path: Path) -> None:
    found = figures(tmp_path, two_in_one(), Oracle(LSP, [], []))
    assert found["metrics"]["oks"]["AP"] == 0


class AtTheLabels:
    """A locator that finds the boxes of the table."""

    def build(self, device: str, threads: int) -> AtTheLabels:
        return self

    def locate(self, image: NDArray[np.uint8]) -> People:
        return People(np.array([[10.0, 10, 60, 70]]), np.ones(1), "detector")


def test_found_at_the_labels_boxes_it_is_the_evaluation_of_the_weights(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command, end to end: the same figures as without `--people`."""
    samples = write_samples(tmp_path / "s.parquet", [sample(i) for i in range(4)])
    metrics = ("oks", "pck_lspet")
    given = run(samples=samples, weights=weights, metric=metrics, scales=(0.8, 1.2))
    asked = []

    def locator_of(people: str, threshold: float | None) -> Any:
        asked.append((people, threshold))
        return AtTheLabels()

    monkeypatch.setattr(job, "locator_of", locator_of)
    monkeypatch.setattr(job, "same_person_of", lambda spec, given: given)
    found = run(
        samples=samples,
        weights=weights,
        metric=metrics,
        scales=(0.8, 1.2),
        people="person-net",
        person_threshold=0.2,
    )
    assert asked == [("person-net", 0.2)]
    assert found["metrics"]["oks"] == given["metrics"]["oks"]
    assert found["metrics"]["pck_lspet"]["all"] == given["metrics"]["pck_lspet"]["all"]
    assert found["input"]["people"] == "person-net"


def test_the_whole_image_is_looked_at_again(tmp_path: Path, weights: str) -> None:
    """The command with a locator that needs no file."""
    samples = write_samples(tmp_path / "s.parquet", [sample(0)])
    found = run(samples=samples, weights=weights, people="whole-image")
    assert list(found["metrics"]) == ["oks"]
    assert found["metrics"]["oks"]["predicted"] == 1
    assert LocatorSpec("whole-image").identity == "whole-image"
