"""Evaluation of an annotation table, end to end without Ray; who is who in a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpm_core.skeleton import Skeleton, load_skeleton
from pipeline import schema
from pipeline.errors import UsageError
from pipeline.evaluate import EvaluateSettings, evaluate, report
from pipeline.evaluation.matching import match
from tests.pipeline.conftest import Place
from tests.pipeline.test_evaluate_weights import sample, total, write_samples

LSP, COCO = load_skeleton("lsp14"), load_skeleton("coco17")


def person(
    labels: dict[str, Any],
    uri: str,
    shift: float = 0.0,
    score: float = 0.5,
    skeleton: Skeleton = LSP,
    **values: Any,
) -> dict[str, Any]:
    """A row of an annotation table: a labelled person, moved to the right by `shift` pixels."""
    places = dict(zip(LSP.keypoints, zip(labels["x"], labels["y"], strict=True), strict=True))
    points = np.array([places.get(name, (0, 0)) for name in skeleton.keypoints])
    return {
        "unit_id": 0,
        "uri": uri,
        "media_type": "image",
        "status": "ok",
        "person_index": 0,
        "x": (points[:, 0] + shift).tolist(),
        "y": points[:, 1].tolist(),
        "keypoint_score": [0.5] * len(skeleton),
        "score": score,
    } | values


def nobody(uri: str, status: str = "no_person") -> dict[str, Any]:
    """A picture without people, or one that failed."""
    return {"unit_id": 0, "uri": uri, "media_type": "image", "status": status}


def part(rows: list[dict[str, Any]], skeleton: Skeleton = LSP) -> bytes:
    """A part of an annotation table."""
    table_schema = schema.annotation_table(len(skeleton))
    table_schema = table_schema.with_metadata(schema.table_metadata({}, skeleton))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=table_schema), sink)
    return bytes(sink.getvalue())


def write_annotations(folder: Path, rows: list[dict[str, Any]], skeleton: Skeleton = LSP) -> str:
    """An output folder."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / "part-0.parquet").write_bytes(part(rows, skeleton))
    return str(folder)


def labels(count: int, **values: Any) -> list[dict[str, Any]]:
    """Rows of a samples table, without pictures: one person each."""
    return [
        sample(i, encoded=False, uri=f"/photos/im{i}.png", **values) | {"box": [0, 0, 100, 100]}
        for i in range(count)
    ]


def run(**values: Any) -> dict[str, Any]:
    """The figures."""
    return evaluate(EvaluateSettings.build(values))


@pytest.mark.parametrize(
    "folder", ["/photos", "s3://elsewhere/set"], ids=["by URI", "by file name"]
)
def test_perfect_annotations(tmp_path: Path, folder: str) -> None:
    """100 % of everything, wherever the pictures have moved since."""
    rows = labels(3)
    out = write_annotations(
        tmp_path / "out", [person(row, f"{folder}/{row['source']}") for row in rows]
    )
    figures = run(annotations=out, samples=write_samples(tmp_path / "s.parquet", rows))
    assert list(figures["metrics"]) == ["pck_lspet", "oks"]
    assert total(figures) == 100
    assert figures["metrics"]["oks"]["AP"] == pytest.approx(100)
    assert "by_stage" not in figures["metrics"]["pck_lspet"]


def test_by_the_name_of_the_source(tmp_path: Path) -> None:
    """Samples that hold their pictures have no URI."""
    rows = [row | {"uri": None, "source": f"set/{row['source']}"} for row in labels(2)]
    out = write_annotations(
        tmp_path / "out", [person(row, f"s3://b/{row['source']}") for row in rows]
    )
    figures = run(annotations=out, samples=write_samples(tmp_path / "s.parquet", rows))
    assert (total(figures), figures["people"]) == (100, 2)


def test_missed_people_count_and_pictures_left_out_do_not(tmp_path: Path) -> None:
    """Nobody found, a failed picture, one of two people found; a picture that was not annotated."""
    rows = labels(5)
    rows[3] |= {"uri": rows[2]["uri"], "source": rows[2]["source"]}
    found = [person(rows[2], rows[2]["uri"])]
    found += [nobody(rows[0]["uri"]), nobody(rows[1]["uri"], "failed")]
    out = write_annotations(tmp_path / "out", found)
    figures = run(annotations=out, samples=write_samples(tmp_path / "s.parquet", rows))
    assert figures["people"] == 4
    assert total(figures) == 25
    oks = figures["metrics"]["oks"]
    assert (oks["labelled"], oks["predicted"]) == (4, 1)
    # Precision 1 up to recall 0.25: 26 of 101 points.
    assert oks["AP"] == pytest.approx(100 * 26 / 101)
    text = report(figures)
    assert "1 labelled pictures are not in" in text
    assert "3 pictures: 4 people labelled, 1 predicted; 3 labelled people without" in text


def test_bystanders_take_nobodys_label(tmp_path: Path) -> None:
    """A far prediction with the highest score is a false positive, not the labelled person."""
    rows = labels(1)
    uri = rows[0]["uri"]
    found = [person(rows[0], uri, shift=5000, score=0.9), person(rows[0], uri, score=0.1)]
    figures = run(
        annotations=write_annotations(tmp_path / "out", found),
        samples=write_samples(tmp_path / "s.parquet", rows),
    )
    assert total(figures) == 100
    assert figures["metrics"]["oks"]["AP"] == pytest.approx(50)


