import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cpm_core.info import FOLDER
from cpm_core.people import People
from cpm_core.person_net import PersonNetLocator, train
from cpm_core.person_net.config import PersonNetConfig
from cpm_core.person_net.fit import Fit, Plan
from cpm_core.person_net.measure import curve, hits, strangers
from cpm_core.person_net.net import PersonNet
from cpm_core.person_net.photos import Photo
from cpm_core.person_net.scenes import SceneMaker

SHARED = Path(__file__).resolve().parents[3] / "shared"
NONE = np.zeros((0, 4))


def people(*rows):
    array = np.array(rows, float).reshape(-1, 5)
    return People(array[:, :4], array[:, 4], "test")


def test_every_detection_counts_for_one_label():
    labels = np.array([[0, 0, 10, 20], [2, 0, 10, 20], [50, 0, 10, 20]], float)
    assert hits(people([0, 0, 10, 20, 0.9]), labels).tolist() == [True, False, False]
    both = people([1, 0, 10, 20, 0.9], [1, 0, 10, 20, 0.8])
    assert hits(both, labels).tolist() == [True, True, False]
    assert hits(people(), labels).tolist() == [False] * 3
    assert hits(both, NONE).tolist() == []


def test_strangers_touch_nobody_known():
    found = people([0, 0, 10, 20, 0.9], [100, 0, 10, 20, 0.8], [50, 0, 10, 20, 0.7])
    assert strangers(found, np.array([[2, 0, 10, 20.0]]), np.array([[50, 5, 10, 20.0]])) == 1
    assert strangers(found, NONE, NONE) == 3


def test_curve_of_two_pictures():
    """One tall person found at 0.6, a short one who is not asked for, a false detection at 0.4."""
    found = [people([0, 0, 40, 100, 0.6]), people([0, 0, 40, 100, 0.4])]
    labels = [np.array([[0, 0, 40, 100], [200, 0, 10, 20]], float), NONE]
    thresholds = np.array([0.3, 0.5, 0.7])
    measured = curve(found, labels, [NONE, NONE], thresholds)
    np.testing.assert_allclose(measured.recall, [1, 1, 0])
    np.testing.assert_allclose(measured.false, [0.5, 0, 0])
    assert measured.recall_at(0.1) == 1
    assert measured.threshold_at(0.1) == 0.5
    partly = curve(found, labels, [NONE, None], thresholds)
    np.testing.assert_allclose(partly.false, [0, 0, 0])


def photos():
    rng = np.random.default_rng(0)
    for i in range(6):
        image = rng.integers(0, 90, (80, 60, 3), np.uint8)
        image[10:70, 20:45] = (220, 120, 60)
        yield Photo("coco", str(i), image, np.array([[20.0, 10, 25, 60]]), NONE)


def new_fit(steps):
    torch.manual_seed(0)
    plan = Plan(steps=steps, batch_size=4, sizes=((0.0, 64), (0.5, 96)), trunk_learning_rate=1e-4)
    return Fit(PersonNet(PersonNetConfig(input_size=64, blocks=(1, 1))), plan)


def test_a_resumed_run_is_the_same_to_the_bit(tmp_path):
    maker = SceneMaker(list(photos()))
    straight = new_fit(4)
    losses = [straight.step(maker) for _ in range(4)]
    first = new_fit(4)
    for _ in range(2):
        first.step(maker)
    train.save(first, tmp_path / "checkpoint.pt")
    again = new_fit(4)
    train.resume(again, tmp_path / "checkpoint.pt")
    assert [again.step(maker) for _ in range(2)] == losses[2:]
    for name in ("model", "ema"):
        state, expected = again.state_dict()[name], straight.state_dict()[name]
        assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_plan():
    plan = Plan(steps=100, batch_size=32, sizes=((0.0, 160), (0.5, 320)), seed=1)
    assert [plan.size_at(step) for step in (0, 49, 50, 99)] == [160, 160, 320, 320]
    assert [plan.batch_at(step) for step in (0, 50)] == [32, 8]
    assert plan.rate_at(0) < 0.02
    assert plan.rate_at(99) < 0.001


