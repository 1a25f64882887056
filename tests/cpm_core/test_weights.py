import hashlib
import json
import os
import resource
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

import cpm_core
from cpm_core.config import preset
from cpm_core.errors import WeightsError
from cpm_core.header import file_sha256
from cpm_core.info import FOLDER, WeightsInfo, find_weights
from cpm_core.model import Cpm
from cpm_core.weights import load_weights, read_checkpoint, save_weights


@pytest.fixture(scope="module")
def model(lively, hands):
    return lively(preset("cpm-lite", joints=3, stages=2, input_size=64))


@pytest.fixture(scope="module")
def info(model, hands):
    return WeightsInfo(
        "tiny",
        model.config,
        hands,
        box_factor=1.5,
        training_data="none",
        licence="CC0",
        metrics={"pck": 12.5},
    )


@pytest.fixture(scope="module")
def good(model, info, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, model, info)
    return path


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 0), (torch.float16, 2e-2), (torch.bfloat16, 2e-1)]
)
def test_round_trip(model, info, tmp_path, dtype, tolerance):
    path = tmp_path / "w.safetensors"
    save_weights(path, model, info, dtype)
    assert list(tmp_path.iterdir()) == [path]
    weights = load_weights(str(path))
    assert weights.info == info
    assert weights.sha256 == file_sha256(path)
    assert len(weights.sha256) == 64
    again = weights.model()
    assert not again.training
    images = torch.randint(0, 256, (2, 3, 64, 64)).byte()
    with torch.no_grad():
        for ours, theirs in zip(again(images), model(images), strict=True):
            scale = float(theirs.abs().max())
            torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * scale)
    counters = [v for k, v in again.state_dict().items() if k.endswith("num_batches_tracked")]
    assert all(value.dtype == torch.int64 for value in counters)


def test_metadata_says_all_that_the_design_lists(good):
    metadata = json.loads(read_header(good)["__metadata__"]["posemill"])
    assert set(metadata) == {
        "version",
        "name",
        "config",
        "skeleton",
        "background",
        "box_factor",
        "training_data",
        "licence",
        "metrics",
    }
    assert {"pooling", "cell_offset", "mean", "std", "color_order", "input_size"} <= set(
        metadata["config"]
    )
    assert metadata["background"] == "last"
    assert metadata["skeleton"]["keypoints"] == ["left_hand", "right_hand", "head_top"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_values_that_do_not_fit_are_not_written(model, info, tmp_path, value):
    """1e6 is too large for float16, the default."""
    path = tmp_path / "w.safetensors"
    kept = model.stages[0].out.bias.data.clone()
    model.stages[0].out.bias.data[1] = value
    try:
        with pytest.raises(WeightsError, match=r"stages.0.out.bias is not finite as torch.float16"):
            save_weights(path, model, info)
    finally:
        model.stages[0].out.bias.data = kept
    assert not path.exists()


def test_unwritable_file(model, info, tmp_path):
    with pytest.raises(WeightsError, match="nowhere"):
        save_weights(tmp_path / "nowhere" / "w.safetensors", model, info)


def read_header(path):
    with path.open("rb") as file:
        return json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))


def rewrite(good, path, tensors=None, metadata=None):
    """The good file with changes: tensors replaced (None drops), metadata entries too."""
    state = load_file(good)
    for name, value in (tensors or {}).items():
        if value is None:
            del state[name]
        else:
            state[name] = value
    document = json.loads(read_header(good)["__metadata__"]["posemill"])
    for key, value in (metadata or {}).items():
        if value is None:
            del document[key]
        else:
            document[key] = value
    save_file(state, path, metadata={"posemill": json.dumps(document)})


