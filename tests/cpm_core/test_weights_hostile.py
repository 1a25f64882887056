"""Hostile weights files: every one is refused in one line that names the file, at no great cost."""

import json
import resource
import struct
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpm_core.config import preset
from cpm_core.errors import WeightsError
from cpm_core.info import WeightsInfo
from cpm_core.person_net.config import PersonNetConfig
from cpm_core.person_net.info import PersonNetInfo
from cpm_core.person_net.net import PersonNet
from cpm_core.person_net.weights import load_person_net, save_person_net
from cpm_core.weights import load_weights, save_weights
from tests.cpm_core.test_weights import COUNTER, OUT, read_header


@pytest.fixture(scope="module")
def good(lively, hands, tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "tiny.safetensors"
    model = lively(preset("cpm-lite", joints=3, stages=2, input_size=64))
    save_weights(path, model, WeightsInfo("tiny", model.config, hands))
    load_weights(path)
    return path


@pytest.fixture(scope="module")
def good_locator(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "locator.safetensors"
    torch.manual_seed(0)
    config = PersonNetConfig(input_size=64)
    save_person_net(path, PersonNet(config).eval(), PersonNetInfo("tiny", config))
    load_person_net(path)
    return path


def parts(path):
    """Header as text, and the tensors' bytes."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return data[8 : 8 + length], data[8 + length :]


def write(path, header, body, length=None):
    """A file from its parts; `length` is what it says of its header, whatever is true."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def refused(path, reason, load=load_weights):
    """The file is refused in one short line, without much memory or time."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(WeightsError, match=reason) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 2000
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    assert time.monotonic() - started < 20


UNREADABLE = "not a readable .safetensors file"


@pytest.mark.parametrize("off", [-1, 1, -8, 8, 10**6, 2**31, 2**63, 2**64 - 1])
def test_a_header_that_lies_about_its_length(good, tmp_path, off):
    header, body = parts(good)
    length = off if off > 2**30 else len(header) + off
    refused(write(tmp_path / "bad.safetensors", header, body, length), UNREADABLE)


def with_entry(good, name, **values):
    """The header with another entry for one tensor."""
    header = read_header(good)
    header[name] = {**header[name], **values}
    return header


@pytest.mark.parametrize(
    "offsets",
    [
        [0, 8],
        [4, 12],
        [8, 0],
        [-8, 0],
        [0, 1 << 62],
        [1 << 63, 1 << 63],
        [0.0, 8.0],
        [0],
        [0, 8, 16],
        "0",
        None,
    ],
    ids=str,
)
def test_offsets_that_overlap_or_lead_elsewhere(good, tmp_path, offsets):
    """Those of a tensor of 8 bytes; the first two are inside another tensor."""
    header = with_entry(good, OUT, data_offsets=offsets)
    refused(write(tmp_path / "bad.safetensors", header, parts(good)[1]), UNREADABLE)


def test_two_tensors_of_the_same_bytes(good, tmp_path):
    header, body = read_header(good), parts(good)[1]
    header["stages.0.out.bias"] = header[OUT]
    refused(write(tmp_path / "bad.safetensors", header, body), UNREADABLE)


@pytest.mark.parametrize(
    "shape",
    [[2**63], [2**32, 2**32], [2**62, 4], [-4], [4, 0], [4.5], "4", [0], [1] * 10_000],
    ids=lambda shape: str(shape)[:30],
)
def test_shapes_that_do_not_fit_the_bytes(good, tmp_path, shape):
    header = with_entry(good, OUT, shape=shape)
    path = write(tmp_path / "bad.safetensors", header, parts(good)[1])
    refused(path, f"{UNREADABLE}|the network needs")


@pytest.mark.parametrize("dtype", ["F128", "C64", "", 5, None, "f32", "F4", "BOOL"])
def test_types_that_are_none(good, tmp_path, dtype):
    header = with_entry(good, OUT, dtype=dtype)
    path = write(tmp_path / "bad.safetensors", header, parts(good)[1])
    refused(path, f"{UNREADABLE}|the network needs")


def test_a_name_that_stands_twice(good, tmp_path):
    """The library takes the last one; whichever it takes, it is a tensor of the network."""
    header, body = parts(good)
    entry = json.dumps({"dtype": "F16", "shape": [4], "data_offsets": [0, 8]})
    doubled = header.rstrip()[:-1] + f', "{OUT}": {entry}}}'.encode()
    refused(write(tmp_path / "bad.safetensors", doubled, body), f"{UNREADABLE}|the network needs")


def test_metadata_that_stands_twice(good, tmp_path):
    header, body = parts(good)
    doubled = header.rstrip()[:-1] + b', "__metadata__": {"posemill": "{}"}}'
    path = write(tmp_path / "bad.safetensors", doubled, body)
    refused(path, f"{UNREADABLE}|unusable metadata")


def test_a_giant_header(good, tmp_path):
    """120 MB of spaces; the library allows 100 MB."""
    header, body = parts(good)
    path = write(tmp_path / "bad.safetensors", header + b" " * 120_000_000, body)
    refused(path, UNREADABLE)


def test_thirty_thousand_tensors(good, tmp_path):
    header = read_header(good)
    end = len(parts(good)[1])
    header |= {
        f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [end, end]} for i in range(30_000)
    }
    refused(write(tmp_path / "bad.safetensors", header, parts(good)[1]), "does not belong")


@pytest.mark.parametrize("depth", [100, 1000, 100_000])
def test_a_header_that_nests_deeply(good, tmp_path, depth):
    header = b'{"a":' * depth + b"1" + b"}" * depth
    refused(write(tmp_path / "bad.safetensors", header, parts(good)[1]), UNREADABLE)


def with_metadata(path, good, text):
    header = read_header(good)
    header["__metadata__"] = {"posemill": text}
    return write(path, header, parts(good)[1])


NUMBERS = ["NaN", "Infinity", "-Infinity", "1e400", "-1", "0", "1" + "0" * 400, "1" * 5000, "true"]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: n[:12])
@pytest.mark.parametrize(
    "key", ["joints", "stages", "input_size", "centre_sigma", "cell_offset", "label_sigma"]
)
def test_numbers_that_no_network_has(good, tmp_path, key, number):
    document = json.loads(read_header(good)["__metadata__"]["posemill"])
    if key not in document["config"]:
        pytest.skip(f"no {key} in this release")
    if number == "0" and key in ("centre_sigma", "cell_offset"):
        pytest.skip("that is a value")
    document["config"][key] = "HERE"
    path = tmp_path / "bad.safetensors"
    with_metadata(path, good, json.dumps(document).replace('"HERE"', number))
    refused(path, "unusable metadata|joints")


@pytest.mark.parametrize("depth", [500, 5000, 80_000])
@pytest.mark.parametrize("key", ["config", "skeleton", "metrics", "name", "box_factor", "version"])
def test_metadata_that_nests_deeply(good, tmp_path, key, depth):
    document = json.loads(read_header(good)["__metadata__"]["posemill"])
    document[key] = "HERE"
    nest = "[" * depth + "]" * depth
    path = tmp_path / "bad.safetensors"
    with_metadata(path, good, json.dumps(document).replace('"HERE"', nest))
    if key == "name" and depth == 500:
        assert len(load_weights(path).info.name) == 1000
        return
    refused(path, "unusable metadata|in its metadata")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["lite", "vgg", "original", "pose", "person-net", "last"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
FUZZ = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def problem(path, load):
    """Why a file is refused; `f"{path}: "` where it is not. Nothing else may be raised."""
    try:
        load(path).model()
    except WeightsError as error:
        return str(error)
    return f"{path}: "


@settings(FUZZ, max_examples=150)
@given(data=st.data())
def test_any_entry_of_the_metadata_replaced(good, good_locator, tmp_path, data):
    """Top level, network and skeleton; of both kinds of network."""
    whole, load = data.draw(
        st.sampled_from([(good, load_weights), (good_locator, load_person_net)])
    )
    document = json.loads(read_header(whole)["__metadata__"]["posemill"])
    places = [document, *(v for v in document.values() if isinstance(v, dict))]
    place = data.draw(st.sampled_from(places))
    key = data.draw(st.sampled_from(sorted(place)) if place else st.just("new"))
    place[key] = data.draw(JSON)
    path = with_metadata(tmp_path / "bad.safetensors", whole, json.dumps(document))
    assert problem(path, load).startswith(f"{path}: ")


@settings(FUZZ, max_examples=300)
@given(
    which=st.booleans(),
    cut=st.none() | st.floats(0, 1),
    patches=st.lists(
        st.tuples(st.floats(0, 1), st.booleans(), st.binary(min_size=1, max_size=4)),
        min_size=1,
        max_size=4,
    ),
)
def test_any_bytes_replaced(good, good_locator, tmp_path, which, cut, patches):
    """Most in the header, where all is decided."""
    whole, load = (good, load_weights) if which else (good_locator, load_person_net)
    data = bytearray(whole.read_bytes())
    header = 8 + len(parts(whole)[0])
    for place, in_header, value in patches:
        at = int(place * ((header if in_header else len(data)) - len(value)))
        data[at : at + len(value)] = value
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data if cut is None else data[: int(cut * len(data))])
    found = problem(path, load)
    assert found.startswith(f"{path}: ")
    assert cut in (None, 1) or found != f"{path}: "


def test_a_file_that_was_not_changed_is_usable(good, good_locator):
    """The fuzz starts from good files."""
    assert problem(good, load_weights) == f"{good}: "
    assert problem(good_locator, load_person_net) == f"{good_locator}: "
    assert COUNTER in load_weights(good).tensors
