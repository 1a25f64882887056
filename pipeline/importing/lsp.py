"""Leeds Sports Pose and its extended training set: `joints.mat` and `images/`.

The two look alike and are not: LSP's array is (3, 14, N) and its third row is 1 where a joint is
*occluded* (every joint is labelled); LSPET's is (14, 3, N) and its third column is 1 where a joint
is *labelled* (whether it is occluded is not told). Both count pixels from 1, as Matlab does; the
CPM release takes 1 off both. Left and right are the person's own.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cpm_core.skeleton import load_skeleton
from pipeline.errors import UsageError
from pipeline.importing.files import below, checked, mat_variable
from pipeline.importing.record import TRAIN, Labelled, Person, Reading
from pipeline.importing.settings import ImportSettings
from pipeline.matlab import LAYOUTS, Layout, layout_of, pages, points_and_flags

_LSP_TRAINING = 1000
"""Pictures 1 to 1000 are for training, the others for the test."""

_DIGITS: dict[Layout, int] = {"lsp": 4, "lspet": 5}


def read(settings: ImportSettings) -> Reading:
    """The labels of `lsp` or `lspet`, as `settings.format` says."""
    name: Layout = "lsp" if settings.format == "lsp" else "lspet"
    folder = settings.input
    file = below(folder, "joints.mat")
    fix = f"give the folder of the {name} dataset, with joints.mat and images/"
    joints = _checked_shape(np.asarray(mat_variable(file, settings, "joints", fix)), file, name)
    images = settings.images or below(folder, "images")
    skeleton = load_skeleton("lsp14")

    def pictures() -> Iterator[Labelled]:
        for i in range(joints.shape[2]):
            image = f"im{i + 1:0{_DIGITS[name]}d}.jpg"
            split = settings.split or _split(name, i)
            yield Labelled(image, below(images, image), split, (person(name, joints[:, :, i]),))

    last = joints.shape[2] - 1
    splits = frozenset({settings.split} if settings.split else {TRAIN, _split(name, last)})
    return Reading(skeleton.keypoints, skeleton, splits, lambda: checked(file, pictures()))


def person(name: Layout, joints: NDArray[np.generic]) -> Person:
    """One picture's slice of `joints`: (3, 14) of lsp, (14, 3) of lspet."""
    (points,), (flags,) = points_and_flags(pages(joints), name)
    if name == "lsp":
        return Person(points - 1, labelled=np.ones(len(points), bool), occluded=flags)
    return Person(points - 1, labelled=flags)


def _split(name: Layout, index: int) -> str:
    return TRAIN if name == "lspet" or index < _LSP_TRAINING else "test"


def _checked_shape(joints: NDArray[np.generic], file: str, name: Layout) -> NDArray[np.generic]:
    joints = pages(joints)
    layout, numeric = layout_of(joints), joints.dtype.kind in "iuf"
    if numeric and layout == name:
        return joints
    found = f"({', '.join(map(str, joints.shape))}) of {joints.dtype}"
    rows, columns = LAYOUTS[name]
    message = f"{file}: `joints` is {found}; {name} has ({rows}, {columns}, N)"
    if layout not in (None, name):
        message += f": this looks like {layout}; use `posemill import {layout}`"
    raise UsageError(message)