OUT = "stages.1.layers.0.out.bias"
COUNTER = "shared.stem.1.num_batches_tracked"


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({OUT: None}, f"tensor {OUT} is missing"),
        ({"extra": torch.zeros(3)}, "tensor extra does not belong to this network"),
        ({OUT: torch.zeros(5)}, rf"{OUT} is F32 \(5,\), the network needs F32 \(4,\)"),
        ({OUT: torch.zeros(2, 2)}, r"\(2, 2\)"),
        ({OUT: torch.zeros(4, dtype=torch.float64)}, "is F64"),
        ({OUT: torch.zeros(4, dtype=torch.int8)}, "is I8"),
        ({OUT: torch.zeros(4).to(torch.float8_e4m3fn)}, "is F8_E4M3"),
        ({COUNTER: torch.tensor(1.5)}, "the network needs I64"),
        ({OUT: torch.tensor([0, float("nan"), 0, 0])}, f"{OUT} holds values that are not finite"),
        ({OUT: torch.tensor([0, float("inf"), 0, 0]).half()}, "not finite"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_tensors_that_do_not_fit(good, tmp_path, tensors, reason):
    path = tmp_path / "bad.safetensors"
    rewrite(good, path, tensors)
    with pytest.raises(WeightsError, match=reason) as caught:
        load_weights(str(path))
    assert str(caught.value).startswith(f"{path}: ")


LITE = {"trunk": "lite", "joints": 3, "stages": 2, "input_size": 64, "centre_sigma": 0}


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"version": 2}, "version is 2 in its metadata; this release reads 1"),
        ({"version": None}, "unusable metadata.*'version'"),
        ({"background": "first"}, "background is 'first'"),
        ({"config": LITE | {"joints": 4}}, "4 joints, but its skeleton has 3 keypoints"),
        ({"config": LITE | {"depth": 3}}, "unknown network settings: depth"),
        ({"config": LITE | {"stages": 2.5}}, "whole number"),
        ({"config": LITE | {"stages": 10**30}}, "choose 1 to 20"),
        ({"config": LITE | {"stages": 3}}, "is missing"),
        ({"config": LITE | {"mean": [1, 2]}}, "three numbers"),
        ({"config": LITE | {"std": [0, 0, 0]}}, "must be positive"),
        ({"config": LITE | {"input_size": 1 << 40}}, "multiple of 32 up to 4096"),
        ({"config": 5}, "are a mapping"),
        ({"config": None}, "unusable metadata"),
        ({"skeleton": []}, "not a skeleton in JSON"),
        ({"skeleton": {"keypoints": ["a"]}}, "not a skeleton in JSON"),
        ({"name": None}, "unusable metadata"),
        ({"box_factor": 0}, "box_factor 0.0 is outside"),
        ({"box_factor": float("nan")}, "box_factor nan is outside"),
        ({"box_factor": "wide"}, "unusable metadata"),
        ({"box_factor": 10**400}, "unusable metadata"),
        ({"metrics": [1]}, "unusable metadata"),
        ({"metrics": {"pck": []}}, "unusable metadata"),
        ({"licence": "x" * 300_000}, "metadata is longer than"),
    ],
    ids=lambda v: v if isinstance(v, str) else str(v)[:40],
)
def test_metadata_that_does_not_fit(good, tmp_path, metadata, reason):
    path = tmp_path / "bad.safetensors"
    rewrite(good, path, metadata=metadata)
    with pytest.raises(WeightsError, match=reason) as caught:
        load_weights(str(path))
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '"x"', "null", "[" * 200_000, "{}"], ids=lambda t: t[:5]
)
def test_metadata_that_is_no_document(good, tmp_path, text):
    path = tmp_path / "bad.safetensors"
    save_file(load_file(good), path, metadata={"posemill": text})
    with pytest.raises(WeightsError, match=r"bad.safetensors: unusable metadata"):
        load_weights(str(path))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "not a readable .safetensors file"),
        (lambda data: data[:5], "not a readable .safetensors file"),
        (lambda data: data[:1000], "not a readable .safetensors file"),
        (lambda data: data[:-1000], "not a readable .safetensors file"),
        (lambda data: data + b"more", "not a readable .safetensors file"),
        (lambda data: struct.pack("<Q", 1 << 60) + data[8:], "not a readable .safetensors file"),
        (lambda data: b"PK\x03\x04" + data[4:], "not a readable .safetensors file"),
        (lambda data: data.replace(b'"posemill"', b'"elsewher"', 1), "has no 'posemill' metadata"),
    ],
    ids=["empty", "5 bytes", "header cut", "tail cut", "tail", "header length", "zip", "foreign"],
)
def test_damaged_files(good, tmp_path, damage, reason):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(damage(good.read_bytes()))
    with pytest.raises(WeightsError, match=reason) as caught:
        load_weights(str(path))
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_that_holds_too_much_costs_no_memory(good, tmp_path):
    """The tensor is 8 GB of holes in a sparse file."""
    path = tmp_path / "bad.safetensors"
    count = 2_000_000_000
    header = read_header(good)
    entry = {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}
    text = json.dumps({"__metadata__": header["__metadata__"], OUT: entry}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + 4 * count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=r"bad.safetensors: tensor .* is missing"):
        load_weights(str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_preset_without_weights_says_where_they_come_from():
    if (FOLDER / "cpm.safetensors").exists():
        pytest.skip("weights for cpm are shipped")
    with pytest.raises(WeightsError) as caught:
        cpm_core.load("cpm")
    for part in ("posemill train --preset cpm", "python -m cpm_core.convert", ".safetensors"):
        assert part in str(caught.value)


def test_unknown_name_lists_what_is_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr("cpm_core.info.FOLDER", tmp_path)
    with pytest.raises(WeightsError, match=r"no weights 'cpm-light'.*\(none\)"):
        load_weights("cpm-light")
    for name in ("cpm-one", "cpm-two"):
        (tmp_path / f"{name}.safetensors").touch()
    with pytest.raises(WeightsError, match=r"\(cpm-one, cpm-two\)"):
        load_weights("cpm-light")
    with pytest.raises(WeightsError, match="shipped: cpm-one, cpm-two"):
        load_weights("cpm-vgg")
    assert find_weights("cpm-one") == tmp_path / "cpm-one.safetensors"


def test_own_file_is_found_by_its_path(good, monkeypatch):
    assert find_weights(str(good)) == good
    monkeypatch.chdir(good.parent)
    assert find_weights(good.name).resolve() == good


def test_every_shipped_file_is_usable():
    """The locator among them has its own reader: test_person_net_weights.py."""
    for path in FOLDER.glob("cpm*.safetensors"):
        assert load_weights(path.stem).info.name == path.stem


class Trap:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"a": 3}},
        {"state_dict": [1]},
        [1, 2],
        "text",
        {1: torch.zeros(1)},
        {"state_dict": {"a": torch.zeros(1)}, "other": 1} | {"state_dict": None},
    ],
    ids=["number", "list", "a list", "a string", "key", "none"],
)
def test_checkpoints_without_a_state_dict(tmp_path, content):
    path = tmp_path / "c.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"c.pth: holds no state_dict of tensors"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"junk", b"\x80\x02.", b"PK\x03\x04" + bytes(50)])
