import pytest

from cpm_core.config import PRESETS, CpmConfig, preset
from cpm_core.errors import ConfigError


def test_presets_are_the_three_documented_ones():
    assert list(PRESETS) == ["cpm", "cpm-vgg", "cpm-lite"]
    for name in ("cpm", "cpm-vgg"):
        config = preset(name)
        assert (config.joints, config.stages, config.input_size) == (14, 6, 368)
        assert (config.label_sigma, config.centre_sigma, config.cell_offset) == (7, 21, 3.5)
        assert (config.color_order, config.mean[0], config.std[0]) == ("bgr", 128, 256)
    lite = preset("cpm-lite")
    assert (lite.stages, lite.input_size, lite.map_size, lite.centre_sigma) == (3, 256, 32, 0)
    assert lite.label_sigma == 8  # one cell


def test_changes_to_a_preset():
    assert preset("cpm", joints=16).joints == 16
    with pytest.raises(ConfigError, match="no preset 'cmp'; choose one of cpm, cpm-vgg, cpm-lite"):
        preset("cmp")


def test_other_input_size_keeps_proportions():
    half = preset("cpm").at_size(184)
    assert (half.input_size, half.map_size) == (184, 23)
    assert (half.label_sigma, half.centre_sigma) == (3.5, 10.5)
    assert half.cell_offset == 3.5


BAD = [
    ({"trunk": "resnet"}, "trunk is 'resnet'; choose one of original, vgg, lite"),
    ({"trunk": ["vgg"]}, "trunk is"),
    ({"pooling": "same"}, "choose one of padded, ceil"),
    ({"color_order": "yuv"}, "choose one of rgb, bgr"),
    ({"joints": 0}, "1 to 1000 keypoints"),
    ({"joints": 1001}, "1 to 1000 keypoints"),
    ({"joints": 14.0}, "joints is 14.0; it must be a whole number"),
    ({"joints": True}, "whole number"),
    ({"stages": 0}, "choose 1 to 20"),
    ({"stages": 21}, "choose 1 to 20"),
    ({"stages": "6"}, "stages is '6'; it must be a whole number"),
    ({"input_size": 100}, "multiple of 8"),
    ({"input_size": 0}, "multiple of 8"),
    ({"input_size": 1 << 20}, "up to 4096"),
    ({"trunk": "lite", "input_size": 200}, "multiple of 32"),
    ({"label_sigma": 0}, "label_sigma and std must be positive"),
    ({"label_sigma": float("nan")}, "label_sigma is nan; it must be a number"),
    ({"centre_sigma": -1}, "centre_sigma 0 or positive"),
    ({"centre_sigma": 10**400}, "centre_sigma is"),
    ({"cell_offset": 9}, "cell_offset is 9; choose 0 to 8"),
    ({"cell_offset": None}, "cell_offset is None"),
    ({"mean": [1, 2]}, "mean is .*three numbers"),
    ({"mean": "abc"}, "mean is 'abc'"),
    ({"std": [1, 0, 1]}, "std must be positive"),
    ({"std": [1, float("inf"), 1]}, "three numbers"),
    ({"dropout": 1}, "dropout is 1; choose 0 to below 1"),
    ({"depth": 9}, "unknown network settings: depth"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[str(case[0]) for case in BAD])
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        CpmConfig.from_dict({"trunk": "original"} | change)


@pytest.mark.parametrize(("values", "message"), [({}, "lack trunk"), ([], "are a mapping, not li")])
def test_settings_that_are_no_network_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        CpmConfig.from_dict(values)
