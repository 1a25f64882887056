"""Samples tables as packs: what is kept of pictures, what is shared, and what is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import pipeline
from cpm_core.augment import NONE, Augmentation, Sample, training_crop
from cpm_core.resident.cut import cut
from cpm_core.resident.draws import Samples, generator
from cpm_core.resident.pack import Pack, bytes_of, read_pack
from cpm_core.resident.pictures import decoded
from cpm_core.skeleton import load_skeleton
from pipeline.pack import REACH, main
from tests.pipeline.training.labelled import LSP, person, row, write_table


def packed(tmp_path: Path, rows: list[dict[str, Any]], *flags: str) -> Pack:
    """The pack of a table of these rows."""
    table = write_table(tmp_path / "samples.parquet", rows)
    assert main([table, str(tmp_path / "pack.safetensors"), *flags]) == 0
    return read_pack(tmp_path / "pack.safetensors")


def smooth(width: int, height: int, seed: int = 0) -> bytes:
    """A PNG of soft blobs."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 30, width // 30, 3))
    picture = cv2.resize(noise.astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".png", picture)[1].tobytes()


def test_all_that_a_sample_is(tmp_path: Path) -> None:
    """A picture smaller than the canvas stays as it is; others and unlabelled joints come along."""
    lone, beside = row(0), row(1, "tune", others=[person(8), person(9)])
    beside["labelled"][3] = False
    pack = packed(tmp_path, [lone, beside, row(2, "test")], "--quality", "100")
    assert pack.info.skeleton == LSP
    assert [len(pack.rows(name)) for name in ("train", "tune", "test")] == [1, 1, 0]
    assert pack.sizes.tolist() == [[48, 64], [48, 64]]
    np.testing.assert_allclose(pack.box, [lone["box"], beside["box"]])
    np.testing.assert_allclose(
        pack.keypoints[1], np.stack([beside["x"], beside["y"]], -1), atol=1e-5
    )
    assert pack.labelled[1].tolist() == beside["labelled"]
    assert pack.others_count.tolist() == [0, 2]
    np.testing.assert_allclose(pack.others[1, :, 0], beside["others"][1]["x"], atol=1e-5)


def test_pictures_that_are_the_same_are_there_once(tmp_path: Path) -> None:
    """With the same box: a second opinion, a repeated sample. With another box, they differ."""
    other_labels = {**row(0), **person(5)}
    other_box = row(0, box=[10.0, 4.0, 30.0, 50.0])
    pack = packed(tmp_path, [row(0), row(1), other_labels, row(0), other_box, row(1, "tune")])
    assert len(pack.ends) == 3
    # Splits come in turn, the rows of each in their order.
    assert pack.picture.tolist() == [0, 1, 0, 0, 2, 1]
    assert not np.array_equal(pack.keypoints[0], pack.keypoints[2])
    np.testing.assert_array_equal(pack.keypoints[0], pack.keypoints[3])


