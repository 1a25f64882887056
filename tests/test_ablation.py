"""benchmarks/ablation.py, on a few drawn figures."""

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from cpm_core.skeleton import load_skeleton
from pipeline import schema
from tests.cpm_core.conftest import stick_figures

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NETS = [(1, True), (2, True), (2, False)]


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The command's module; benchmarks are no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ablation

    threads = torch.get_num_threads()
    yield ablation
    torch.set_num_threads(threads)


@pytest.fixture
def samples(tmp_path: Path) -> str:
    """Six figures to train on, four to measure on."""
    figures = stick_figures(10)
    rows = [
        {
            "sample_id": i,
            "source": f"{i}.png",
            "split": "train" if i < 6 else "tune",
            "image": cv2.imencode(".png", crop)[1].tobytes(),
            "box": [0, 0, 64, 64],
            "x": points[:, 0].tolist(),
            "y": points[:, 1].tolist(),
            "labelled": [True] * 14,
        }
        for i, (crop, points) in enumerate(
            zip(figures.crops.numpy(), figures.keypoints.numpy(), strict=True)
        )
    ]
    table_schema = schema.samples_table(14)
    table_schema = table_schema.with_metadata(schema.table_metadata({}, load_skeleton("lsp14")))
    path = tmp_path / "samples.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=table_schema), path)
    return str(path)


@pytest.fixture
def words(samples: str, tmp_path: Path) -> list[str]:
    """The smallest ablation."""
    line = f"--samples {samples} --output {tmp_path / 'out'} --stages 2 --steps 2 --size 64"
    return [*line.split(), "--batch-size", "2"]


def test_every_net_once(ablation, words, tmp_path, capsys):
    """All nets are in the results; a second call trains nothing and says the same."""
    assert ablation.main(words) == 0
    first, out = capsys.readouterr(), tmp_path / "out"
    records = json.loads((out / "results.json").read_text())
    nets = [r["settings"] for r in records if "preset" not in r["settings"]]
    assert [(net["stages"], net["intermediate"]) for net in nets] == NETS
    assert [r["settings"].get("preset") for r in records] == [None, None, None, "cpm"]
    assert list(records[1]["measured"]["gradients"]) == ["0", "1", "2"]
    assert (out / "table.md").read_text() == first.out
    assert "| 2 |" in first.out
    picture = cv2.imread(str(out / "ablation.png"))
    assert picture.shape[0] > 500
    assert picture.std() > 10

    assert ablation.main(words) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert second.err.count("known") == 3
    assert "step" not in second.err


def test_stopped_and_taken_up(ablation, words, tmp_path, capsys, monkeypatch):
    """Ctrl-C keeps the finished nets, and the next call goes on with the others."""
    trained = []

    def train(setting, crops, stages, intermediate, progress):
        if len(trained) == 2:
            trained.clear()
            raise KeyboardInterrupt
        trained.append((stages, intermediate))
        return {
            "gradients": {"0": [["shared.stem", 1.0], ["stages.1.out", 1.0]]},
            "counted": [10, 12],
            "correct_by_stage": [[5, 6]] * stages,
        }

    monkeypatch.setattr(ablation.training, "train", train)
    monkeypatch.setattr(
        ablation.training,
        "paper_gradients",
        lambda *_: {"all": [["first.0", 1.0]], "last": [["first.0", 0.5]]},
    )
    assert ablation.main(words) == 130
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == 2
    assert not (tmp_path / "out" / "table.md").exists()
    assert ablation.main(words) == 0
    assert trained == NETS[2:]
    # Other settings are another ablation, kept in the same file.
    assert ablation.main([*words, "--seed", "1"]) == 130
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == 5


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--stages", "1"], "nothing to compare"),
        (["--steps", "0"], "at least 1"),
        (["--size", "100"], "multiple of 32"),
        (["--batch-size", "7"], "too few for one batch"),
        (["--trunk", "nowhere.pth"], "no such file"),
        (["--samples", "nowhere.parquet"], "nowhere.parquet"),
    ],
)
def test_wrong_settings(ablation, words, capsys, extra, message):
    """One line that names the setting."""
    assert ablation.main([*words, *extra]) == 2
    assert message in capsys.readouterr().err