def test_poor_estimates_are_measured_joint_by_joint(tmp_path: Path) -> None:
    """A person with one right joint is not like the label, and yet that joint is right."""
    rows = labels(1)
    poor = person(rows[0], rows[0]["uri"], shift=300)
    poor["x"][13] -= 300
    figures = run(
        annotations=write_annotations(tmp_path / "out", [poor]),
        samples=write_samples(tmp_path / "s.parquet", rows),
    )
    assert total(figures) == pytest.approx(100 / 14)


def test_joints_are_matched_by_name(tmp_path: Path) -> None:
    """COCO's 17 joints against LSP's 14: the 12 that both have."""
    rows = labels(2)
    found = [person(row, row["uri"], skeleton=COCO) for row in rows]
    figures = run(
        annotations=write_annotations(tmp_path / "out", found, COCO),
        samples=write_samples(tmp_path / "s.parquet", rows),
    )
    measured = figures["metrics"]["pck_lspet"]
    assert (total(figures), measured["joints_counted"]) == (100, 24)
    assert figures["metrics"]["oks"]["AP"] == pytest.approx(100)
    assert "share 12 joints; left out: neck, head_top" in report(figures)
    with pytest.raises(UsageError, match="not all are predicted"):
        run(
            annotations=str(tmp_path / "out"),
            samples=str(tmp_path / "s.parquet"),
            metric=("pck_lsp",),
        )


def test_in_a_bucket(tmp_path: Path, s3_place: Place) -> None:
    """Annotations and labels in S3."""
    rows = labels(2)
    s3_place.put("out/annotations/0/part-0.parquet", part([person(rows[0], rows[0]["uri"])]))
    s3_place.put("out/annotations/0/part-1.parquet", part([nobody(rows[1]["uri"])]))
    local = write_samples(tmp_path / "s.parquet", rows)
    remote = s3_place.put("s.parquet", Path(local).read_bytes())
    for samples in (local, remote):
        assert total(run(annotations=f"{s3_place.uri}/out", samples=samples)) == 50


def test_videos_are_passed_over(tmp_path: Path) -> None:
    """A frame that bears the name of a picture is none."""
    rows = labels(1)
    found = [person(rows[0], rows[0]["uri"], shift=50, media_type="video"), nobody("/b/im0.png")]
    figures = run(
        annotations=write_annotations(tmp_path / "out", found),
        samples=write_samples(tmp_path / "s.parquet", rows),
    )
    assert total(figures) == 0
    assert figures["metrics"]["oks"]["predicted"] == 0


def test_the_uri_wins_over_the_name(tmp_path: Path) -> None:
    """Another picture of the same name is none of the labels' business."""
    rows = labels(1)
    found = [person(rows[0], rows[0]["uri"]), person(rows[0], "/b/im0.png", shift=900)]
    figures = run(
        annotations=write_annotations(tmp_path / "out", found),
        samples=write_samples(tmp_path / "s.parquet", rows),
    )
    assert total(figures) == 100
    assert figures["metrics"]["oks"]["predicted"] == 1


@pytest.mark.parametrize(
    ("uris", "message"),
    [
        (["/b/im0.png", "/c/im0.png"], "several pictures named im0.png"),
        (["/b/other.png"], "no picture of .* im0.png"),
    ],
)
def test_pictures_that_cannot_be_matched(tmp_path: Path, uris: list[str], message: str) -> None:
    """Both files are named."""
    out = write_annotations(tmp_path / "out", [nobody(uri) for uri in uris])
    samples = write_samples(tmp_path / "s.parquet", labels(1))
    with pytest.raises(UsageError, match=message) as refused:
        run(annotations=out, samples=samples)
    assert out in str(refused.value)
    assert samples in str(refused.value)


def test_no_table_there(tmp_path: Path) -> None:
    """An empty folder."""
    samples = write_samples(tmp_path / "s.parquet", labels(1))
    with pytest.raises(UsageError, match="holds no annotation table"):
        run(annotations=str(tmp_path / "none"), samples=samples)


@pytest.mark.parametrize(
    ("similarity", "score", "expected", "what"),
    [
        ([[0.9, 0.6], [0.8, 0.1]], [0.5, 0.4], [0, 1], "leftovers stand for leftovers"),
        ([[0.6, 0.9], [0.8, 0.7]], [0.4, 0.5], [1, 0], "the surer person chooses first"),
        ([[0.0, 0.1], [0.3, 0.2]], [0.9, 0.1], [1, 0], "without a likeness, the most alike first"),
        ([[0.9], [0.95]], [0.9, 0.1], [0], "COCO's order, not the oracle's"),
        ([[0.2, 0.7, 0.1]], [0.9], [-1, 0, -1], "more labels than people"),
        (np.zeros((0, 2)), [], [-1, -1], "nobody predicted"),
        (np.zeros((2, 0)), [0.1, 0.2], [], "nobody labelled"),
    ],
)
def test_who_is_who(
    similarity: list[list[float]], score: list[float], expected: list[int], what: str
) -> None:
    """Indices of predicted people for each labelled one."""
    chosen = match(np.array(similarity), np.array(score))
    assert chosen.tolist() == expected, what


@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(0, 5))
def test_nobody_stands_for_two(seed: int, predicted: int, labelled: int) -> None:
    """As many pairs as there can be, each person in one."""
    rng = np.random.default_rng(seed)
    chosen = match(rng.random((predicted, labelled)), rng.random(predicted))
    pairs = chosen[chosen >= 0]
    assert len(pairs) == len(set(pairs.tolist())) == min(predicted, labelled)
