"""The same name continues the same run, and no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cpm_core.skeleton import load_skeleton
from pipeline.errors import UsageError
from pipeline.samples import SampleTable
from pipeline.storage import Output, StorageOptions
from pipeline.training.record import RECORD, RunRecord, identity
from pipeline.training.settings import TrainSettings
from pipeline.training.start import Start
from tests.pipeline.conftest import Place
from tests.pipeline.training.labelled import row, write_table

Identity = Callable[..., dict[str, Any]]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """What settings name: two tables, one with another skeleton, and two files of weights."""
    coco = load_skeleton("coco17")
    for name, data in (("w1", b"one"), ("w2", b"two"), ("copy", b"one")):
        (tmp_path / name).write_bytes(data)
    return {
        "samples": write_table(tmp_path / "a.parquet", [row(0)], digest="d1"),
        "moved": write_table(tmp_path / "b.parquet", [row(0)], digest="d1"),
        "other": write_table(tmp_path / "c.parquet", [row(0)], digest="d2"),
        "coco": write_table(tmp_path / "d.parquet", [row(0, joints=17)], coco, digest="d1"),
        **{name: str(tmp_path / name) for name in ("w1", "w2", "copy")},
    }


@pytest.fixture
def identify(files: dict[str, str]) -> Identity:
    """Function: the identity that settings have."""

    def build(given: str | None = None, **values: Any) -> dict[str, Any]:
        named = {k: files.get(v, v) if isinstance(v, str) else v for k, v in values.items()}
        settings = make_settings(**{"samples": files["samples"], **named})
        table = SampleTable(settings.samples)
        start = Start(settings.network(len(table.skeleton)), {}, given)
        return identity(settings, start, table)

    return build


def make_settings(**values: Any) -> TrainSettings:
    return TrainSettings.build({"output": "runs", "name": "n", **values})


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"epochs": 99},  # a run may be given more
        {"samples": "moved"},  # the same samples at another place
        {"workers": "1-4", "threads": 3, "device": "cuda"},
        {"checkpoint_minutes": 1, "max_failures": 0},
        {"output": "elsewhere", "address": "auto", "s3_endpoint": "http://x", "licence": "mine"},
        {"batch_size": 32, "learning_rate": 2e-3, "phases": ["0:128", "0.6:192", "0.85:256"]},
    ],
)
def test_what_makes_no_difference(store: Place, identify: Identity, values: dict[str, Any]) -> None:
    """Defaults that are spelt out, and where and how it runs."""
    output = store.output("run")
    RunRecord(output, identify()).start(make_settings(samples="x"))
    RunRecord(output, identify(**values))


@pytest.mark.parametrize(
    ("values", "flags"),
    [
        ({"learning_rate": 0.5}, {"--learning-rate"}),
        ({"batch_size": 8, "seed": 2}, {"--batch-size", "--seed"}),
        ({"precision": "fp32"}, {"--precision"}),
        ({"intermediate": False}, {"--intermediate"}),
        ({"stages": 2}, {"--stages"}),
        ({"phases": ["0:64"]}, {"--phases"}),
        ({"box_factor": 1.5}, {"--box-factor"}),
        ({"augment_scale": [0.5, 2]}, {"--augment-scale"}),
        ({"augment_erase": 0.5}, {"--augment-erase"}),
        ({"augment_part": 0.5}, {"--augment-part"}),
        ({"label_sigma": [1, 1]}, {"--label-sigma"}),
        ({"augment_rotation": 5}, {"--augment-rotation"}),
        ({"augment_shift": 0}, {"--augment-shift"}),
        ({"augment_flip": False}, {"--augment-flip"}),
        ({"augment_color": 0.5}, {"--augment-color"}),
        ({"samples": "other"}, {"--samples"}),
        ({"samples": "coco"}, {"--samples"}),
        ({"given": "sha"}, {"--start-from"}),
        ({"trunk": "w1"}, {"--trunk"}),
        (
            {"teacher": "w1", "teacher_tensor": "f"},
            {"--teacher", "--teacher-tensor", "--teacher-weight"},
        ),
    ],
)
def test_another_run_is_refused(
    store: Place, identify: Identity, values: dict[str, Any], flags: set[str]
) -> None:
    """With the flags that differ, all of which there are, and what to do."""
    output = store.output("run")
    RunRecord(output, identify()).start(make_settings(samples="x"))
    with pytest.raises(UsageError) as refused:
        RunRecord(output, identify(**values))
    message = str(refused.value)
    assert set(message.partition("(")[2].partition(")")[0].split(", ")) == flags
    assert "another --name" in message
    assert output.uri in message


def test_another_preset_is_refused(store: Place, identify: Identity) -> None:
    """Its recipe differs in much; all that is named is a setting."""
    output = store.output("run")
    RunRecord(output, identify()).start(make_settings(samples="x"))
    with pytest.raises(UsageError) as refused:
        RunRecord(output, identify(preset="cpm-vgg"))
    named = str(refused.value).partition("(")[2].partition(")")[0].split(", ")
    assert "--preset" in named
    fields = {"--" + name.replace("_", "-") for name in TrainSettings.model_fields}
    assert set(named) <= fields


def test_files_count_by_what_is_in_them(identify: Identity, files: dict[str, str]) -> None:
    """Not by what they are called."""
    assert identify(trunk="w1") == identify(trunk="copy")
    assert identify(trunk="w1") != identify(trunk="w2")
    one, same, other = (identify(teacher=t, teacher_tensor="f") for t in ("w1", "copy", "w2"))
    assert one == same != other
    network = Path(files["w1"]).with_name("w.xml")
    network.write_text("the layers")
    seen = []
    for weights in (b"one", b"two"):
        network.with_suffix(".bin").write_bytes(weights)
        seen.append(identify(teacher=str(network), teacher_tensor="f"))
    assert seen[0] != seen[1], "an OpenVINO network has its weights in another file"
    assert identify(start_from="a", given="sha") == identify(start_from="b", given="sha")
    assert identify(given="sha") != identify(given="other")


def test_runs_from_before_there_were_teachers_go_on(store: Place, identify: Identity) -> None:
    before = identify()
    assert "teacher_weight" not in before
    del before["teacher"], before["teacher_tensor"]
    output = store.output("run")
    RunRecord(output, before).start(make_settings(samples="x"))
    RunRecord(output, identify())


def test_it_notes_every_start_and_the_end(store: Place, identify: Identity) -> None:
    """And that a finished run that goes on is not finished."""
    output = store.output("run")
    first = RunRecord(output, identify())
    assert first.finished == {}
    assert output.read(RECORD) is None, "nothing is written before the start"
    first.start(make_settings(samples="x", epochs=1))
    assert RunRecord(output, identify()).finished == {}
    first.finish(step=40, weights="n.safetensors")
    second = RunRecord(output, identify(epochs=2))
    assert (second.finished["step"], second.finished["weights"]) == (40, "n.safetensors")
    second.start(make_settings(samples="x", epochs=2))
    document = json.loads(output.read(RECORD) or b"")
    assert document["finished"] == {}
    assert [s["settings"]["epochs"] for s in document["starts"]] == [1, 2]
    assert all(s["time"].endswith("+00:00") for s in document["starts"])


def test_an_identity_is_json(tmp_path: Path, identify: Identity) -> None:
    """As it is read again: tuples are lists."""
    output = Output(str(tmp_path / "run"), StorageOptions())
    values = identify(phases=["0:64", "0.5:128"])
    assert json.loads(json.dumps(values)) == values
    RunRecord(output, values).start(make_settings(samples="x"))
    RunRecord(output, identify(phases=["0:64", "0.5:128"]))