def test_checkpoints_that_are_none(tmp_path, content):
    path = tmp_path / "c.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"c.pth: cannot be read as tensors only"):
        read_checkpoint(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path, sprung = tmp_path / "c.pth", tmp_path / "sprung"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "trap": Trap(sprung)}, path)
    with pytest.raises(WeightsError, match="nothing else is read"):
        read_checkpoint(path)
    assert not sprung.exists()


def test_checkpoint_with_and_without_state_dict(tmp_path):
    path = tmp_path / "c.pth"
    for content in ({"a": torch.ones(2)}, {"epoch": 3, "state_dict": {"a": torch.ones(2)}}):
        torch.save(content, path)
        assert list(read_checkpoint(path)) == ["a"]


def test_state_dict_keys_of_lite_do_not_change():
    """Published weights and checkpoints of running trainings depend on them."""
    with torch.device("meta"):
        state = Cpm(preset("cpm-lite")).state_dict()
    for key in (
        "shared.stem.0.weight",
        "shared.blocks.0.layers.1.1.running_mean",
        "shared.blocks.14.layers.2.0.weight",
        "shared.lateral.2.1.bias",
        "stages.0.mix.0.weight",
        "stages.0.blocks.0.depthwise.0.weight",
        "stages.2.layers.0.blocks.2.pointwise.1.num_batches_tracked",
        "stages.2.layers.0.out.bias",
    ):
        assert key in state
    every = repr([(name, tuple(value.shape)) for name, value in state.items()])
    assert hashlib.md5(every.encode()).hexdigest() == "52c3bd276df8fc1154eb61e300abc1cd"
