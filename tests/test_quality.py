"""benchmarks/quality.py: what each peer expects, the figures, the tables and their place."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from cpm_core.geometry import crop_matrix
from cpm_core.people import People
from cpm_core.poses import person_score
from cpm_core.skeleton import load_skeleton

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LSP, COCO = load_skeleton("lsp14"), load_skeleton("coco17")


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The modules of the benchmark, which is no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import quality
    import quality_data
    import quality_measure
    import quality_models
    import quality_table
    import speed

    threads = torch.get_num_threads()
    yield SimpleNamespace(
        command=quality,
        data=quality_data,
        measure=quality_measure,
        models=quality_models,
        speed=speed,
        table=quality_table,
    )
    torch.set_num_threads(threads)


class Session:
    """Stands for onnxruntime: keeps the input, gives a fixed output."""

    def __init__(self, output: np.ndarray) -> None:
        self.output = output
        self.inputs: dict[str, np.ndarray] = {}

    def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.inputs = inputs
        return [self.output]


def peer(kind: Any, output: np.ndarray) -> Any:
    """A peer without its network."""
    made = kind.__new__(kind)
    made.session = Session(output)
    return made


@pytest.fixture
def picture() -> np.ndarray:
    """Red, and blue below row 50."""
    picture = np.zeros((100, 60, 3), np.uint8)
    picture[:50, :, 0] = picture[50:, :, 2] = 200
    return picture


def test_movenet_sees_rgb_and_answers_from_edge_to_edge(
    modules: SimpleNamespace, picture: np.ndarray
) -> None:
    """A square around the box, in COCO's order, y first; 0.5 is the middle of the crop."""
    output = np.full((1, 1, 17, 3), 0.5, np.float32)
    output[0, 0, COCO.index("left_wrist")] = (0.75, 0.25, 0.9)
    movenet = peer(modules.models.MoveNet, output)
    box = np.array([10.0, 20, 30, 40])
    points = movenet.estimate(picture, box[None], 1.25)
    seen = movenet.session.inputs["input:0"]
    assert (seen.shape, seen.dtype) == ((1, 256, 256, 3), np.int32)
    # The crop is rows 14.5 to 64.5 of the picture; 128 where it has no columns (from -0.5 on).
    assert seen[0, 20, 128].tolist() == [200, 0, 0]
    assert seen[0, 240, 128].tolist() == [0, 0, 200]
    assert points.shape == (1, 1, 14, 3)
    middle = [10 + 29 / 2, 20 + 39 / 2, 0.5]
    np.testing.assert_allclose(points[0, 0, LSP.index("right_knee")], middle)
    wrist = [middle[0] - 12.5, middle[1] + 12.5, 0.9]
    np.testing.assert_allclose(points[0, 0, LSP.index("left_wrist")], wrist, rtol=1e-6)
    assert np.isnan(points[0, 0, [LSP.index("neck"), LSP.index("head_top")]]).all()


def test_mobile_cpm_sees_bgr_and_answers_in_maps(
    modules: SimpleNamespace, picture: np.ndarray
) -> None:
    """The middle of cell g is pixel 2 g + 0.5 of 192."""
    maps = np.zeros((1, 96, 96, 14), np.float32)
    maps[0, 70, 20, 0] = 0.6  # head top
    maps[0, 5, 90, 13] = 0.7  # left ankle
    mobile = peer(modules.models.MobileCpm, maps)
    box = np.array([10.0, 20, 30, 40])
    points = mobile.estimate(picture, box[None], 1.25)[0, 0]
    seen = mobile.session.inputs["image:0"]
    assert (seen.shape, seen.dtype) == ((1, 192, 192, 3), np.float32)
    assert seen[0, 20, 96].tolist() == [0, 0, 200]
    matrix = crop_matrix(box, 192, 1.25)
    for joint, crop, score in (
        ("head_top", (40.5, 140.5), 0.6),
        ("left_ankle", (180.5, 10.5), 0.7),
    ):
        found = points[LSP.index(joint)]
        np.testing.assert_allclose(matrix[:, :2] @ found[:2] + matrix[:, 2], crop, atol=1e-6)
        assert found[2] == pytest.approx(score)
    assert not np.isnan(points).any()


