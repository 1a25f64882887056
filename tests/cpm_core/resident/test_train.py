"""`python -m cpm_core.resident.train` from end to end, on drawn figures."""

import copy
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import cpm_core
from cpm_core.config import preset
from cpm_core.model import Cpm
from cpm_core.recipe import RECIPES, Phase, Recipe
from cpm_core.resident import options as flags
from cpm_core.resident import plan, train
from cpm_core.resident.feed import Feed
from cpm_core.resident.loop import Loop
from cpm_core.resident.pack import write_pack
from cpm_core.resident.train import Run, main
from cpm_core.training import Fit
from cpm_core.weights import load_weights
from tests.cpm_core.resident.packs import figures_pack

SMALL = ["--stages", "1", "--size", "64", "--batch-size", "3", "--threads", "1", "--device", "cpu"]
STILL = ["--augment-rotation", "5", "--augment-color", "0", "--no-augment-flip"]
QUICK = ["--warmup-steps", "3", "--trunk-learning-rate", "2e-3", "--freeze-blocks", "0"]
QUICK += ["--label-sigma", "1.5", "1.5"]
OTHER_LAYOUT = {"channels_last": torch.contiguous_format, "contiguous": torch.channels_last}


@pytest.fixture
def pack(figures, tmp_path):
    path = tmp_path / "pack.safetensors"
    write_pack(path, figures_pack(figures))
    return str(path)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_loss_falls_and_the_best_weights_are_written(pack, tmp_path, capsys):
    out = tmp_path / "net.safetensors"
    options = ["--epochs", "16", "--tunes", "4", "--ema-decay", "0.5"]
    given = [pack, str(out), *SMALL, *STILL, *QUICK, *options, "--licence", "CC0"]
    assert main(given) == 0
    log = lines(tmp_path / "net.jsonl")
    losses = [record["loss"][0] for record in log if record["kind"] == "progress"]
    assert losses[-1] < 0.75 * losses[0]
    tunes = [record["tune_pck"] for record in log if record["kind"] == "tune"]
    assert len(tunes) == 4
    weights = load_weights(out)
    assert weights.info.metrics == {"tune_pck_stage_1": max(tune[0] for tune in tunes)}
    assert (weights.info.name, weights.info.licence) == ("net", "CC0")
    assert weights.info.training_data == "test (digest)"
    assert weights.info.config.input_size == 64
    progress = next(record for record in log if record["kind"] == "progress")
    assert 0 < progress["cut_share"] < 1
    assert progress["samples_per_second"] > 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("CPU: 6 samples to train on, 2 for tuning; 32 steps of 2 an epoch")
    assert any("px, loss" in line and "min left" in line for line in said)
    assert said[-1].startswith(f"{out}: 32 steps, PCK")


def stopped_after(monkeypatch, steps):
    """Runs stop after so many steps, as by Ctrl-C."""
    step = Loop._step

    def counted(loop):
        step(loop)
        if loop.fit.step_number == steps:
            loop.stopping.set()

    monkeypatch.setattr(Loop, "_step", counted)


