"""What `--people` and what is given mean together, and what of it enters the fingerprint."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cpm_core.locators import LocatorSpec
from cpm_core.poses import SAME_PERSON
from pipeline import people
from pipeline.config import AnnotateSettings
from pipeline.errors import UsageError
from pipeline.people import Who, locator_of, same_person_of, who
from tests.cpm_core.onnx_files import FLOAT, model
from tests.pipeline.conftest import OPTIONS, Place

NET = LocatorSpec("person-net", 0.3, "sha")
LIST = "uri,x,y,w,h\na.png,1,2,30,40\n"


@pytest.fixture
def _net_in_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person-net without weights: what is tested here is when it is asked for."""

    def read(name: str, threshold: float | None) -> LocatorSpec:
        return LocatorSpec(name, threshold or 0.3, "sha")  # type: ignore[arg-type]

    monkeypatch.setattr(people, "read_locator", read)


def settings(*inputs: str, **values: Any) -> AnnotateSettings:
    return AnnotateSettings.build({"input": inputs, "output": "out", **values})


def detector_file(folder: Path) -> Path:
    path = folder / "d.onnx"
    path.write_bytes(
        model([("images", FLOAT, (1, 3, 64, 64))], [("out", np.zeros((1, 84, 6)))]),
    )
    return path


@pytest.mark.usefixtures("_net_in_the_box")
@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["photos"], "person-net"),  # a folder
        (["b.png"], "person-net"),  # a picture
        (["plain.csv"], "person-net"),  # a list without boxes
        (["boxes.csv"], "boxes"),
        (["boxes.parquet"], "boxes"),
        (["boxes.csv", "boxes.parquet"], "boxes"),
        (["names.txt"], "person-net"),
    ],
)
def test_without_people_boxes_are_used_where_they_are_given(
    store: Place, names: list[str], kind: str, tmp_path: Path
) -> None:
    table = tmp_path / "local.parquet"
    pd.DataFrame({"uri": ["a.png"], "x": [1], "y": [2], "w": [3], "h": [4]}).to_parquet(table)
    for name, data in {
        "photos/a.png": b"",
        "b.png": b"",
        "plain.csv": b"uri,size\na.png,3\n",
        "boxes.csv": LIST.encode(),
        "boxes.parquet": table.read_bytes(),
        "names.txt": b"a.png\n",
    }.items():
        store.put(name, data)
    found = who(settings(*(f"{store.uri}/{name}" for name in names)), OPTIONS)
    assert found.locator.kind == kind
    assert found.boxes is None
    assert found.same_person == (SAME_PERSON if kind == "person-net" else None)


@pytest.mark.usefixtures("_net_in_the_box")
def test_inputs_with_and_without_boxes_need_a_word(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text(LIST)
    both = [str(tmp_path / "boxes.csv"), str(tmp_path)]
    with pytest.raises(UsageError, match=r"boxes.csv gives boxes and .* does not: say --people"):
        who(settings(*both), OPTIONS)
    assert who(settings(*both, people="person-net"), OPTIONS).locator.kind == "person-net"
    assert who(settings(*both, people="boxes"), OPTIONS).locator.kind == "boxes"


def test_a_table_of_boxes_is_enough(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text(LIST)
    found = who(settings(str(tmp_path), boxes=str(tmp_path / "boxes.csv")), OPTIONS)
    assert found.locator == LocatorSpec("boxes")
    assert found.boxes is not None
    assert [len(boxes) for boxes in found.boxes.values()] == [1]
    (tmp_path / "boxes.csv").write_text(LIST.replace("40", "41"))
    other = who(settings(str(tmp_path), boxes=str(tmp_path / "boxes.csv")), OPTIONS)
    assert other.fingerprint_fields()["boxes"] != found.fingerprint_fields()["boxes"]


def test_a_detector_is_its_content_and_its_threshold(tmp_path: Path) -> None:
    path = detector_file(tmp_path)
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    found = who(settings("in", people=f"detector:{path}"), OPTIONS)
    assert found.fingerprint_fields() == {
        "people": f"detector:{sha}",
        "person_threshold": 0.4,
        "same_person": SAME_PERSON,
        "boxes": None,
    }
    assert found.metadata() == {
        "locator": "detector",
        "locator_sha256": sha,
        "threshold": 0.4,
        "same_person": SAME_PERSON,
    }
    other = who(settings("in", people=f"detector:{path}", person_threshold=0.2), OPTIONS)
    assert other.fingerprint_fields()["person_threshold"] == 0.2
    assert other.locator.model == path.read_bytes()


@pytest.mark.parametrize(
    ("name", "threshold", "message"),
    [
        ("detector:none.onnx", None, "--people detector:none.onnx: no detector at none.onnx"),
        ("boxes", 0.5, "--person-threshold does not go with --people boxes"),
        ("whole-image", 0.5, "--person-threshold does not go with --people whole-image"),
    ],
)
def test_a_locator_that_cannot_be_used_is_refused(
    name: str, threshold: float | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        locator_of(name, threshold)


@pytest.mark.usefixtures("_net_in_the_box")
@pytest.mark.parametrize("people", ["boxes", "whole-image", "detector:d.onnx"])
def test_only_a_person_net_is_located_with_on_a_gpu(people: str) -> None:
    """Also where nobody said who locates: then boxes that are given do."""
    with pytest.raises(UsageError, match=f"person-net, not {people}, .*: leave --locator-device"):
        who(settings("in", people=people, locator_device="cuda"), OPTIONS)
    assert who(settings("in", locator_device="cuda"), OPTIONS).locator.kind == "person-net"


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("person-net", None, SAME_PERSON),
        ("detector", None, SAME_PERSON),
        ("boxes", None, None),  # a user's box keeps its row
        ("whole-image", None, None),  # there is only one
        ("boxes", 0.9, 0.9),
        ("detector", 0.5, 0.5),
        ("detector", 1.0, None),
    ],
)
def test_doubles_are_dropped_among_people_that_were_found(
    kind: Any, given: float | None, expected: float | None
) -> None:
    assert same_person_of(LocatorSpec(kind), given) == expected


def test_the_locator_stands_in_the_fingerprint_and_in_the_metadata() -> None:
    fields = Who(NET, None, 0.7).fingerprint_fields()
    assert fields["people"] == "person-net:sha"
    assert Who(NET, None, 0.7).metadata()["locator_sha256"] == "sha"
