"""What only a GPU can show: it cuts the crops that a CPU cuts, trains, stops and goes on."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from cpm_core.augment import Augmentation
from cpm_core.config import preset
from cpm_core.model import Cpm
from cpm_core.recipe import Phase, Recipe
from cpm_core.resident import options as flags
from cpm_core.resident.feed import Feed
from cpm_core.resident.pack import write_pack
from cpm_core.resident.train import Run, main
from cpm_core.training import Fit
from cpm_core.weights import load_weights
from tests.cpm_core.resident.packs import figures_pack

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

SMALL = ["--stages", "2", "--size", "64", "--batch-size", "3", "--device", "cuda"]


def crowd(figures):
    """The figures, each with one or two of the others beside it."""
    pack = figures_pack(figures)
    count = np.array([1 + i % 2 for i in range(len(pack.picture))], np.int32)
    who = np.arange(count.sum()) % len(pack.picture)
    return replace(
        pack,
        others_count=count,
        others=pack.keypoints[who],
        others_labelled=pack.labelled[who],
    )


def feeds(figures, batch):
    augmentation = Augmentation(part=0.3, erase=0.5)
    recipe = Recipe(phases=(Phase(0, 64),), batch_size=batch, augmentation=augmentation)
    pack = crowd(figures)
    return [Feed(pack, recipe, torch.device(device)) for device in ("cpu", "cuda")]


@pytest.mark.parametrize("size", [16, 32, 96])
def test_it_cuts_what_a_cpu_cuts(figures, size):
    here, there = feeds(figures, 3)
    for step in range(4):
        ours, theirs = here.train(step, size), there.train(step, size)
        apart = (ours.crops.int() - theirs.crops.cpu().int()).abs()
        assert (apart > 2).float().mean() < 1e-3
        for name in ("keypoints", "others"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name).cpu())
        for name in ("labelled", "others_labelled"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name).cpu())


@pytest.mark.parametrize("name", ["cpm-lite", "cpm-vgg"])
def test_a_step_is_that_of_a_cpu(figures, name):
    """Losses in fp32 by stage, and those after the step."""
    losses = []
    for feed in feeds(figures, 6):
        recipe = replace(
            feed.recipe, bf16=False, warmup_steps=0, freeze_blocks=0, learning_rate=1e-4
        )
        torch.manual_seed(0)
        model = Cpm(preset(name, stages=2, input_size=64)).to(feed.device)
        fit = Fit(model, recipe, 100)
        batch = feed.train(0, 64)
        losses.append([fit.step(batch).cpu(), fit.losses(batch).detach().mean(dim=1).cpu()])
    for here, there in zip(*losses, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("layout", ["auto", "contiguous", "channels_last"])
def test_it_trains_and_goes_on(figures, tmp_path, layout):
    pack, out = tmp_path / "pack.safetensors", tmp_path / "net.safetensors"
    write_pack(pack, figures_pack(figures))
    given = [str(pack), str(out), *SMALL, "--memory-format", layout, "--tunes", "2"]
    given += ["--state", str(tmp_path / "net.state")]
    assert main([*given, "--epochs", "4"]) == 0
    assert main([*given, "--epochs", "8"]) == 0
    log = [json.loads(line) for line in (tmp_path / "net.jsonl").read_text().splitlines()]
    assert [r["step"] for r in log if r["kind"] == "start"] == [0, 8]
    weights = load_weights(out)
    assert all(torch.isfinite(value).all() for value in weights.tensors.values())


def test_minutes_are_kept(figures, tmp_path):
    """The layouts are tried, and steps of two sizes."""
    pack, out = tmp_path / "pack.safetensors", tmp_path / "net.safetensors"
    write_pack(pack, figures_pack(figures))
    given = [str(pack), str(out), "--stages", "2", "--batch-size", "3", "--device", "cuda"]
    assert main([*given, "--phases", "0:32", "0.5:64", "--minutes", "0.4", "--tunes", "4"]) == 0
    log = [json.loads(line) for line in (tmp_path / "net.jsonl").read_text().splitlines()]
    assert log[0]["steps"] > 10
    assert 10 < log[-1]["seconds"] < 26
    assert {r["size"] for r in log if r["kind"] == "progress"} == {32, 64}


def test_the_optimiser_is_one_kernel(figures, tmp_path):
    pack = tmp_path / "pack.safetensors"
    write_pack(pack, figures_pack(figures))
    given = [str(pack), str(tmp_path / "n.safetensors"), *SMALL, "--epochs", "1"]
    run = Run(flags.parser().parse_args(given), threading.Event())
    assert run.fit.optimizer.param_groups[0]["fused"] is True
    assert run.train()