@pytest.mark.parametrize("box", [[900.0, 500, 200, 300], [5.0, 5, 90, 80], [1150.0, 850, 49, 49]])
def test_large_pictures_are_cut_and_shrunk(tmp_path: Path, box: list[float]) -> None:
    """Crops of the pack look as those of the picture do, plain and as far as they go."""
    x, y, w, h = box
    joints = np.random.default_rng(0).uniform([x, y], [x + w, y + h], (14, 2))
    labels = {"x": joints[:, 0].tolist(), "y": joints[:, 1].tolist(), "labelled": [True] * 14}
    given = row(0, image=smooth(1200, 900), box=box, **labels)
    pack = packed(tmp_path, [given], "--quality", "100", "--canvas", "512")
    assert pack.sizes.max() <= 512
    picture = cv2.imdecode(np.frombuffer(given["image"], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    sample = Sample(picture, np.array(box), joints, np.ones(14, bool))
    pictures = decoded(pack, torch.device("cpu"))
    turned = Augmentation((0.7, 0.7), 0, 0, False, 0, 0, 0)
    for options in (NONE, turned):
        plain = training_crop(sample, LSP, 96, 1.25, options, (0,))
        draws = Samples(pack).draw(torch.tensor([0]), 1.25, options, generator(0))
        batch = cut(pictures, draws, 96)
        assert np.abs(batch.crops[0].numpy().astype(int) - plain.image).mean() < 3
        assert np.abs(batch.keypoints[0].numpy() - plain.keypoints).max() < 0.5


def test_the_reach_is_what_the_furthest_crop_shows() -> None:
    """A corner of a crop of the default recipe, least magnified, turned and shifted the most."""
    plain = Augmentation()
    angle = np.deg2rad(plain.rotation_degrees)
    side = 1.25 / plain.scale[0] * (np.cos(angle) + np.sin(angle)) + 2 * plain.shift
    assert side <= REACH < side + 0.1


def test_the_best_quality_that_fits_is_found(tmp_path: Path) -> None:
    rows = [row(i, image=smooth(300, 300, i)) for i in range(8)]
    large = packed(tmp_path, rows, "--quality", "95")
    small = packed(tmp_path, rows, "--most-mib", "0.008")
    assert 0.006 * 2**20 < bytes_of(small) <= 0.008 * 2**20
    assert len(small.data) < 0.7 * len(large.data)


@pytest.mark.parametrize(("suffix", "kept"), [(".jpg", True), (".webp", True), (".png", False)])
def test_compact_pictures_stay_as_they_are(tmp_path: Path, suffix: str, kept: bool) -> None:
    """Unless they are cut or shrunk; a PNG would be large."""
    image = cv2.imdecode(np.frombuffer(smooth(200, 150), np.uint8), cv2.IMREAD_COLOR)
    data = cv2.imencode(suffix, image)[1].tobytes()
    whole = row(0, image=data, box=[60.0, 40, 90, 80])
    part = row(1, image=data, box=[20.0, 20, 30, 30])
    pack = packed(tmp_path, [whole, part])
    assert (pack.encoded(0).tobytes() == data) == kept
    assert pack.encoded(1).tobytes() != data
    shrunk = packed(tmp_path, [whole], "--canvas", "100")
    assert shrunk.sizes.tolist() == [[100, 75]]
    anew = packed(tmp_path, [whole], "--format", "jpeg", "--quality", "50")
    assert anew.encoded(0).tobytes() != data


def test_bad_pictures_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = row(2, box=[5000.0, 5000, 10, 10])
    bad = row(1, image=b"no picture")
    pack = packed(tmp_path, [row(0), bad, far, row(3), {**bad, **person(4)}, bad])
    assert len(pack.picture) == len(pack.ends) == 2
    said = capsys.readouterr().err
    assert said.count("figure-1.png") == 1
    assert "pack: 4 samples left out, of which some share a picture" in said
    assert "left out: sample figure-1.png: its picture cannot be decoded" in said
    assert "left out: sample figure-2.png: its box" in said


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ([row(0)], ["--canvas", "30"], "--canvas 30: choose a multiple of 4"),
        ([row(0)], ["--quality", "0"], "--quality 0: choose 1 to 100"),
        ([row(0)], ["--most-samples", "0"], "--most-samples 0: choose 1 to"),
        ([row(0)], ["--most-mib", "-1"], "--most-mib -1"),
        ([row(0)], ["--most-mib", "0.001"], "choose a smaller --canvas"),
        ([row(0, "tune")], [], "no samples in the split 'train'"),
        ([row(0, image=b"x"), row(0, image=b"x")], [], "nothing to pack: sample figure-0.png"),
        ([row(i, image=b"x%d" % i) for i in range(20)] + [row(20)], [], "of 20 of 21 samples"),
    ],
)
def test_what_cannot_be_packed_is_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]],
    flags: list[str],
    message: str,
) -> None:
    table = write_table(tmp_path / "samples.parquet", rows)
    assert main([table, str(tmp_path / "pack.safetensors"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "pack.safetensors").exists()


def test_a_few_of_each_split(tmp_path: Path) -> None:
    rows = [row(i, "tune" if i % 3 == 0 else "train") for i in range(9)]
    pack = packed(tmp_path, rows, "--most-samples", "2")
    assert [len(pack.rows(name)) for name in ("train", "tune")] == [2, 2]


def test_other_skeletons(tmp_path: Path) -> None:
    coco = load_skeleton("coco17")
    table = write_table(tmp_path / "samples.parquet", [row(0, joints=17)], coco)
    assert main([table, str(tmp_path / "pack.safetensors")]) == 0
    assert read_pack(tmp_path / "pack.safetensors").keypoints.shape == (1, 17, 2)


def test_it_needs_no_ray() -> None:
    code = "import sys, pipeline.pack; print({'ray', 'torch'} & set(sys.modules))"
    root = Path(pipeline.__file__).parents[1]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "set()"