def test_a_missing_network_is_named(modules: SimpleNamespace, tmp_path: Path) -> None:
    """With the flag that says where it should be."""
    with pytest.raises(FileNotFoundError, match=r"none\.onnx: --shared"):
        modules.models.MoveNet(tmp_path / "none.onnx", 1)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([[0, 0, 9, 9], [5, 5, 20, 30], [1, 1, 50, 2]], [5, 5, 20, 30]),  # the largest
        ([], [0, 0, 60, 100]),  # the picture
    ],
)
def test_main_person(
    modules: SimpleNamespace, boxes: list[list[float]], expected: list[float]
) -> None:
    """Whatever its score."""
    array = np.array(boxes, np.float64).reshape(-1, 4)
    people = People(array, np.linspace(0.9, 0.2, len(boxes)), "detector")
    assert modules.data.main_person(people, 60, 100).tolist() == expected


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """One picture of each set; two people on COCO's, which has one of train2017 besides."""
    rng = np.random.default_rng(0)
    for name in ("lspet_val", "coco_people"):
        (tmp_path / "data" / name / "images").mkdir(parents=True)
        cv2.imwrite(
            str(tmp_path / "data" / name / "images/a.png"),
            rng.integers(0, 255, (80, 60, 3), np.uint8),
        )
    lsp = [[10 + i, 20 + 3 * i, int(i != 3)] for i in range(14)]
    images: list[dict[str, Any]] = [{"file": "a.png", "keypoints": lsp}]
    document = {"joint_names": LSP.keypoints, "images": images}
    (tmp_path / "data/lspet_val/annotations.json").write_text(json.dumps(document))
    coco = [[10 + i, 20 + 2 * i, 1 + i % 2] for i in range(17)]
    people = [{"bbox": [5, 6, 30, 50], "keypoints": coco}] * 2
    images = [
        {"file": "b.png", "coco_split": "train2017", "people": people},
        {"file": "a.png", "coco_split": "val2017", "people": people},
    ]
    document = {"keypoint_names": COCO.keypoints, "images": images}
    (tmp_path / "data/coco_people/annotations.json").write_text(json.dumps(document))
    return tmp_path


def test_sets(modules: SimpleNamespace, shared: Path) -> None:
    """Labels in the order of lsp14; boxes are those of the labelled joints, or COCO's."""
    lspet = modules.data.lspet_val(shared)
    assert lspet.labels.labelled.sum() == 13
    assert lspet.labels.box.tolist() == [[10, 20, 14, 40]]
    coco = modules.data.coco_people(shared)
    assert [path.name for path in coco.paths] == ["a.png"]
    assert coco.labels.picture.tolist() == [0, 0]
    assert coco.labels.labelled.sum(axis=1).tolist() == [12, 12]
    knee = coco.labels.keypoints[1, LSP.index("left_knee")]
    assert knee.tolist() == [10 + 13, 20 + 26]
    assert [picture.shape for _, picture in coco.pictures()] == [(80, 60, 3)]


def test_figures(modules: SimpleNamespace, shared: Path) -> None:
    """A stage that is right, then one whose left wrist is off; no neck and head top."""
    people = modules.data.coco_people(shared)
    right = np.concatenate([people.labels.keypoints, np.ones((2, 14, 1))], axis=-1)
    right[:, ~people.labels.labelled[0]] = np.nan
    off = right.copy()
    off[0, LSP.index("left_wrist"), 0] += 100
    results = modules.measure.Results()
    results.add(0, np.stack([right, off]), np.array([0.5, 0.9]))
    figures = modules.measure.pck(results, people)
    assert figures["stages"] == pytest.approx([100, 100 * 23 / 24])
    assert (figures["limb"], figures["all"]) == (pytest.approx(100 * 23 / 24), None)
    assert figures["rows"]["Wrist"] == pytest.approx(75)
    assert "Head" not in figures["rows"]
    assert figures["people"] == 2
    scores = person_score(np.ones((2, 12)), np.array([0.5, 0.9]))
    assert results.people().score == pytest.approx(scores)
    found = modules.measure.similarity(results, people)
    assert found["found"] == 2
    assert found["AP50"] == pytest.approx(100)
    assert found["AP"] < 100


def test_pictures_where_nobody_was_found_count(modules: SimpleNamespace, shared: Path) -> None:
    """Their people are misses."""
    results = modules.measure.Results()
    results.add(0, np.empty((1, 0, 14, 3)), np.empty(0))
    figures = modules.measure.similarity(results, modules.data.coco_people(shared))
    assert (figures["found"], figures["AP"]) == (0, 0)


