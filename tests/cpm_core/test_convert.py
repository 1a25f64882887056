"""A checkpoint of the PyTorch port, made here by its own layer table, becomes our weights."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import cpm_core
from cpm_core.config import preset
from cpm_core.convert import convert, main
from cpm_core.errors import WeightsError
from cpm_core.skeleton import load_skeleton
from cpm_core.weights import load_weights

STAGES, JOINTS = 3, 14
MAPS = JOINTS + 1


def port_layers():
    """Name -> (outputs, inputs, kernel), as in the port's `cpm_model.py`, k = 14."""
    layers = {}
    for stage in (1, 2):
        for i, inputs in enumerate((3, 128, 128), start=1):
            layers[f"conv{i}_stage{stage}"] = (128, inputs, 9)
    layers["conv4_stage1"] = (32, 128, 5)
    layers["conv5_stage1"] = (512, 32, 9)
    layers["conv6_stage1"] = (512, 512, 1)
    layers["conv7_stage1"] = (MAPS, 512, 1)
    for stage in range(2, STAGES + 1):
        layers["conv4_stage2" if stage == 2 else f"conv1_stage{stage}"] = (32, 128, 5)
        layers[f"Mconv1_stage{stage}"] = (128, 32 + MAPS + 1, 11)
        layers[f"Mconv2_stage{stage}"] = (128, 128, 11)
        layers[f"Mconv3_stage{stage}"] = (128, 128, 11)
        layers[f"Mconv4_stage{stage}"] = (128, 128, 1)
        layers[f"Mconv5_stage{stage}"] = (MAPS, 128, 1)
    return layers


@pytest.fixture(scope="module")
def state():
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, (outputs, inputs, kernel) in port_layers().items():
        spread = (2 / (inputs * kernel * kernel)) ** 0.5
        shape = (outputs, inputs, kernel, kernel)
        tensors[f"{name}.weight"] = spread * torch.randn(shape, generator=generator)
        tensors[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    return tensors


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory):
    """As the port saves it: DataParallel's prefix, in a dictionary with other things."""
    path = tmp_path_factory.mktemp("port") / "cpm_latest.pth.tar"
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"iter": 62500, "state_dict": prefixed}, path)
    return path


def port(state, image, centre_map):
    """The port's forward: image (B, 3, S, S) BGR, (x - 128) / 256; maps with background first."""

    def conv(name, x, relu=True):
        weight = state[f"{name}.weight"]
        y = F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)
        return F.relu(y) if relu else y

    def features(stage):
        x = image
        for i in (1, 2, 3):
            x = F.max_pool2d(conv(f"conv{i}_stage{stage}", x), 3, stride=2, padding=1)
        return x

    x = features(1)
    for i in (4, 5, 6):
        x = conv(f"conv{i}_stage1", x)
    maps = [conv("conv7_stage1", x, relu=False)]
    pool3, centre = features(2), F.avg_pool2d(centre_map, 9, stride=8, padding=1)
    for stage in range(2, STAGES + 1):
        feature = conv("conv4_stage2" if stage == 2 else f"conv1_stage{stage}", pool3)
        x = torch.cat([feature, maps[-1], centre], dim=1)
        for i in (1, 2, 3, 4):
            x = conv(f"Mconv{i}_stage{stage}", x)
        maps.append(conv(f"Mconv5_stage{stage}", x, relu=False))
    return maps


def test_maps_are_the_ports_with_the_background_moved_last(checkpoint, state):
    model, info = convert(checkpoint, load_skeleton("lsp14"))
    rgb = torch.randint(0, 256, (2, 3, 64, 64)).byte()
    bgr = (rgb.flip(1).float() - 128) / 256
    # The port's centre map at 368 px has a sigma of 3 px around (184, 184).
    place = (torch.arange(64) - 32.0) ** 2
    gauss = torch.exp(-(place[:, None] + place[None, :]) / (2 * (3 * 64 / 368) ** 2))
    with torch.no_grad():
        expected = port(state, bgr, gauss.expand(2, 1, -1, -1))
        found = model(rgb)
    assert len(found) == STAGES
    for ours, theirs in zip(found, expected, strict=True):
        joints_first = torch.cat([theirs[:, 1:], theirs[:, :1]], dim=1)
        torch.testing.assert_close(ours, joints_first, rtol=1e-3, atol=1e-4)
        assert theirs.std() > 0.01
    assert (info.name, info.skeleton.name) == ("cpm_latest", "lsp14")
    assert "cpm_latest.pth.tar" in info.training_data


