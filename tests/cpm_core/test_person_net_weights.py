import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from cpm_core.errors import ConfigError, WeightsError
from cpm_core.header import file_sha256
from cpm_core.info import FOLDER, find_weights
from cpm_core.person_net.config import PersonNetConfig
from cpm_core.person_net.info import PersonNetInfo
from cpm_core.person_net.net import PersonNet
from cpm_core.person_net.weights import load_person_net, save_person_net
from cpm_core.weights import load_weights

BIAS = "stages.1.out.bias"


@pytest.fixture(scope="module")
def info():
    return PersonNetInfo(
        "tiny",
        PersonNetConfig(input_size=64),
        threshold=0.25,
        training_data="none",
        licence="CC0",
        metrics={"recall": 0.5},
    )


@pytest.fixture(scope="module")
def model(info):
    torch.manual_seed(0)
    return PersonNet(info.config).eval()


@pytest.fixture(scope="module")
def good(model, info, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_person_net(path, model, info)
    return path


def metadata_of(path):
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return json.loads(header["__metadata__"]["posemill"])


def rewrite(good, path, tensors=None, metadata=None):
    """The good file with changes: tensors replaced (None drops), metadata entries too."""
    state = load_file(good) | (tensors or {})
    document = metadata_of(good) | (metadata or {})
    kept = {name: value for name, value in state.items() if value is not None}
    text = json.dumps({key: value for key, value in document.items() if value is not None})
    save_file(kept, path, metadata={"posemill": text})


def test_round_trip(good, model, info):
    weights = load_person_net(good)
    assert weights.info == info
    assert weights.sha256 == file_sha256(good)
    again = weights.model()
    assert not again.training
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        for ours, theirs in zip(again(images), model(images), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)


def test_metadata(good):
    assert set(metadata_of(good)) == {
        "version",
        "kind",
        "name",
        "config",
        "threshold",
        "training_data",
        "licence",
        "metrics",
    }
    assert metadata_of(good)["kind"] == "person-net"


CONFIG = {
    "input_size": 64,
    "blocks": [1, 2],
    "mean": [1, 2, 3],
    "std": [1, 2, 3],
}


@pytest.mark.parametrize(
    ("tensors", "metadata", "reason"),
    [
        ({BIAS: None}, {}, f"tensor {BIAS} is missing"),
        ({"extra": torch.zeros(3)}, {}, "tensor extra does not belong to this network"),
        ({BIAS: torch.zeros(4)}, {}, r"is F32 \(4,\), the network needs F32 \(5,\)"),
        ({BIAS: torch.zeros(5, dtype=torch.int8)}, {}, "is I8"),
        ({BIAS: torch.full((5,), float("nan"))}, {}, "holds values that are not finite"),
        ({}, {"version": 2}, "version is 2 in its metadata; this release reads 1"),
        ({}, {"version": None}, "unusable metadata.*'version'"),
        ({}, {"kind": "segmenter"}, "kind 'segmenter', not a person-net"),
        ({}, {"kind": None}, "kind 'pose', not a person-net"),
        ({}, {"threshold": 0}, "threshold is 0.0"),
        ({}, {"threshold": "high"}, "unusable metadata"),
        ({}, {"threshold": float("nan")}, "threshold is nan"),
        ({}, {"metrics": [1]}, "unusable metadata"),
        ({}, {"config": 5}, "are a mapping"),
        ({}, {"config": CONFIG | {"depth": 3}}, "unknown person-net settings: depth"),
        ({}, {"config": {"input_size": 64}}, "missing person-net settings: blocks, mean, std"),
        ({}, {"config": CONFIG | {"input_size": 65}}, "multiple of 32"),
        ({}, {"config": CONFIG | {"input_size": 1 << 40}}, "32 to 4096"),
        ({}, {"config": CONFIG | {"input_size": True}}, "multiple of 32"),
        ({}, {"config": CONFIG | {"blocks": []}}, "whole numbers"),
        ({}, {"config": CONFIG | {"blocks": [10**30]}}, "whole numbers"),
        ({}, {"config": CONFIG | {"blocks": [2, 2]}}, "does not belong|is missing"),
        ({}, {"config": CONFIG | {"mean": [1, 2]}}, "three numbers"),
        ({}, {"config": CONFIG | {"std": [1, 0, 1]}}, "must be positive"),
        ({}, {"licence": "x" * 300_000}, "metadata is longer than"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_files_that_do_not_fit(good, tmp_path, tensors, metadata, reason):
    path = tmp_path / "bad.safetensors"
    rewrite(good, path, tensors, metadata)
    with pytest.raises(WeightsError, match=reason) as caught:
        load_person_net(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "content", [b"", b"not weights", struct.pack("<Q", 1 << 60), struct.pack("<Q", 2) + b"{}"]
)
def test_other_files(tmp_path, content):
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"other\.safetensors"):
        load_person_net(path)


def test_deeply_nested_metadata(tmp_path):
    path = tmp_path / "deep.safetensors"
    save_file({}, path, metadata={"posemill": "[" * 100_000})
    with pytest.raises(WeightsError, match=r"deep\.safetensors"):
        load_person_net(path)


def test_a_missing_file_and_an_unwritable_one(model, info, tmp_path):
    with pytest.raises(WeightsError, match="no person-net weights at nowhere"):
        load_person_net("nowhere")
    with pytest.raises(WeightsError, match="cannot be written"):
        save_person_net(tmp_path / "no" / "folder.safetensors", model, info)


def test_values_that_fp16_cannot_hold_are_not_written(model, info, tmp_path):
    kept = model.stages[1].out.bias.data.clone()
    model.stages[1].out.bias.data[0] = 1e6
    with pytest.raises(WeightsError, match=f"{BIAS} is not finite"):
        save_person_net(tmp_path / "w.safetensors", model, info)
    model.stages[1].out.bias.data = kept


@pytest.mark.parametrize("threshold", [0, 1, -1, float("nan")])
def test_thresholds(info, threshold):
    with pytest.raises(ConfigError, match="threshold"):
        PersonNetInfo("x", info.config, threshold=threshold)


def test_pose_weights_are_no_person_net():
    with pytest.raises(WeightsError, match="kind 'pose', not a person-net"):
        load_person_net(FOLDER / "cpm-lite.safetensors")


def test_a_person_net_is_no_pose_network(good):
    """Neither by its path nor by its name, and it is not offered as one."""
    with pytest.raises(WeightsError, match="holds a person-net, which finds people"):
        load_weights(good)
    with pytest.raises(WeightsError, match=r"finds people.*choose it with --people person-net"):
        find_weights("person-net")
    with pytest.raises(WeightsError) as caught:
        find_weights("no-such-weights")
    assert "(cpm-lite)" in str(caught.value)
