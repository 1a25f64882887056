"""`posemill annotate` from the outside: what stands in the table, whatever goes in."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import av
import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest

from cpm_core.info import FOLDER
from jobs.cli import main
from pipeline import schema
from pipeline.storage import StorageOptions, open_filesystem, path_of, protocol_of
from pipeline.upkeep.settings import VerifySettings
from pipeline.upkeep.verify import verify
from tests.e2e.conftest import REPOSITORY, Job, draw_figure, job_environment
from tests.pipeline.videos import write_video


def read_table(output: str) -> pa.Table:
    """The annotation table as any tool would read it."""
    fs = open_filesystem(output, StorageOptions())
    return ds.dataset(f"{path_of(output)}/annotations", filesystem=fs, format="parquet").to_table()


def assert_accounted(table: pa.Table, units: int) -> None:
    """Every unit has rows, and no person of a frame stands twice."""
    names = ("unit_id", "frame_index", "pts", "person_index")
    keys = list(zip(*(table[name].to_pylist() for name in names), strict=True))
    assert len(set(keys)) == len(keys)
    assert set(table["unit_id"].to_pylist()) == set(range(units))


def assert_clean(output: str) -> None:
    """`posemill verify` finds nothing wrong."""
    found = verify(VerifySettings(output=output), lambda done, total: None)
    assert found.is_clean, (found.wrong, found.examples)


@pytest.mark.parametrize(
    "place", ["local", pytest.param("file", marks=pytest.mark.soak), "s3"], indirect=True
)
def test_same_result_on_every_kind_of_storage(
    place: str, photos: Path, posemill: Job, tiny: tuple[str, ...]
) -> None:
    """A folder goes in, a table comes out; the second start finds nothing to do."""
    fs = fsspec.filesystem("s3" if place.startswith("s3") else "file")
    fs.put(f"{photos}/", f"{path_of(place)}/in/", recursive=True)
    command = ["annotate", f"{place}/in", f"{place}/out", *tiny]

    first = posemill(*command)
    assert first.returncode == 0, first.stderr
    table = read_table(f"{place}/out")
    assert table.schema.equals(schema.annotation_table(14))
    assert_accounted(table, 40)
    assert set(table["status"].to_pylist()) == {"ok"}
    metadata = json.loads(table.schema.metadata[b"posemill"])
    assert metadata["skeleton"]["name"] == "lsp14"
    assert metadata["model"]["name"] == "tiny"
    done = json.loads(fs.cat(f"{path_of(place)}/out/_SUCCESS"))
    assert done["units"] == 40
    assert done["counts"]["people"] == 40
    assert not fs.exists(f"{path_of(place)}/out/_locks/1-of-1")
    assert_clean(f"{place}/out")

    second = posemill(*command)
    assert second.returncode == 0, second.stderr
    assert "nothing left to do" in second.stdout


def test_bad_inputs_become_rows_and_lose_nothing_else(
    tmp_path: Path, photos: Path, posemill: Job, tiny: tuple[str, ...]
) -> None:
    """Each kind of bad file gets its code; its neighbours get their keypoints."""
    good = (photos / "figure-000.jpg").read_bytes()
    bad = {
        "empty.jpg": (b"", "empty"),
        "truncated.jpg": (good[: len(good) // 2], "corrupt"),
        "text.png": (b"this is no picture", "unknown_format"),
        "broken.mp4": (b"\x00\x00\x00\x18ftypmp42" + b"\x00" * 200, "corrupt"),
    }
    for name, (data, _) in bad.items():
        (photos / name).write_bytes(data)
    (photos / "notes.md").write_text("passed over")
    uris = [*sorted(str(p) for p in photos.iterdir() if p.suffix != ".md"), "gone.jpg"]
    (photos / "list.txt").write_text("\n".join(uris))
    out = str(tmp_path / "out")

    result = posemill("annotate", str(photos / "list.txt"), out, *tiny)
    assert result.returncode == 0, result.stderr
    table = read_table(out)
    assert_accounted(table, 45)
    codes = {
        Path(row["uri"]).name: row["error_code"]
        for row in table.to_pylist()
        if row["status"] == "failed"
    }
    assert codes == {name: code for name, (_, code) in bad.items()} | {"gone.jpg": "not_found"}
    assert table["status"].to_pylist().count("ok") == 40
    assert "5 failed" in result.stdout


def test_given_boxes_and_keypoints_in_picture_pixels(
    tmp_path: Path, photos: Path, posemill: Job, tiny_weights: str
) -> None:
    """Rows for one picture merge; a picture without a box has nobody; a bad box is told."""
    (photos / "boxes.csv").write_text(
        "uri,x,y,w,h,score\n"
        "figure-000.jpg,10,10,50,90,0.5\n"
        "figure-000.jpg,40,20,40,80,0.9\n"
        "figure-001.jpg,,,,,\n"
        "figure-002.jpg,500,500,20,20,\n"
    )
    out = str(tmp_path / "out")
    result = posemill(
        "annotate", str(photos / "boxes.csv"), out, "--people", "boxes", "--weights", tiny_weights
    )
    assert result.returncode == 0, result.stderr
    rows = read_table(out).to_pylist()
    by_name = {
        name: [r for r in rows if r["uri"].endswith(name)] for name in ("0.jpg", "1.jpg", "2.jpg")
    }
    assert [r["box"] for r in by_name["0.jpg"]] == [[40, 20, 40, 80], [10, 10, 50, 90]]
    assert [r["person_index"] for r in by_name["0.jpg"]] == [0, 1]
    assert [r["status"] for r in by_name["1.jpg"]] == ["no_person"]
    assert [r["error_code"] for r in by_name["2.jpg"]] == ["bad_box"]
    for row in by_name["0.jpg"]:
        x, y, w, h = row["box"]
        side = 1.25 * max(w, h)
        assert all(abs(v - (x + w / 2)) <= side / 2 + 8 for v in row["x"])
        assert all(abs(v - (y + h / 2)) <= side / 2 + 8 for v in row["y"])


def test_wrong_boxes_are_refused_and_nobody_is_held_to_them(
    tmp_path: Path, photos: Path, posemill: Job, tiny_weights: str
) -> None:
    """The output would take no other boxes if it had been begun with these."""
    (tmp_path / "boxes.csv").write_text("uri,x,y,w,h\nfigure-000.jpg,10,10,50,90\n")
    command = ["annotate", str(photos), str(tmp_path / "out"), "--weights", tiny_weights]
    refused = posemill(*command, "--boxes", str(tmp_path / "boxes.csv"))
    assert refused.returncode == 2
    assert f"a uri of the table means {tmp_path}/figure-000.jpg" in refused.stderr
    (tmp_path / "boxes.csv").rename(photos / "boxes.csv")
    result = posemill(*command, "--boxes", str(photos / "boxes.csv"))
    assert result.returncode == 0, result.stderr
    statuses = read_table(str(tmp_path / "out"))["status"].to_pylist()
    assert (statuses.count("ok"), statuses.count("no_person")) == (1, 39)


def test_boxes_of_frames_that_are_not_there_are_told(
    tmp_path: Path, posemill: Job, tiny_weights: str
) -> None:
    write_clip(tmp_path / "clip.mp4", 10)
    (tmp_path / "l.csv").write_text(
        "uri,x,y,w,h,frame_index\nclip.mp4,9,9,50,90,9\nclip.mp4,9,9,50,90,10\n"
    )
    out = str(tmp_path / "out")
    result = posemill("annotate", str(tmp_path / "l.csv"), out, "--weights", tiny_weights)
    assert result.returncode == 0, result.stderr
    rows = read_table(out).to_pylist()
    assert [r["frame_index"] for r in rows if r["status"] == "ok"] == [9]
    assert [r["status"] for r in rows].count("no_person") == 9
    (failed,) = [r for r in rows if r["status"] == "failed"]
    assert (failed["error_code"], failed["frame_index"]) == ("bad_box", None)
    assert "for frame 10; its 10 frames count from 0" in failed["error_message"]
    assert_clean(out)


def write_clip(path: Path, frames: int) -> None:
    """Figures, 25 a second, a keyframe every 12."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "12"})
        stream.width, stream.height, stream.pix_fmt = 96, 128, "yuv420p"
        for i in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw_figure(i), "rgb24")))
        container.mux(stream.encode(None))