def test_the_ports_conventions_are_recorded(checkpoint):
    config = convert(checkpoint, load_skeleton("lsp14"))[1].config
    assert config == preset(
        "cpm", stages=3, label_sigma=24.0, centre_sigma=3.0, cell_offset=0.0, dropout=0.0
    )
    assert (config.pooling, config.color_order, config.input_size) == ("padded", "bgr", 368)


def test_command_line_writes_weights_that_load(checkpoint, tmp_path, capsys):
    output = tmp_path / "port.safetensors"
    assert main([str(checkpoint), str(output)]) == 0
    assert "3 stages, 14 joints (lsp14)" in capsys.readouterr().out
    estimator = cpm_core.load(str(output), device="cpu")
    assert estimator.info.config.cell_offset == 0
    model = convert(checkpoint, load_skeleton("lsp14"))[0]
    loaded = load_weights(output)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.tensors[name], value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.pth.tar", "x.safetensors"], "absent.pth.tar: cannot be read"),
        (["{checkpoint}", "x.safetensors", "--skeleton", "mpii16"], "16 joints need"),
        (["{checkpoint}", "x.safetensors", "--skeleton", "mpii15"], "mpii15"),
        (["{checkpoint}", "nowhere/x.safetensors"], "cannot be written"),
    ],
)
def test_command_line_says_what_is_wrong(
    checkpoint, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert main([a.format(checkpoint=checkpoint) for a in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Mconv3_stage2.weight": None}, "Mconv3_stage2.weight is missing"),
        ({"conv1_stage1.bias": None}, "conv1_stage1.bias is missing"),
        ({"Mconv5_stage2.weight": None}, "Mconv"),
        ({"Mconv1_stage2.weight": torch.zeros(128, 47, 11, 11)}, r"14 joints need.*\(128, 48, "),
        ({"Mconv1_stage2.weight": torch.zeros(7)}, r"is torch.float32 \(7,\)"),
        ({"conv7_stage1.bias": torch.tensor(1.0)}, r"is torch.float32 \(\)"),
        ({"conv7_stage1.bias": torch.zeros(15, dtype=torch.complex64)}, "is torch.complex64"),
        ({"model0.conv.weight": torch.zeros(3)}, "model0.conv.weight is not one of the port's"),
        ({"conv1_stage1.scale": torch.zeros(3)}, "conv1_stage1.scale is not one of the port's"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_checkpoints_that_do_not_fit(state, tmp_path, changes, message):
    path = tmp_path / "bad.pth.tar"
    torch.save({k: v for k, v in (state | changes).items() if v is not None}, path)
    with pytest.raises(WeightsError, match=message) as caught:
        convert(path, load_skeleton("lsp14"))
    assert str(caught.value).startswith(f"{path}: ")


def test_keypoints_of_the_ports_weights_do_not_depend_on_mirroring(checkpoint, tmp_path):
    """Its cells are centred at 8 g, so mirrored maps need a shift; seven pixels without it."""
    output = tmp_path / "port.safetensors"
    main([str(checkpoint), str(output)])
    estimator = cpm_core.load(str(output), device="cpu", flip=True)
    skeleton = load_skeleton("lsp14")
    points = np.random.default_rng(0).uniform(100, 260, (1, 14, 2))

    def ideal(images):
        # A network that has learned the port's labels without a flaw, mirrored or not.
        from cpm_core.targets import belief_maps

        place = torch.tensor(points).float()
        if images[0, 0, 0, 0] > 100:
            place = torch.stack([367 - place[..., 0], place[..., 1]], dim=-1)
            place = place[:, skeleton.flip_order]
        return [belief_maps(place, torch.ones(1, 14, dtype=torch.bool), 46, 24.0, 0.0)]

    estimator.model = ideal
    crops = np.zeros((1, 1, 368, 368, 3), np.uint8)
    crops[:, :, :, -1] = 255  # on the right; on the left when mirrored
    found = estimator.estimate_crops(crops)
    assert np.abs(found[..., :2] - points).max() < 0.5
