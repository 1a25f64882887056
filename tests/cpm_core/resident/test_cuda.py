"""What only a GPU can show: it cuts the crops that a CPU cuts, trains, stops and goes on."""

import threading

import pytest
import torch

from cpm_core.augment import Augmentation
from cpm_core.recipe import Phase, Recipe
from cpm_core.resident import options as flags
from cpm_core.resident.feed import Feed
from cpm_core.resident.pack import write_pack
from cpm_core.resident.train import Run, main
from cpm_core.weights import load_weights
from tests.cpm_core.resident.packs import figures_pack

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

SMALL = ["--stages", "2", "--size", "64", "--batch-size", "3", "--device", "cuda"]


def test_it_cuts_what_a_cpu_cuts(figures):
    augmentation = Augmentation(part=0.3, erase=0.5)
    recipe = Recipe(phases=(Phase(0, 64),), batch_size=6, augmentation=augmentation)
    pack = figures_pack(figures)
    for step in range(4):
        here, there = (
            Feed(pack, recipe, torch.device(device)).train(step, 96) for device in ("cpu", "cuda")
        )
        apart = (here.crops.int() - there.crops.cpu().int()).abs()
        assert (apart > 2).float().mean() < 1e-3
        torch.testing.assert_close(here.keypoints, there.keypoints.cpu())
        assert torch.equal(here.labelled, there.labelled.cpu())


@pytest.mark.parametrize("layout", ["auto", "contiguous", "channels_last"])
def test_it_trains_and_goes_on(figures, tmp_path, layout):
    pack, out = tmp_path / "pack.safetensors", tmp_path / "net.safetensors"
    write_pack(pack, figures_pack(figures))
    given = [str(pack), str(out), *SMALL, "--memory-format", layout, "--tunes", "2"]
    given += ["--state", str(tmp_path / "net.state")]
    assert main([*given, "--epochs", "4"]) == 0
    assert main([*given, "--epochs", "8"]) == 0
    weights = load_weights(out)
    assert all(torch.isfinite(value).all() for value in weights.tensors.values())


def test_the_optimiser_is_one_kernel(figures, tmp_path):
    pack = tmp_path / "pack.safetensors"
    write_pack(pack, figures_pack(figures))
    given = [str(pack), str(tmp_path / "n.safetensors"), *SMALL, "--epochs", "1"]
    run = Run(flags.parser().parse_args(given), threading.Event())
    assert run.fit.optimizer.param_groups[0]["fused"] is True
    assert run.train()
