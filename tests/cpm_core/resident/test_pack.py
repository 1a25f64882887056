"""Packs on disk: what is read is what was written, and what is wrong is told."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cpm_core.errors import PackError
from cpm_core.info import FOLDER
from cpm_core.resident.pack import read_pack, write_pack
from cpm_core.resident.pictures import decoded
from tests.cpm_core.resident.packs import figures_pack


@pytest.fixture
def pack(figures):
    return figures_pack(figures)


def test_it_comes_back(pack, tmp_path):
    write_pack(tmp_path / "a.safetensors", pack)
    back = read_pack(tmp_path / "a.safetensors")
    assert back.info == pack.info
    for name, value in vars(pack).items():
        if name != "info":
            np.testing.assert_array_equal(getattr(back, name), value)
            assert getattr(back, name).dtype == value.dtype
    assert back.rows("train").tolist() == [0, 1, 2, 3, 4, 5]
    assert back.rows("tune").tolist() == [6, 7]
    assert back.rows("test").tolist() == []


def test_pictures_are_decoded(pack, figures):
    pictures = decoded(pack, torch.device("cpu"), threads=2)
    assert torch.equal(pictures.tensor[:, 1:65, 1:65], figures.crops)
    (x, y), side = pictures.corners[1].tolist(), 32
    half = pictures.tensor[:, y : y + side, x : x + side].float()
    mean = figures.crops.float().unflatten(1, (32, 2)).unflatten(3, (32, 2)).mean(dim=(2, 4))
    assert (half - mean).abs().max() <= 0.5
    assert (pictures.tensor[:, 0] == 128).all()
    assert (pictures.tensor[:, :, 65:67] == 128).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"picture": p.picture + 6}, "picture holds values that cannot be"),
        (lambda p: {"split": p.split + 2}, "split holds values"),
        (lambda p: {"ends": p.ends[::-1].copy()}, "ends holds values"),
        (lambda p: {"box": -p.box}, "box holds values"),
        (lambda p: {"box": p.box[:, :3]}, r"box is float32 \(8, 3\)"),
        (lambda p: {"keypoints": p.keypoints[:, :5]}, "keypoints is float32"),
        (lambda p: {"labelled": p.labelled[:4]}, "labelled is bool"),
        (lambda p: {"sizes": p.sizes * 2}, "sizes holds values"),
        (lambda p: {"info": replace(p.info, canvas=63)}, "canvas holds values"),
    ],
)
def test_what_does_not_fit_is_refused(pack, tmp_path, change, message):
    with pytest.raises(PackError, match=message):
        write_pack(tmp_path / "a.safetensors", replace(pack, **change(pack)))
    assert not list(tmp_path.iterdir())


def test_other_files_are_refused(tmp_path):
    with pytest.raises(PackError, match="is no pack; write one with"):
        read_pack(FOLDER / "cpm-lite.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"noise" * 99)
    with pytest.raises(PackError, match="not a readable pack"):
        read_pack(tmp_path / "noise.safetensors")
    with pytest.raises(PackError, match="not a readable pack"):
        read_pack(tmp_path / "none.safetensors")


def test_a_damaged_picture_is_named(pack):
    data = pack.data.copy()
    data[pack.ends[1] : pack.ends[2]] = 0
    with pytest.raises(PackError, match="picture 2 of the pack cannot be decoded"):
        decoded(replace(pack, data=data), torch.device("cpu"))
    sizes = pack.sizes.copy()
    sizes[1] = 30
    with pytest.raises(PackError, match="picture 1 of the pack is 64 x 64; it should be 30 x 30"):
        decoded(replace(pack, sizes=sizes), torch.device("cpu"))
