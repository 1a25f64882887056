"""Small datasets in their original formats, and reading the table that comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.io import savemat

from pipeline.importing import Counts, ImportSettings, import_samples

SIZE = (80, 60)
"""Width and height of the pictures."""


def write_picture(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    """A picture of coarse noise, unlike those of other seeds."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR))


def run(format_: str, source: Path | str, folder: Path, **values: Any) -> Counts:
    """Import into `folder/out.parquet`."""
    given = {"format": format_, "input": str(source), "output": str(folder / "out.parquet")}
    return import_samples(ImportSettings.build({**given, **values}))


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of `folder/out.parquet`."""
    return pq.read_table(folder / "out.parquet").to_pylist()


def metadata(folder: Path) -> dict[str, Any]:
    """The document in the footer of `folder/out.parquet`."""
    footer = pq.ParquetFile(folder / "out.parquet").metadata.metadata
    return json.loads(footer[b"posemill"])  # type: ignore[no-any-return]


def points_of(row: dict[str, Any]) -> NDArray[np.float64]:
    """(K, 2) of a row."""
    return np.stack([row["x"], row["y"]], axis=1)


def pose(seed: int = 0, joints: int = 14) -> NDArray[np.float64]:
    """(joints, 2) places in a picture, counted from 1, different for every joint."""
    return np.random.default_rng(seed).uniform(2, 58, (joints, 2)).round(1)


def write_lsp(folder: Path, pictures: dict[int, NDArray[np.float64]], count: int) -> Path:
    """LSP: (3, 14, count), with (14, 3) x, y, occluded for some pictures, numbered from 1."""
    joints = np.ones((3, 14, count))
    for number, labels in pictures.items():
        joints[:, :, number - 1] = labels.T
        write_picture(folder / "images" / f"im{number:04d}.jpg", number)
    savemat(folder / "joints.mat", {"joints": joints})
    return folder


def write_lspet(folder: Path, labels: list[NDArray[np.float64]]) -> Path:
    """LSPET: (14, 3, N) with x, y, labelled."""
    for number in range(1, len(labels) + 1):
        write_picture(folder / "images" / f"im{number:05d}.jpg", number)
    savemat(folder / "joints.mat", {"joints": np.stack(labels, axis=2)})
    return folder


def structs(items: list[dict[str, Any]]) -> NDArray[np.void]:
    """A Matlab struct array (1, N); a field that an item lacks is empty in it."""
    names = list(dict.fromkeys(name for item in items for name in item))
    array = np.zeros((1, len(items)), dtype=[(name, object) for name in names])
    for i, item in enumerate(items):
        for name in names:
            array[0, i][name] = item.get(name, np.zeros((0, 0)))
    return array


def mpii_point(joint: int, x: float, y: float, **visible: Any) -> dict[str, Any]:
    """A joint as MPII lists it."""
    return {"id": joint, "x": x, "y": y, **visible}


def mpii_person(points: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """An `annorect`."""
    return {"annopoints": structs([{"point": structs(points)}]), **fields}


def write_mpii(folder: Path, pictures: list[tuple[str, list[dict[str, Any]], int]]) -> Path:
    """The official file, of (name, annorects, img_train)."""
    annolist = [
        {
            "image": structs([{"name": name}]),
            "annorect": structs(people) if people else np.zeros((0, 0)),
        }
        for name, people, _ in pictures
    ]
    training = np.array([[training for _, _, training in pictures]], np.uint8)
    release = structs([{"annolist": structs(annolist), "img_train": training}])
    for i, (name, _, _) in enumerate(pictures):
        write_picture(folder / "images" / name, i)
    savemat(folder / "mpii_human_pose_v1_u12_1.mat", {"RELEASE": release})
    return folder


def write_json(folder: Path, images: list[dict[str, Any]], **document: Any) -> Path:
    """`annotations.json` and a picture for every image that has none yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        if not (folder / "images" / image["file"]).exists():
            write_picture(folder / "images" / image["file"], i)
    (folder / "annotations.json").write_text(json.dumps({**document, "images": images}))
    return folder