def test_a_trunk_without_a_rate_stays_as_it_is():
    maker = SceneMaker(list(photos()))
    torch.manual_seed(0)
    plan = Plan(steps=2, batch_size=2, sizes=((0.0, 64),), trunk_learning_rate=0)
    fit = Fit(PersonNet(PersonNetConfig(input_size=64)), plan)
    before = {name: value.clone() for name, value in fit.model.state_dict().items()}
    for _ in range(2):
        fit.step(maker)
    for name, value in fit.model.state_dict().items():
        moved = name.startswith(("stages.", "trunk.lateral."))
        assert moved or torch.equal(value, before[name]), name
    assert not torch.equal(fit.model.stages[1].out.weight, before["stages.1.out.weight"])


def test_the_loss_falls():
    maker = SceneMaker(list(photos()))
    fit = new_fit(60)
    losses = [sum(fit.step(maker).values()) for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Options for a run on two dozen drawn pictures, with a detector that finds nobody."""

    class Nobody:
        def __init__(self, *_):
            pass

        def locate(self, picture):
            return people()

    monkeypatch.setattr(train, "YoloxDetector", Nobody)
    monkeypatch.setattr(train, "load_yolox_nano", lambda base, path: None)
    folder = tmp_path / "coco"
    (folder / "images").mkdir(parents=True)
    entries = []
    for i, photo in enumerate(list(photos()) * 4):
        cv2.imwrite(str(folder / f"images/{i}.jpg"), photo.image[..., ::-1])
        person = {"bbox": photo.boxes[0].tolist()}
        entries.append({"file": f"{i}.jpg", "coco_split": "train2017", "people": [person]})
    (folder / "annotations.json").write_text(json.dumps({"images": entries}))
    options = ["--coco", folder, "--detector", "none.onnx", "--run", tmp_path / "run"]
    options += [
        "--threads",
        1,
        "--batch-size",
        2,
        "--sizes",
        "0:64",
        "--input-size",
        64,
        "--save-every",
        1,
    ]
    return [str(option) for option in options]


def test_a_run_leaves_weights_and_goes_on(sources, tmp_path, caplog):
    caplog.set_level("INFO", "posemill")
    assert train.main([*sources, "--steps", "2"]) == 0
    run = tmp_path / "run"
    locator = PersonNetLocator(run / "best.safetensors")
    assert locator.info.metrics["steps"] == 2
    assert locator.size == 64
    assert train.main([*sources, "--steps", "3"]) == 0
    assert "going on after step 2" in caplog.text
    assert PersonNetLocator(run / "last.safetensors").info.metrics["steps"] == 3
    (run / "last.safetensors").unlink()
    assert train.main([*sources, "--steps", "3"]) == 0
    assert PersonNetLocator(run / "last.safetensors").info.metrics["steps"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lspet", "nowhere"], "no nowhere/annotations.json"),
        (["--people", "nowhere"], "no folder nowhere"),
        (["--videos", "nowhere.mp4"], "no readable video at nowhere.mp4"),
        (["--sizes", "192"], "--sizes"),
        (["--sizes", "0:100"], "multiple of 32"),
    ],
)
def test_mistakes_are_named(sources, capsys, options, message):
    assert train.main([*sources, *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the pictures in ../shared")
@pytest.mark.skipif(not (FOLDER / "person-net.safetensors").is_file(), reason="needs the weights")
def test_the_shipped_weights_find_a_person_in_a_real_picture():
    """A val2017 picture with one labelled person, at another place than the middle too."""
    document = json.loads((SHARED / "data/coco_people/annotations.json").read_text())
    entry = next(
        e
        for e in document["images"]
        if e["coco_split"] == "val2017"
        and len(e["people"]) == 1
        and e["people"][0]["bbox"][3] > 250
    )
    picture = cv2.imread(str(SHARED / "data/coco_people/images" / entry["file"]))[..., ::-1]
    label = np.array(entry["people"][0]["bbox"])[None]
    locator = PersonNetLocator()
    assert hits(locator.locate(picture), label).all()
    height, width = picture.shape[:2]
    wide = np.full((height, 2 * width, 3), 90, np.uint8)
    wide[:, width:] = picture
    assert hits(locator.locate(wide), label + np.array([width, 0, 0, 0])).all()
