"""`posemill evaluate`: settings, table, JSON and plot."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import pytest

from jobs.evaluate import main
from pipeline.errors import UsageError
from pipeline.evaluate import EvaluateSettings, evaluate
from tests.pipeline.test_evaluate_mat import lsp_labels, prediction, save


@pytest.mark.parametrize(
    ("module", "values", "fix"),
    [
        ("scipy.io", {"predictions": "p.mat", "labels": "l.mat"}, "posemill.train"),
        ("matplotlib", {"samples": "s.parquet", "plot": "p.png"}, "posemill.train"),
    ],
)
def test_missing_packages(
    monkeypatch: pytest.MonkeyPatch, module: str, values: dict[str, str], fix: str
) -> None:
    """They belong to an extra, which the message names."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=fix):
        evaluate(EvaluateSettings.build(dict(values)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --samples and --weights"),
        (["--predictions", "p.mat"], "--predictions and --labels go together"),
        (["--labels", "l.mat", "--samples", "s"], "--predictions and --labels go together"),
        (["--predictions", "p", "--labels", "l", "--samples", "s"], "--samples does not go with"),
        (["--predictions", "p", "--labels", "l", "--split", "val"], "--split does not go with"),
        (["--annotations", "out"], "give --samples"),
        (["--annotations", "o", "--samples", "s", "--weights", "w"], "--weights does not go with"),
        (["--annotations", "o", "--samples", "s", "--flip"], "--flip does not go with"),
        (["--annotations", "o", "--samples", "s", "--device", "cpu"], "--device does not go with"),
        (["--annotations", "o", "--samples", "s", "--precision", "auto"], "--precision does not"),
        (["--predictions", "p", "--labels", "l", "--precision", "fp32"], "--precision does not go"),
        (["--predictions", "p", "--labels", "l", "--scales", "1"], "--scales does not go with"),
        (["--predictions", "p", "--labels", "l", "--no-flip"], "--flip does not go with"),
        (["--samples", "s", "--metric", "oks", "--threshold", "0.3"], "--threshold is one of PCK"),
        (["--samples", "s", "--plot", "curve.txt"], "--plot curve.txt: use"),
        (["--samples", "s", "--plot", "c.png", "--metric", "oks"], "draws curves"),
        (["--samples", "s", "--people", "person-net", "--plot", "c.png"], "draws curves"),
        (["--samples", "s", "--people", "boxes"], "without --people the table's boxes are taken"),
        (["--samples", "s", "--same-person", "0.5"], "does not go with the table's boxes"),
        (["--samples", "s", "--people", "detector:no.onnx"], "no detector at no.onnx"),
        (["--samples", "s", "--people", "faces"], "choose person-net"),
        (["--annotations", "o", "--samples", "s", "--people", "whole-image"], "--people does not"),
        (["--samples", "s", "--metric", "pcp"], "pck_lspet"),
        (["--samples", "s", "--threshold", "0"], "--threshold"),
        (["--samples", "s", "--json-to", "/no/such/place.json"], "folder does not exist"),
    ],
)
def test_wrong_settings(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused before anything is read, in one line."""
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_command_prints_writes_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table says what the JSON holds; the plot is a picture."""
    labels = lsp_labels()
    words = ["--predictions", save(tmp_path / "p.mat", prediction_all=prediction(labels, wrong=2))]
    words += ["--labels", save(tmp_path / "l.mat", joints=labels)]
    words += ["--metric", "pck_lsp", "pck_lspet", "--threshold", "0.15"]
    words += ["--json-to", str(tmp_path / "f.json"), "--plot", str(tmp_path / "f.png")]
    pytest.importorskip("matplotlib")
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "PCK over 4 people (pck_lsp, 56 joints)" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["@0.15", "@0.2", "@0.1", "@0.05", "AUC"] in lines
    # Two of eight wrists are off by more than half of the torso.
    assert lines.count(["Wrist", *["75.00"] * 5]) == 2
    figures = json.loads((tmp_path / "f.json").read_text())
    assert set(figures["input"]) == {"predictions", "labels"}
    curve = figures["metrics"]["pck_lsp"]["curve"]
    assert len(curve["thresholds"]) == len(curve["by_joint"]["right_wrist"]) == 21
    assert figures["metrics"]["pck_lsp"]["by_row"]["Wrist"]["at"]["0.15"] == 75
    drawn = cv2.imread(str(tmp_path / "f.png"))
    assert drawn is not None
    assert drawn.std() > 10
