"""Planning as a run does it: what is refused or told before anything is planned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import planning as module
from pipeline.config import AnnotateSettings
from pipeline.errors import PosemillError, UsageError
from pipeline.manifest import Manifest
from pipeline.people import who
from pipeline.plan import Planned
from pipeline.planning import Planner
from pipeline.progress import Reporter
from pipeline.storage import Output
from tests.pipeline.conftest import OPTIONS
from tests.pipeline.test_plan import decoder_config, units_of

HEAD = "uri,x,y,w,h\n"
Plans = Callable[..., list[Any]]


class Heard(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def listing(self, count: int) -> None:
        pass

    def planning(self, planned: Planned) -> None:
        pass


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def plans(tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> Plans:
    """Plans two pictures, `photos/a.jpg` and `photos/b.jpg`, or other inputs; gives their boxes."""
    (tmp_path / "photos").mkdir()
    for name in "ab":
        (tmp_path / "photos" / f"{name}.jpg").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)

    def run(*inputs: str, **values: Any) -> list[Any]:
        names = inputs or ("photos",)
        settings = AnnotateSettings.build({"input": names, "output": "out", **values})
        output, found = Output("out", OPTIONS), who(settings, OPTIONS)
        config = decoder_config(people=found.locator)
        planner = Planner(settings, OPTIONS, output, found.boxes, config, heard)
        planner.plan(planner.look_up(), True, lambda: heard.lines.append("listed"))
        units = units_of(output)
        return [(Path(u.uri).name, None if u.boxes is None else len(u.boxes)) for u in units]

    return run


def write(path: str, text: str) -> str:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(text)
    return path


@pytest.mark.parametrize("values", [{}, {"limit": 1}, {"include": ["*/a.jpg"]}])
def test_boxes_of_which_no_input_has_any_are_refused(
    plans: Plans, heard: Heard, values: dict[str, Any], tmp_path: Path
) -> None:
    """A table in a folder of its own gave every picture nobody, without a word."""
    table = write("labels/boxes.csv", f"{HEAD}a.jpg,1,2,3,4\nb.jpg,1,2,3,4\n")
    with pytest.raises(UsageError) as refused:
        plans(boxes=table, **values)
    assert str(refused.value) == (
        "no input is among the 2 uris of --boxes labels/boxes.csv: an input is "
        f"{tmp_path}/photos/a.jpg, a uri of the table means {tmp_path}/labels/a.jpg; relative ones "
        "are relative to the table's folder: move the table, or write whole paths"
    )
    assert heard.lines == []
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("a.jpg,1,2,3,4\nb.jpg,,,,\n", [], id="of all"),
        pytest.param("b.jpg,1,2,3,4\n", [], id="of some inputs"),
        pytest.param("", [], id="of nobody"),
        pytest.param(
            "c.jpg,1,2,3,4\nb.jpg,1,2,3,4\nc.jpg,1,2,3,4\nd.jpg,,,,\n",
            ["2 of the 3 uris of --boxes photos/boxes.csv are no inputs (first: {}/photos/c.jpg)"],
            id="of others, too",
        ),
    ],
)
def test_boxes_of_no_input_are_told(
    plans: Plans, heard: Heard, text: str, told: list[str], tmp_path: Path
) -> None:
    plans(boxes=write("photos/boxes.csv", HEAD + text))
    before = heard.lines[: heard.lines.index("listed")]
    assert before == [line.format(tmp_path) for line in told]


@pytest.mark.parametrize("values", [{"limit": 1}, {"exclude": ["*/b.jpg"]}])
def test_where_not_all_is_listed_no_box_is_said_to_be_of_no_input(
    plans: Plans, heard: Heard, values: dict[str, Any]
) -> None:
    plans(
        boxes=write("photos/boxes.csv", f"{HEAD}a.jpg,1,2,3,4\nb.jpg,1,2,3,4\nc.jpg,,,,\n"),
        **values,
    )
    assert heard.lines[0] == "listed"


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param(["1.csv", "2.csv"], id="two lists"),
        pytest.param(["photos", "1.csv"], id="a folder and a list"),
        pytest.param(["1.csv", "photos/a.jpg"], id="a list and a picture"),
        pytest.param(["photos", "nobody.csv"], id="no box, and nobody"),
    ],
)
def test_an_input_that_comes_with_other_boxes_is_refused(plans: Plans, inputs: list[str]) -> None:
    """The first one's counted; those of the other input were lost."""
    write("1.csv", f"{HEAD}photos/a.jpg,1,2,3,4\n")
    write("2.csv", f"{HEAD}photos/b.jpg,1,2,3,4\nphotos/a.jpg,5,6,7,8\n")
    write("nobody.csv", f"{HEAD}photos/a.jpg,,,,\n")
    message = r"^1 inputs come more than once, .*\(first: /.*/photos/a.jpg\); put all rows of a uri"
    with pytest.raises(UsageError, match=message):
        plans(*inputs, people="boxes")


@pytest.mark.parametrize(
    ("inputs", "values", "expected"),
    [
        pytest.param(["1.csv", "1.csv"], {}, [("a.jpg", 1)], id="the same twice"),
        pytest.param(["1.csv", "2.csv"], {}, [("a.jpg", 1), ("b.jpg", 1)], id="of different ones"),
        pytest.param(
            ["photos", "1.csv"],
            {"boxes": "2.csv"},
            [("a.jpg", 0), ("b.jpg", 1)],
            id="a table wins over all",
        ),
        pytest.param(
            ["1.csv", "photos"],
            {"people": "whole-image"},
            [("a.jpg", 1), ("b.jpg", None)],
            id="boxes do not count",
        ),
    ],
)
def test_inputs_may_come_more_than_once(
    plans: Plans, inputs: list[str], values: dict[str, Any], expected: list[Any]
) -> None:
    write("1.csv", f"{HEAD}photos/a.jpg,1,2,3,4\n")
    write("2.csv", f"{HEAD}photos/b.jpg,1,2,3,4\n")
    assert plans(*inputs, **values) == expected


def test_inputs_that_hold_nothing_are_refused(plans: Plans, heard: Heard) -> None:
    Path("empty").mkdir()
    with pytest.raises(PosemillError, match="no pictures or videos in empty"):
        plans("empty", people="whole-image")
    assert heard.lines == []


def test_what_two_drivers_plan_anew_at_once_is_planned_once(
    plans: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans()
    Path("photos/a.jpg").write_bytes(b"another")
    Path("photos/c.jpg").write_bytes(b"x")
    plan, others = module.plan, []

    def meanwhile(*arguments: Any) -> Planned:
        done = plan(*arguments)
        if not others:
            others.append(1)
            plans(changed="redo")
        return done

    monkeypatch.setattr(module, "plan", meanwhile)
    plans(changed="redo")
    output = Output("out", OPTIONS)
    retired = Manifest.load(output).retired_units(output)["unit_id"].to_pylist()
    live = [Path(unit.uri).name for unit in units_of(output) if unit.unit_id not in retired]
    assert sorted(live) == ["a.jpg", "b.jpg", "c.jpg"]
    assert len(retired) == 1