def test_a_run_that_was_stopped_goes_on_bit_by_bit(pack, tmp_path, monkeypatch):
    """In the middle of an epoch, and with the best weights so far."""
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    options = [*SMALL, "--epochs", "4", "--tunes", "4", "--augment-erase", "0.5"]
    state = ["--state", str(tmp_path / "parts.state")]
    assert main([pack, str(whole), *options, "--state", str(tmp_path / "whole.state")]) == 0
    with monkeypatch.context() as patch:
        stopped_after(patch, 3)
        assert main([pack, str(parts), *options, *state]) == 130
        assert load_weights(parts).info.metrics.keys() == {"tune_pck_stage_1"}
    assert main([pack, str(parts), *options, *state]) == 0
    log = lines(tmp_path / "parts.jsonl")
    assert [r["step"] for r in log if r["kind"] == "start"] == [0, 3]
    one, other = (
        torch.load(tmp_path / f"{n}.state", weights_only=True) for n in ("whole", "parts")
    )
    for name in ("model", "ema"):
        for key, value in one["fit"][name].items():
            assert torch.equal(value, other["fit"][name][key]), key
    assert one["best"]["by_stage"] == other["best"]["by_stage"]
    weights = [load_weights(path).tensors for path in (whole, parts)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_a_complete_run_is_not_trained_again(pack, tmp_path):
    given = [pack, str(tmp_path / "n.safetensors"), *SMALL, "--epochs", "1"]
    given += ["--state", str(tmp_path / "n.state")]
    assert main(given) == main(given) == 0
    log = lines(tmp_path / "n.jsonl")
    assert [r["step"] for r in log if r["kind"] == "start"] == [0, 2]
    assert sum(r["kind"] == "tune" for r in log) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_weights_and_a_state(pack, tmp_path, number):
    out, state = tmp_path / "net.safetensors", tmp_path / "net.state"
    command = [sys.executable, "-m", "cpm_core.resident.train", pack, str(out), *SMALL]
    command += ["--epochs", "100000", "--state", str(state), "--tunes", "1"]
    root = str(Path(cpm_core.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline().startswith("CPU: 6 samples")
        process.send_signal(number)
        said = process.stdout.read()
    assert process.returncode == 130
    assert f"{out}: " in said
    assert load_weights(out).info.config.stages == 1
    assert state.exists()


def test_no_training_writes_the_weights_it_would_start_from(pack, tmp_path):
    out = tmp_path / "first.safetensors"
    assert main([pack, str(out), *SMALL, "--epochs", "0", "--start-from", "cpm-lite"]) == 0
    given, written = load_weights("cpm-lite").tensors, load_weights(out).tensors
    name = "shared.blocks.3.layers.0.0.weight"
    assert torch.equal(written[name], given[name])


def test_minutes_are_kept(pack, tmp_path, monkeypatch):
    """The schedule ends when the time does, however fast steps are, and never goes back."""
    monkeypatch.setattr(plan, "_MEASURED_S", 0.1)
    monkeypatch.setattr(plan, "_SLACK_S", 0.1)
    monkeypatch.setattr(train, "_WEIGHTS_S", 0.5)
    given = [pack, str(tmp_path / "n.safetensors"), *SMALL, "--minutes", "0.08", "--tunes", "3"]
    # Steps so quick that there are many of them on a busy machine, too.
    given += ["--size", "32", "--batch-size", "2"]
    assert main([*given, "--warmup-steps", "0"]) == 0
    log = lines(tmp_path / "n.jsonl")
    if log[0]["seconds"] > 4:
        pytest.skip("the machine is so busy that no time is left for steps")
    assert log[-1]["seconds"] < 7
    rates = [r["learning_rate"] for r in log if r["kind"] == "progress"]
    assert len(rates) >= 2
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.2 * rates[0]
    assert log[0]["steps"] > 0


def test_time_that_is_up_early_ends_with_a_look(pack, tmp_path, monkeypatch):
    """Far more steps were planned than there is time for; the last weights are judged, too."""
    monkeypatch.setattr(plan, "_MEASURED_S", 0.01)
    monkeypatch.setattr(plan.Plan, "steps_left", lambda *_: 10**6)
    monkeypatch.setattr(train, "_WEIGHTS_S", 0.5)
    out = tmp_path / "n.safetensors"
    given = [pack, str(out), *SMALL, "--minutes", "0.05", "--tunes", "1"]
    assert main([*given, "--size", "32", "--batch-size", "2"]) == 0
    log = lines(tmp_path / "n.jsonl")
    assert [record["kind"] for record in log][-1] == "tune"
    assert load_weights(out).info.metrics.keys() == {"tune_pck_stage_1"}


def test_trying_layouts_changes_nothing(figures, monkeypatch):
    monkeypatch.setattr(plan, "_MEASURED_S", 0.01)
    recipe = Recipe(phases=(Phase(0, 64),), batch_size=2)
    feed = Feed(figures_pack(figures), recipe, torch.device("cpu"))
    model = Cpm(preset("cpm-lite", stages=1, input_size=64))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert plan.quickest_layout(feed, model) in flags.LAYOUTS
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_rehearsal_changes_nothing(figures, monkeypatch):
    """And it trains on finite losses, of which the time of a step follows."""
    monkeypatch.setattr(plan, "_MEASURED_S", 0.01)
    recipe = Recipe(phases=(Phase(0, 32), Phase(0.5, 64)), batch_size=2)
    feed = Feed(figures_pack(figures), recipe, torch.device("cpu"))
    fit = Fit(Cpm(preset("cpm-lite", stages=1, input_size=64)), recipe, 0)
    fit.step(feed.train(0, 32))
    before = copy.deepcopy(fit.state_dict())
    seen = []
    check = plan.check_finite
    monkeypatch.setattr(
        plan, "check_finite", lambda losses, step: (seen.append(losses), check(losses, step))
    )
    made = plan.rehearsed(feed, fit, 3)
    assert made.step_s.keys() == {32, 64}
    assert torch.tensor(seen).isfinite().all()
    assert (len(seen), fit.total_steps) == (2, 0)
    after = fit.state_dict()
    assert (after["step_number"], fit.progress) == (1, 1)
    for name in ("model", "ema"):
        assert all(torch.equal(value, after[name][key]) for key, value in before[name].items())
    for place, values in before["optimizer"]["state"].items():
        for key, value in values.items():
            assert torch.equal(value, after["optimizer"]["state"][place][key])


@pytest.mark.parametrize("name", flags.LAYOUTS)
def test_a_network_computes_in_the_layout_that_is_asked_for(pack, tmp_path, name):
    given = [pack, str(tmp_path / "n.safetensors"), *SMALL, "--epochs", "1"]
    options = flags.parser().parse_args([*given, "--memory-format", name])
    run = Run(options, threading.Event())
    convolutions = [m for m in run.fit.model.modules() if isinstance(m, torch.nn.Conv2d)]
    seen = []
    convolutions[1].register_forward_hook(lambda _, given, __: seen.append(given[0]))
    run.fit.step(run.feed.train(0, 64))
    assert seen[0].is_contiguous(memory_format=flags.LAYOUTS[name])
    assert not seen[0].is_contiguous(memory_format=OTHER_LAYOUT[name])


def test_a_run_that_diverges_leaves_its_best_weights(pack, tmp_path, monkeypatch, capsys):
    step = Fit.step

    def failing(fit, batch):
        return step(fit, batch) * (math.nan if fit.step_number > 2 else 1)

    monkeypatch.setattr(Fit, "step", failing)
    out = tmp_path / "n.safetensors"
    assert main([pack, str(out), *SMALL, "--epochs", "2", "--tunes", "4"]) == 1
    assert "training diverged; begin again with" in capsys.readouterr().err
    assert load_weights(out).info.metrics.keys() == {"tune_pck_stage_1"}


def test_a_lack_of_memory_is_told(pack, tmp_path, monkeypatch, capsys):
    def short(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(Fit, "step", short)
    assert main([pack, str(tmp_path / "n.safetensors"), *SMALL, "--epochs", "1"]) == 1
    assert "GPU memory is short: lower --batch-size, or pack" in capsys.readouterr().err
    assert not (tmp_path / "n.safetensors").exists()


def test_how_many_steps_fit():
    recipe = Recipe(phases=(Phase(0, 64), Phase(0.5, 128)))
    made = plan.Plan(recipe, {64: 0.1, 128: 0.3}, tune_s=1.0, tunes=10)
    # A second to spare and 10 s of looks leave 200 s for steps of 0.2 s.
    assert made.steps_left(0, 211) == 1000
    assert made.steps_left(0.5, 1 + 5 + 300) == 1000
    made.learn(128, 0.6)
    assert made.steps_left(0.5, 1 + 5 + 300) == 500
    assert made.steps_left(0.9, 2) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--batch-size", "7"], "6 samples to train on are too few for one batch"),
        (["--batch-size", "0"], "--batch-size 0: choose 1 to"),
        (["--phases", "0.5:64"], "--phases: the first phase starts at 0"),
        (["--phases", "64"], "--phases: expected SHARE:PIXELS"),
        (["--size", "100"], "--size: input_size is 100; it must be a multiple of 32"),
        (["--preset", "cpm-vgg", "--freeze-blocks", "1"], "--freeze-blocks goes with"),
        (["--augment-scale", "2", "1"], "--augment-scale: give least and largest"),
        (["--label-sigma", "0", "1"], "--label-sigma: give two factors"),
        (["--start-from", "nothing"], "no weights 'nothing'"),
        (["--trunk", "nothing.pth"], "nothing.pth: cannot be read"),
        (["--state", "{folder}/state", "--batch-size", "3"], "--state .*: no state of a run"),
    ],
)
def test_wrong_settings_are_told(pack, tmp_path, capsys, given, message):
    (tmp_path / "state").write_bytes(b"no state")
    given = [text.format(folder=tmp_path) for text in given]
    small = [] if {"--size", "--phases"} & set(given) else ["--size", "64"]
    wrong = [pack, str(tmp_path / "n.safetensors"), "--epochs", "1", *small, *given]
    assert main([*wrong, "--device", "cpu", "--threads", "1"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "n.safetensors").exists()


def test_another_runs_state_is_refused(pack, tmp_path, capsys):
    given = [pack, str(tmp_path / "n.safetensors"), *SMALL, "--epochs", "1"]
    given += ["--state", str(tmp_path / "n.state")]
    assert main(given) == 0
    assert main([*given, "--learning-rate", "1e-4", "--seed", "3"]) == 2
    said = capsys.readouterr().err
    assert "is of a run with another first weights, learning_rate, seed; give the settings" in said


def test_every_array_of_a_pack_says_which_run_it_is(figures):
    pack = figures_pack(figures)
    recipe, model = Recipe(), Cpm(preset("cpm-lite", stages=1, input_size=64))
    known = train._identity(recipe, pack, model)["pack"]
    for name in ("split", "labelled", "picture"):
        other = replace(pack, **{name: np.roll(getattr(pack, name), 1, axis=0)})
        if name == "labelled":
            other.labelled[0, 0] = not other.labelled[0, 0]
        assert train._identity(recipe, other, model)["pack"] != known


def test_epochs_are_drawn_ahead_and_the_same(figures):
    """Whether a run comes to an epoch or begins there; only as many others as a batch has."""
    pack = figures_pack(figures)
    count = np.zeros_like(pack.others_count)
    count[0] = 2
    pack = replace(
        pack, others_count=count, others=pack.keypoints[:2], others_labelled=pack.labelled[:2]
    )
    recipe = Recipe(phases=(Phase(0, 32),), batch_size=2)
    through = Feed(pack, recipe, torch.device("cpu"))
    people = []
    for step in range(6):
        one = through.train(step, 32)
        other = Feed(pack, recipe, torch.device("cpu")).train(step, 32)
        assert torch.equal(one.crops, other.crops)
        assert torch.equal(one.keypoints, other.keypoints)
        people.append(0 if one.others is None else one.others.shape[1])
    assert sorted(people) == [0, 0, 0, 0, 2, 2]


def test_flags_and_presets_give_the_same_recipes():
    """The defaults are those of `posemill train`."""
    for name, recipe in RECIPES.items():
        options = flags.parser().parse_args(
            ["p", "w.safetensors", "--epochs", "12", "--preset", name]
        )
        assert flags.recipe(options) == recipe


def test_vgg_trains_with_adamw(pack, tmp_path):
    """One step, after which its weights are others."""
    given = ["--preset", "cpm-vgg", "--optimizer", "adamw", "--loss", "peaked", "--epochs", "1"]
    given += ["--tunes", "1", "--trunk-learning-rate", "1e-5"]
    options = flags.parser().parse_args([pack, str(tmp_path / "v.safetensors"), *SMALL, *given])
    run = Run(options, threading.Event())
    assert isinstance(run.fit.optimizer, torch.optim.AdamW)
    assert run.fit.model.config == preset("cpm-vgg", stages=1).at_size(64)
    before = run.fit.model.shared[0].weight.detach().clone()
    assert run.fit.step(run.feed.train(0, 32)).isfinite().all()
    assert not torch.equal(run.fit.model.shared[0].weight, before)


def test_it_needs_neither_ray_nor_pyarrow():
    code = "import sys, cpm_core.resident.train; "
    code += "print({'ray', 'pyarrow', 'pydantic', 'pipeline', 'openvino'} & set(sys.modules))"
    root = Path(cpm_core.__file__).parents[1]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "set()"