def test_video_frames_have_true_times(tmp_path: Path, posemill: Job, tiny: tuple[str, ...]) -> None:
    """Every frame of a video has a row, with index, pts and seconds of the container."""
    path = tmp_path / "clip.mp4"
    write_clip(path, 40)
    out = str(tmp_path / "out")
    result = posemill("annotate", str(path), out, *tiny, "--shard-size", "16")
    assert result.returncode == 0, result.stderr
    table = read_table(out).sort_by("frame_index")
    assert table["frame_index"].to_pylist() == list(range(40))
    np.testing.assert_allclose(table["timestamp_s"].to_numpy(), np.arange(40) / 25, atol=1e-6)
    # Keyframes every 12 frames, at most 16 frames a unit: cuts at 12 and 24.
    assert len(set(table["unit_id"].to_pylist())) == 3


def test_growing_input_is_continued(
    tmp_path: Path, photos: Path, posemill: Job, tiny: tuple[str, ...]
) -> None:
    """Another result setting is refused and named; with another setting of the run, new files are
    appended and what is there stays as it is."""
    out = tmp_path / "out"
    command = ["annotate", str(photos), str(out), *tiny]
    assert posemill(*command, "--limit", "25").returncode == 0
    assert_accounted(read_table(str(out)), 25)
    refused = posemill(*command, "--limit", "25", "--flip")
    assert refused.returncode == 2
    assert "flip: False -> True" in refused.stderr
    before = {p: p.stat().st_mtime_ns for p in (out / "annotations").rglob("*.parquet")}
    cv2.imwrite(str(photos / "a-new-one.png"), draw_figure(99))
    assert posemill(*command, "--threads", "1").returncode == 0
    table = read_table(str(out))
    assert_accounted(table, 41)
    assert len(set(table["uri"].to_pylist())) == 41
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())


