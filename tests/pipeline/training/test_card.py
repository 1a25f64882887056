"""The model card: what stands in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cpm_core.config import preset
from cpm_core.info import WeightsInfo
from cpm_core.model import Cpm
from cpm_core.weights import Weights, load_weights, save_weights
from pipeline.samples import SampleTable
from pipeline.training.card import model_card
from pipeline.training.settings import TrainSettings
from tests.pipeline.training.labelled import LSP, row, write_table


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    torch.manual_seed(0)
    config = preset("cpm-lite", stages=2, input_size=64)
    path = tmp_path_factory.mktemp("weights") / "swimmers.safetensors"
    info = WeightsInfo("swimmers", config, LSP, licence="CC0-1.0")
    save_weights(path, Cpm(config).eval(), info)
    return load_weights(str(path))


@pytest.fixture
def table(tmp_path: Path) -> SampleTable:
    """Three samples to train on, one to tune with, two that are reported."""
    splits = ["train", "tune", "train", "test", "train", "test"]
    rows = [row(i, split) for i, split in enumerate(splits)]
    return SampleTable(write_table(tmp_path / "pool.parquet", rows))


def card(weights: Weights, table: SampleTable, records: list[dict[str, Any]], **values: Any) -> str:
    settings = TrainSettings.build(
        {"samples": table.uri, "output": "runs", "name": "swimmers", **values}
    )
    measured = [r for r in records if r["kind"] == "epoch" and r["tune_pck"]]
    best = max(measured, key=lambda r: r["tune_pck"][-1], default=None)
    chosen = best and {"epoch": best["epoch"], "by_stage": best["tune_pck"]}
    return model_card(settings, weights, table, records, chosen)


def epoch(number: int, *tune_pck: float) -> dict[str, Any]:
    return {"kind": "epoch", "epoch": float(number), "size": 64, "tune_pck": list(tune_pck)}


def test_network_data_and_licence(weights: Weights, table: SampleTable) -> None:
    """Of this very file, and by name and count."""
    text = card(weights, table, [], start_from="/models/old.safetensors")
    assert text.startswith("# swimmers\n")
    for said in (
        f"`{weights.sha256}`",
        "2 stages",
        "64 px",
        "trunk `lite`",
        "Skeleton `lsp14`",
        f"`pool.parquet` (digest `{table.digest}`)",
        "3 in split `train`",
        "1 in split `tune`",
        "2 in split `test`",
        "only `train` was learned from",
        "Started from: old.safetensors.",
        "Licence of the weights: CC0-1.0",
    ):
        assert said in text, said
    assert "/models" not in text, "folders of a machine are nobody's business"
    assert str(Path(table.uri).parent) not in text


def test_who_taught_it(weights: Weights, table: SampleTable) -> None:
    untaught = card(weights, table, [])
    assert "Taught" not in untaught
    assert "teacher" not in untaught
    text = card(weights, table, [], teacher="/nets/wise.onnx", teacher_tensor="a/relu")
    assert "Taught by the features `a/relu` of wise.onnx.\n" in text
    assert "| teacher_weight | 3.0 |" in text


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "| learning_rate | 0.002 |"),
        ({"learning_rate": 0.5}, "| learning_rate | 0.5 |"),
        ({"phases": ["0:64", "0.5:128"]}, "| phases | 0:64 0.5:128 |"),
        ({"augment_flip": False}, "flip False"),
        ({"epochs": 7}, "| epochs | 7 |"),
        ({"preset": "cpm"}, "| optimizer | sgd |"),
    ],
)
def test_the_whole_recipe(
    weights: Weights, table: SampleTable, values: dict[str, Any], line: str
) -> None:
    """Defaults as well: they may be others in a later version."""
    assert line in card(weights, table, [], **values)


def test_figures_of_the_chosen_epoch(weights: Weights, table: SampleTable) -> None:
    """The best by the last stage; of equals the first, as the weights are."""
    records = [{"kind": "start"}, epoch(1, 9, 40), epoch(2, 30, 61.25), epoch(3, 35, 61.25)]
    text = card(weights, table, records)
    assert "30.0, 61.2 %, in epoch 2." in text
    assert "| 2 | 64 | 30.0 61.2 (chosen) |" in text
    assert text.count("(chosen)") == 1
    assert "| 3 | 64 | 35.0 61.2 |" in text


def test_a_long_run_is_thinned_out_but_shows_its_best(weights: Weights, table: SampleTable) -> None:
    """A dozen rows or so."""
    records = [epoch(e, 50.0 + (e == 77)) for e in range(1, 101)]
    text = card(weights, table, records)
    rows = [line for line in text.splitlines() if line.startswith("| ") and "| 64 |" in line]
    assert 10 <= len(rows) <= 16
    assert "| 77 | 64 | 51.0 (chosen) |" in rows


@pytest.mark.parametrize("records", [[], [epoch(1), epoch(2)]])
def test_without_a_tuning_split(
    weights: Weights, table: SampleTable, records: list[dict[str, Any]]
) -> None:
    """It says that nothing was measured."""
    text = card(weights, table, records)
    assert "nothing was measured" in text
    assert "(chosen)" not in text
