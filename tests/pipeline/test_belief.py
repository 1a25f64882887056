"""`posemill belief`, from the command line to the picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cpm_core.config import preset
from cpm_core.info import WeightsInfo
from cpm_core.model import Cpm
from cpm_core.skeleton import load_skeleton
from cpm_core.weights import save_weights
from jobs.cli import main
from tests.pipeline.conftest import Place


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights of two stages for 64-pixel crops."""
    torch.manual_seed(0)
    config = preset("cpm-lite", input_size=64, stages=2)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, Cpm(config).eval(), WeightsInfo("tiny", config, load_skeleton("lsp14")))
    return str(path)


def photo() -> bytes:
    """A JPEG of noise, 120 x 90 pixels."""
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    return cv2.imencode(".jpg", noise)[1].tobytes()


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """A photo in a folder."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo())
    return str(path)


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (["--joint", "right_elbow"], 1),
        (["--joint", "right_elbow", "head_top"], 2),
        (["--joint", "neck", "--device", "cpu", "--joint", "head_top"], 2),  # one by one
        ([], 14),  # all joints
        (["--joint", "neck", "--box", "10", "5.5", "40", "60"], 1),
        (["--joint", "neck", "--box", "-10", "-20", "40", "60"], 1),  # partly outside
    ],
)
def test_one_row_per_joint_and_one_column_per_stage(
    words: list[str], rows: int, picture: str, weights: str, tmp_path: Path
) -> None:
    """Tiles of 220 pixels with 24 for the caption, 8 apart."""
    to = tmp_path / "belief.png"
    flags = ["--weights", weights, "--to", str(to), "--size", "220"]
    assert main(["belief", picture, *words, *flags]) == 0
    figure = cv2.imread(str(to))
    assert figure is not None
    assert figure.shape == (8 + rows * (220 + 24 + 8), 8 + 2 * (220 + 8), 3)


def test_a_picture_from_any_storage(place: Place, weights: str, tmp_path: Path) -> None:
    """A path, file:// and s3://, also by its flag."""
    place.put("photo.jpg", photo())
    to = tmp_path / "belief.jpg"
    words = ["--picture", f"{place.uri}/photo.jpg", "--joint", "neck", "--weights", weights]
    assert main(["belief", *words, "--to", str(to)]) == 0
    assert cv2.imread(str(to)) is not None


def test_the_box_decides_what_is_seen(picture: str, weights: str, tmp_path: Path) -> None:
    """The box of the whole picture is the default, another gives another figure."""
    figures = []
    for box in ([], ["--box", "0", "0", "120", "90"], ["--box", "0", "0", "60", "90"]):
        to = tmp_path / "belief.png"
        words = [picture, "--joint", "neck", *box, "--weights", weights, "--to", str(to)]
        assert main(["belief", *words]) == 0
        figures.append(to.read_bytes())
    assert figures[0] == figures[1] != figures[2]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--joint", "right_elbw"], ["right_elbw", "did you mean right_elbow?", "head_top"]),
        (["--joint", "12345"], ["12345", "lsp14 has right_ankle"]),
        (["--box", "500", "10", "20", "20"], ["--box 500 10 20 20", "outside", "120 x 90"]),
        (["--box", "-50", "10", "50", "20"], ["outside"]),  # ends where the picture begins
        (["--box", "0", "0", "20"], ["--box", "X Y WIDTH HEIGHT"]),
        (["--box", "0", "0", "0", "20"], ["--box", "X Y WIDTH HEIGHT"]),
        (["--box", "0", "0", "nan", "20"], ["--box"]),
        (["--box", "0", "0", "1e300", "20"], ["--box", "1e+300"]),
        (["--to", "belief.txt"], ["belief.txt", ".jpg"]),
        (["--to", "no/folder/belief.png"], ["no/folder/belief.png", "folder that exists"]),
        (["--weights", "nope"], ["nope"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    words: list[str],
    parts: list[str],
    picture: str,
    weights: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2, the setting's name, the fix."""
    given = ["--weights", weights, "--to", str(tmp_path / "belief.png"), *words]
    assert main(["belief", picture, *given]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert all(part in message for part in parts)
    assert not (tmp_path / "belief.png").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"", "no bytes"),
        (b"hello", "starts with"),
        (b"\xff\xd8\xff broken", "damaged"),
    ],
)
def test_an_unreadable_picture_is_named(
    content: bytes | None,
    reason: str,
    weights: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The message names the picture and says what is the matter with it."""
    path = tmp_path / "broken.jpg"
    if content is not None:
        path.write_bytes(content)
    assert main(["belief", str(path), "--joint", "neck", "--weights", weights]) == 2
    message = capsys.readouterr().err
    assert str(path) in message
    assert reason in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(
    picture: str, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message says what to do."""
    assert main(["belief", picture, "--weights", weights, "--device", "cuda"]) == 2
    assert "--device cuda" in capsys.readouterr().err