def test_a_video_that_was_away_when_it_was_planned_comes_with_retry_failed(
    photos: Path, tmp_path: Path, posemill: Job, tiny: tuple[str, ...]
) -> None:
    """How it is cut was not known then, so it is planned anew."""
    away = tmp_path / "away" / "clip.mp4"
    (photos / "clip.mp4").symlink_to(away)
    command = ["annotate", str(photos), str(tmp_path / "out"), *tiny]
    assert posemill(*command).returncode == 0
    away.parent.mkdir()
    write_video(away, frames=30)
    assert "nothing left to do" in posemill(*command).stdout
    again = posemill(*command, "--retry-failed", "not_found")
    assert again.returncode == 0, again.stderr
    assert "1 videos that could not be opened when they were planned" in again.stderr
    table = read_table(str(tmp_path / "out"))
    assert "failed" not in table["status"].to_pylist()
    video = table.filter(pc.match_substring(table["uri"], "clip.mp4"))
    assert sorted(set(video["frame_index"].to_pylist())) == list(range(30))
    assert_clean(str(tmp_path / "out"))
    idle = posemill(*command, "--retry-failed")
    assert "nothing left to do" in idle.stdout
    assert "could not be opened" not in idle.stderr


@pytest.mark.parametrize(
    "place", ["local", pytest.param("s3", marks=pytest.mark.soak)], indirect=True
)
def test_changed_and_failed_inputs_are_replaced_without_doubles(
    place: str, photos: Path, posemill: Job, tiny: tuple[str, ...]
) -> None:
    """`--retry-failed` and `--changed redo` rewrite parts: old rows go, the others stay."""
    source = photos if protocol_of(place) == "file" else f"{place}/in"
    fs = fsspec.filesystem(protocol_of(place), use_listings_cache=False)
    if protocol_of(place) != "file":
        fs.put(f"{photos}/", f"{path_of(place)}/in/", recursive=True)
    folder = path_of(str(source))
    for i in (3, 33):
        fs.pipe_file(f"{folder}/figure-{i:03d}.jpg", b"no picture")
    command = ["annotate", str(source), f"{place}/out", *tiny]
    assert posemill(*command).returncode == 0
    table = read_table(f"{place}/out")
    assert table.filter(pc.equal(table["status"], "failed")).num_rows == 2
    good = {row["uri"]: row for row in table.to_pylist() if row["status"] != "failed"}

    # One is mended behind our back, one is another picture now, one is gone.
    for i in (3, 7):
        data = cv2.imencode(".png", draw_figure(100 + i, 200, 200))[1].tobytes()
        fs.pipe_file(f"{folder}/figure-{i:03d}.jpg", data)
    fs.rm_file(f"{folder}/figure-011.jpg")
    again = posemill(*command, "--retry-failed", "unknown_format")
    assert again.returncode == 0, again.stderr
    assert "2 inputs have changed since they were planned" in again.stderr
    assert "1 planned inputs are not there any more" in again.stderr
    table = read_table(f"{place}/out")
    assert_accounted(table, 40)
    rows = {Path(row["uri"]).name: row for row in table.to_pylist()}
    assert rows["figure-003.jpg"]["status"] != "failed"
    assert rows["figure-033.jpg"]["status"] == "failed"
    assert rows["figure-007.jpg"]["width"] == 96
    assert all(row == good[row["uri"]] for row in rows.values() if row["uri"] in good)

    redone = posemill(*command, "--changed", "redo")
    assert redone.returncode == 0, redone.stderr
    table = read_table(f"{place}/out")
    # Units 3 and 7 are retired, and planned anew.
    assert sorted(table["unit_id"].to_pylist()) == sorted({*range(42)} - {3, 7})
    assert len(set(table["uri"].to_pylist())) == 40
    rows = {Path(row["uri"]).name: row for row in table.to_pylist()}
    assert rows["figure-007.jpg"]["width"] == 200
    assert rows["figure-011.jpg"]["status"] != "failed"
    success = json.loads(fs.cat_file(f"{path_of(place)}/out/_SUCCESS"))
    assert (success["units"], success["counts"]["units"]) == (40, 40)
    assert_clean(f"{place}/out")
    idle = posemill(*command, "--changed", "redo", "--retry-failed", "timeout")
    assert idle.returncode == 0
    assert "nothing left to do" in idle.stdout


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["photos", "out", "--retry-failed", "typo"], "'typo' is none of the codes"),
        (["photos", "out", "--box-facto", "2"], "did you mean --box-factor?"),
        (["photos", "out", "--box-factor", "0"], "--box-factor"),
        (["nowhere", "out"], "no such input"),
        (["photos"], "expected INPUT … OUTPUT"),
        (["photos", "gs://bucket/out"], "only local folders and s3://"),
        (["photos", "out", "--weights", "cpm"], "posemill train --preset cpm"),
        (["photos", "out", "--people", "detector:none.onnx"], "none.onnx"),
        (["photos", "out", "--people", "faces"], "person-net, boxes, whole-image or detector"),
    ],
)
def test_wrong_settings_are_told_in_one_line(
    words: list[str],
    reason: str,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2, one line, and nothing written."""
    places = {"photos": str(photos), "out": str(tmp_path / "out"), "nowhere": str(tmp_path / "x")}
    assert main(["annotate", *(places.get(word, word) for word in words)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert reason in errors
    assert not (tmp_path / "out").exists()


def test_too_many_failures_stop_the_run(
    tmp_path: Path, posemill: Job, tiny: tuple[str, ...]
) -> None:
    """Wrong credentials or a wrong bucket end in one clear error, not in a table of failures."""
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(f"gone-{i}.jpg" for i in range(300)))
    result = posemill("annotate", str(listed), str(tmp_path / "out"), *tiny)
    assert result.returncode == 1
    assert "not_found" in result.stderr
    assert "--max-failures" in result.stderr


@pytest.mark.parametrize("output", ["s3://no-such-bucket-here/out", "/proc/out", "FILE/out"])
def test_output_that_cannot_be_written(
    output: str, tmp_path: Path, photos: Path, bucket: str, posemill: Job, tiny: tuple[str, ...]
) -> None:
    """One line that names the output, before anything is done."""
    (tmp_path / "file").write_text("in the way")
    output = output.replace("FILE", str(tmp_path / "file"))
    result = posemill("annotate", str(photos), output, *tiny)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert output in result.stderr


WITHOUT_PYTORCH = """
import sys
from jobs.cli import main
from pipeline.compiler import Compiler
codes = [main(sys.argv[1:])]
Compiler.start = None
codes.append(main(sys.argv[1:]))
print(codes, sorted({"torch", "openvino", "onnxruntime"} & set(sys.modules)))
"""


@pytest.mark.skipif(
    not (FOLDER / "person-net.safetensors").exists(), reason="needs the shipped locator"
)
def test_a_driver_on_cpus_imports_no_pytorch_and_with_nothing_to_do_starts_nothing(
    tmp_path: Path, photos: Path
) -> None:
    """Both take seconds and memory; networks are made ready beside it."""
    pytest.importorskip("openvino")
    words = ["annotate", str(photos), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYTORCH, *words],
        env=job_environment(),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "nothing left to do" in done.stdout
    assert done.stdout.splitlines()[-1] == "[0, 0] []"


def test_dry_run_writes_nothing(
    tmp_path: Path, photos: Path, posemill: Job, tiny: tuple[str, ...]
) -> None:
    """It prints units, bytes and resources."""
    out = tmp_path / "out"
    result = posemill("annotate", str(photos), str(out), *tiny, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "40 units" in result.stderr
    assert re.search(r"layout: 1 prepare .*, \d estimate .*, 1 commit", result.stderr)
    assert not out.exists()
