"""Shared fixtures: real pictures and fixtures beside the checkout, and networks that tests need."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from cpm_core.config import CpmConfig, preset
from cpm_core.draw import rgb
from cpm_core.info import WeightsInfo
from cpm_core.model import Cpm
from cpm_core.recipe import Phase, Recipe
from cpm_core.skeleton import Skeleton, load_skeleton
from cpm_core.training import Batch, Fit
from cpm_core.weights import save_weights

SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small tensors gain nothing from threads, and threads that wait for busy cores lose much."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared():
    """Function: path of something under the project's `shared` folder; skips where it is absent."""

    def find(*parts):
        path = SHARED.joinpath(*parts)
        if not path.exists():
            pytest.skip(f"{path} is not here")
        return path

    return find


@pytest.fixture(scope="session")
def lively():
    """Function: a network in eval mode with random weights whose activations neither die nor blow
    up, unlike those of the training start."""

    def build(config):
        model = Cpm(config)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=0.1)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.1, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        return model.eval()

    return build


HANDS = Skeleton(
    name="hands",
    keypoints=("left_hand", "right_hand", "head_top"),
    limbs=((0, 2), (1, 2)),
    flip_pairs=((0, 1),),
    oks_sigmas=(0.06, 0.06, 0.08),
    limb_colors=("#ff0000", "#00ff00"),
)


@pytest.fixture(scope="session")
def dots_file(tmp_path_factory):
    """Weights that were not learned but written down: a network that finds coloured dots.

    `head_top` is where a green dot is. `left_hand` is two cells (16 px) to the right of a red dot
    and `right_hand` two cells to the left, so that mirroring a picture swaps them.
    """
    config = CpmConfig("vgg", joints=3, stages=2, input_size=64)
    model = Cpm(config)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for conv in convs:
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
        middle = conv.kernel_size[0] // 2
        for channel in range(3):
            conv.weight.data[channel, channel, middle, middle] = 1
    # The first layer has blue, green, red in and makes red dots channel 0, green dots channel 1.
    first = convs[0].weight.data[:, :, 1, 1]
    first[0], first[1], first[2] = torch.tensor([[-1, -1, 1], [-1, 1, -1], [0, 0, 0]])
    # Two layers at stride 8 smooth: a dot of one cell becomes a peak five cells wide.
    line = torch.tensor([1.0, 2, 1]) / 4
    trunk = [m for m in model.shared if isinstance(m, nn.Conv2d)]
    for conv in trunk[-2:]:
        for channel in range(3):
            conv.weight.data[channel, channel] = line[:, None] * line[None, :]
    # The last layer of stage 1: left, right from red, head from green; background has a bias only.
    head = model.stages[0].layers[-1]
    head.weight.data[:, :3, 0, 0] = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]])
    refine = [m for m in model.stages[1].layers if isinstance(m, nn.Conv2d)]
    for channel, shift in ((0, -2), (1, 2)):
        refine[0].weight.data[channel, channel] = 0
        refine[0].weight.data[channel, channel, 3, 3 + shift] = 1
    for stage in model.stages:
        stage.layers[-1].bias.data[3] = 1
    path = tmp_path_factory.mktemp("dots") / "dots.safetensors"
    save_weights(path, model, WeightsInfo("dots", config, HANDS, box_factor=1.0))
    return path


@pytest.fixture(scope="session")
def dots_picture():
    """Function: a grey RGB picture (H, W, 3) with a red and a green dot at (x, y)."""

    def draw(red, green, width=64, height=64, radius=2.0):
        picture = np.full((height, width, 3), 128, np.uint8)
        for (x, y), color in ((red, (255, 0, 0)), (green, (0, 255, 0))):
            place = round(x * 16), round(y * 16)
            cv2.circle(picture, place, round(radius * 16), color, -1, cv2.LINE_AA, 4)
        return picture

    return draw


@pytest.fixture(scope="session")
def hands():
    return HANDS


def stick_figures(count, size=64):
    """Plain crops (count, size, size, 3) of drawn LSP figures with keypoints (count, 14, 2)."""
    pose = [(40, 90), (42, 70), (44, 52), (54, 52), (56, 70), (58, 90), (25, 55)]
    pose += [(30, 42), (40, 28), (58, 28), (68, 42), (72, 55), (49, 26), (49, 10)]
    rng = np.random.default_rng(0)
    skeleton = load_skeleton("lsp14")
    crops = np.full((count, size, size, 3), 120, np.uint8)
    keypoints = (np.array(pose) + rng.normal(0, 4, (count, 14, 2))) * size / 100
    for crop, points in zip(crops, keypoints, strict=True):
        for (a, b), color in zip(skeleton.limbs, skeleton.limb_colors, strict=True):
            ends = (tuple(np.rint(points[joint]).astype(int).tolist()) for joint in (a, b))
            cv2.line(crop, *ends, rgb(color), 2, cv2.LINE_AA)
    return Batch(
        torch.from_numpy(crops),
        torch.from_numpy(keypoints).float(),
        torch.ones(count, 14, dtype=torch.bool),
    )


@pytest.fixture(scope="session")
def figures():
    return stick_figures(6)


@pytest.fixture(scope="session")
def fitted(figures):
    """A `Fit` of cpm-lite after 30 steps on a handful of figures, and the losses of each step.

    The labels' sigma stays as it is, or else losses would fall with it.
    """
    torch.manual_seed(0)
    recipe = Recipe(
        phases=(Phase(0, 64),),
        warmup_steps=5,
        trunk_learning_rate=2e-3,
        ema_decay=0.9,
        first_sigma=1.5,
        last_sigma=1.5,
        freeze_blocks=0,
    )
    fit = Fit(Cpm(preset("cpm-lite", input_size=64)), recipe, 30)
    return fit, [fit.step(figures) for _ in range(30)]