def test_speed_is_the_median_of_processes_in_turn(
    modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rounds of ours and the peer: the rates, and the median of the rounds' ratios."""
    answers = iter([10.0, 20.0, 30.0, 30.0, 20.0, 60.0])
    asked = []

    def answer(command: list[str], **_: object) -> str:
        asked.append(command[-1])
        return f"{next(answers)}\n"

    monkeypatch.setattr(modules.speed.subprocess, "check_output", answer)
    figures = modules.speed.measure("cpm-lite", Path("movenet.onnx"), 2, 3)
    assert asked == ["ours", "movenet"] * 3
    assert figures == {"ours": 50.0, "movenet": 1e3 / 30, "ratio": 2.0, "rounds": 3}


@pytest.fixture
def document() -> dict[str, Any]:
    """Figures of ours with two stages, and of a peer with one."""
    rows = {"Head": 80.0, "Shoulder": 71.25, "Knee": 50.0}
    ours = {"limb": 60.04, "all": 62.0, "rows": rows, "stages": [58.0, 60.04], "people": 3}
    theirs = {"limb": 66.9, "all": None, "rows": {"Knee": 70.0}, "stages": [66.9], "people": 3}
    lspet = [
        {"name": "cpm-lite", "given": ours, "found": {}},
        {"name": "MoveNet Thunder", "given": theirs, "found": theirs},
    ]
    whole = {"locator": "yolox_nano", "name": "cpm-lite", "found": 7}
    whole |= {"AP": 8.0, "AP50": 18.0, "AP75": float("nan"), "AR": 11.0}
    return {
        "name": "cpm-lite",
        "sha256": "0123456789abcdef0123",
        "threads": 1,
        "file": {"megabytes": 5.44, "seconds": 0.123},
        "speed": {"ours": 90.0, "movenet": 45.0, "ratio": 2.01, "rounds": 21},
        "lspet": {"people": 3, "models": lspet},
        "coco": {"people": 2, "models": [{"name": "cpm-lite", **ours}]},
        "whole": {"pictures": 2, "people": 5, "models": [whole], "notes": ["A note."]},
        "date": "2026-11-22",
        "machine": "x86_64, 2 CPUs",
        "versions": "Python 3",
        "command": "python benchmarks/quality.py",
    }


@pytest.mark.parametrize(
    "line",
    [
        "| cpm-lite | 60.0 | 62.0 |  |  |",
        "| MoveNet Thunder | 66.9 |  | 66.9 |  |",
        "| cpm-lite | 71.2 |  |  |  | 50.0 |  | 80.0 |",
        "| cpm-lite | 58.0 | 60.0 |",
        "| yolox_nano | cpm-lite | 7 | 8.0 | 18.0 |  | 11.0 |",
        "| ours to MoveNet, median of the rounds | 2.01 | at least 1.3 |",
        "| file of our weights | 5.4 MB | at most 12 MB |",
        "A note.",
        "Weights `cpm-lite`, SHA-256 `0123456789abcdef`.",
    ],
)
def test_tables(modules: SimpleNamespace, document: dict[str, Any], line: str) -> None:
    """Empty where a model was not asked, or has no such joint."""
    assert line in modules.table.tables(document).splitlines()


def test_every_table_has_cells_for_its_columns(
    modules: SimpleNamespace, document: dict[str, Any]
) -> None:
    """Or else Markdown shows none."""
    for block in modules.table.tables(document).split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1, block


def test_tables_replace_what_is_between_the_markers(modules: SimpleNamespace) -> None:
    """And nothing else; twice is once."""
    begin, end = modules.table.BEGIN, modules.table.END
    page = f"# Quality\n\n{begin}\nold\n{end}\n\nMore.\n"
    new = modules.table.replaced(page, "| a |\n")
    assert new == f"# Quality\n\n{begin}\n\n| a |\n\n{end}\n\nMore.\n"
    assert modules.table.replaced(new, "| a |\n") == new
    with pytest.raises(ValueError, match="no <!-- quality: begin -->"):
        modules.table.replaced("# Quality\n", "| a |")


def test_a_page_without_markers_is_told_before_the_work(
    modules: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a page that is not there."""
    page = tmp_path / "page.md"
    for text in (None, "no markers"):
        if text:
            page.write_text(text)
        assert modules.command.main(["--shared", str(tmp_path), "--write", str(page)]) == 2
        assert "error: " in capsys.readouterr().err