def test_same_start_and_same_crops(ablation, samples):
    """Nets differ in what they have, not in what they start from or see."""
    training = ablation.training
    setting = training.Setting(3, 4, 2, 64, 0, None)
    crops = training.Crops(ablation.SampleTable(samples), setting)
    deep, shallow = (training._start(setting, crops, stages) for stages in (3, 1))
    known = deep.state_dict()
    assert all(torch.equal(known[k], v) for k, v in shallow.state_dict().items())
    assert len(known) > len(shallow.state_dict())
    once, again = list(crops.train()), list(crops.train())
    assert len(once) == setting.steps
    assert all(torch.equal(a.crops, b.crops) for a, b in zip(once, again, strict=True))
    assert sum(len(batch.crops) for batch in crops.tune()) == 4


def test_other_people_in_the_crops(ablation):
    """Padded to the most in the batch; none at all where nobody else is labelled."""
    stacked, sample = ablation.training._stacked, ablation.training.Sample
    picture, box = np.zeros((8, 8, 3), np.uint8), np.zeros(4)
    own = picture, box, np.zeros((14, 2)), np.ones(14, bool)
    alone = sample(*own, np.zeros((0, 14, 2)), np.zeros((0, 14), bool))
    crowd = sample(*own, np.ones((2, 14, 2)), np.ones((2, 14), bool))
    batch = stacked([alone, crowd])
    assert batch.others.sum(dim=(1, 2, 3)).tolist() == [0, 56]
    assert batch.others_labelled.any(dim=(1, 2)).tolist() == [False, True]
    assert stacked([alone]).others is None


def test_gradients_are_of_trained_convolutions(ablation, samples):
    """In order from image to output, frozen blocks left out, the net itself unchanged."""
    training = ablation.training
    setting = training.Setting(2, 4, 2, 64, 0, None)
    crops = training.Crops(ablation.SampleTable(samples), setting)
    fit = training.Fit(training._start(setting, crops, 2), setting.recipe(False), 4)
    before = {k: v.clone() for k, v in fit.model.state_dict().items()}
    gradients = training._gradients(fit, next(crops.train()))
    assert all(torch.equal(before[k], v) for k, v in fit.model.state_dict().items())
    names = [name for name, _ in gradients]
    convolutions = [n for n, m in fit.model.named_modules() if isinstance(m, nn.Conv2d)]
    frozen = ("shared.stem", *(f"shared.blocks.{i}." for i in range(3)))
    assert names == [n for n in convolutions if not n.startswith(frozen)]
    assert all(value > 0 for _, value in gradients)


def test_standard_error(ablation):
    """Of a difference between nets that err alike it is smaller than that of either."""
    rate = ablation.ablation_table.Rate
    one = rate(np.array([2.0, 8, 5, 9]), np.full(4, 10.0))
    other = rate(np.array([1.0, 7, 4, 8]), np.full(4, 10.0))
    assert one.percent == pytest.approx(60)
    assert one.error == pytest.approx(100 * np.std([0.2, 0.8, 0.5, 0.9], ddof=1) / 2)
    points, error = one.minus(other)
    assert points == pytest.approx(10)
    assert error == pytest.approx(0, abs=1e-9)
    assert np.isnan(rate(np.array([1.0]), np.array([2.0])).error)


def test_command_names_no_folder_of_this_machine(ablation):
    """Files by their names; what was not given is left out."""
    options = Namespace(samples="/data/train.parquet", output=Path("docs/ablation"), trunk=None)
    line = ablation.command(options)
    assert line == "python benchmarks/ablation.py --samples train.parquet --output docs/ablation"
