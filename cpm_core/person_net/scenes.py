"""Training scenes: pictures at any place and scale, in mosaics, pasted on others, cut and covered.

Training pictures have their person in the middle; scenes must not. A scene is painted in layers,
and a map of who painted each place tells what is visible of a person in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cpm_core.geometry import FILL
from cpm_core.people import Picture
from cpm_core.person_net.photos import Boxes, Kind, Photo

_OWNER_STEP = 4
"""Pixels of the scene per cell of the map of owners."""
_VISIBLE = 0.35
"""Share of a person that must be seen to be asked for; less is a region to ignore."""
_SHORTEST = 1 / 16
"""Shorter people, in units of the scene, are ignored."""
_ENLARGED = 3.0
_WINDOW = 80
"""Pixels: the smallest person-free window worth keeping."""


@dataclass(frozen=True)
class Scene:
    """An RGB picture (S, S, 3), boxes (N, 4) of people and regions to ignore (M, 4), in pixels."""

    image: Picture
    boxes: Boxes
    ignore: Boxes


class Canvas:
    """A scene in the making, of side S pixels."""

    def __init__(self, size: int, colour: tuple[int, int, int] = (FILL, FILL, FILL)) -> None:
        self.size = size
        self.image = np.full((size, size, 3), colour, np.uint8)
        cells = -(-size // _OWNER_STEP)
        self._owner = np.zeros((cells, cells), np.int16)
        self._layers = 0
        self._people: list[tuple[int, Boxes, bool]] = []

    def paint(
        self, photo: Photo, matrix: Boxes, window: tuple[int, int, int, int], table: Picture
    ) -> None:
        """Draw what a photo shows in the window x0, y0, x1, y1 of the scene.

        `matrix` (2, 3), upright and mirrored at most, takes the photo's pixels to the scene's;
        `table` (256, 3) recolours.
        """
        height, width = photo.image.shape[:2]
        x0, y0, x1, y1 = _common(window, _moved(np.array([[0, 0, width, height]]), matrix)[0])
        if x1 - x0 < 2 or y1 - y0 < 2:
            return
        shifted = matrix - np.array([[0, 0, x0], [0, 0, y0]])
        image, shifted = _averaged(photo.image, shifted)
        part = cv2.warpAffine(
            image,
            shifted,
            (x1 - x0, y1 - y0),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        self.image[y0:y1, x0:x1] = cv2.LUT(part, table[None])
        self._layers += 1
        step = _OWNER_STEP
        self._owner[y0 // step : -(-y1 // step), x0 // step : -(-x1 // step)] = self._layers
        for boxes, person in ((photo.boxes, True), (photo.ignore, False)):
            self._people += [(self._layers, box, person) for box in _moved(boxes, matrix)]

    def scene(self) -> Scene:
        """The picture, and what is visible of everybody in it."""
        people: list[Boxes] = []
        ignore: list[Boxes] = []
        for layer, box, person in self._people:
            seen, share = self._visible(layer, box)
            if seen is None:
                continue
            tall = max(seen[2:]) >= _SHORTEST * self.size
            (people if person and share >= _VISIBLE and tall else ignore).append(seen)
        return Scene(self.image, _stack(people), _stack(ignore))

    def _visible(self, layer: int, box: Boxes) -> tuple[Boxes | None, float]:
        """The box around what is seen of a box, and the share that is seen."""
        low = np.clip(box[:2], 0, self.size)
        high = np.clip(box[:2] + box[2:], 0, self.size)
        if (high - low < 2).any():
            return None, 0.0
        (x0, y0), (x1, y1) = (low // _OWNER_STEP).astype(int), -(-high // _OWNER_STEP).astype(int)
        mine = self._owner[y0:y1, x0:x1] == layer
        if not mine.any():
            return None, 0.0
        rows, columns = np.flatnonzero(mine.any(axis=1)), np.flatnonzero(mine.any(axis=0))
        first = np.array([x0 + columns[0], y0 + rows[0]]) * _OWNER_STEP
        last = np.array([x0 + columns[-1] + 1, y0 + rows[-1] + 1]) * _OWNER_STEP
        low, high = np.maximum(low, first), np.minimum(high, last)
        inside = (high - low).prod() / max(box[2:].prod(), 1e-9)
        filled = mine[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean()
        return np.concatenate([low, high - low]), float(inside * filled)


class SceneMaker:
    """Scenes of side `size` from photos; the same scene for the same seed."""

    def __init__(self, photos: Sequence[Photo]) -> None:
        self.by_kind: dict[Kind, list[Photo]] = {}
        for photo in photos:
            self.by_kind.setdefault(photo.kind, []).append(photo)
        self.peopled = {k: p for k, p in self.by_kind.items() if k != "negative"}
        rng = np.random.default_rng(0)
        self.free = [window for photo in photos for window in person_free(photo, rng)]
        self.negatives = self.by_kind.get("negative", [])
        self.layouts: tuple[tuple[float, Callable[..., None]], ...] = (
            (0.46, self._zoom),
            (0.30, self._mosaic),
            (0.11, self._paste),
            (0.13, self._empty),
        )

    def scene(self, size: int, seed: tuple[int, ...]) -> Scene:
        """A scene for a seed such as (run seed, step, index in the batch)."""
        rng = np.random.default_rng(seed)
        canvas = Canvas(size)
        chances = [chance for chance, _ in self.layouts]
        self.layouts[rng.choice(len(chances), p=chances)][1](canvas, rng)
        for _ in range(rng.integers(0, 3) if rng.random() < 0.3 else 0):
            self._cover(canvas, rng)
        scene = canvas.scene()
        return Scene(degrade(scene.image, rng), scene.boxes, scene.ignore)

    def _zoom(self, canvas: Canvas, rng: np.random.Generator) -> None:
        """One photo, a person of which is anywhere and between a tenth and more than all."""
        photo = self._peopled_photo(rng, {"coco": 0.5, "lspet": 0.3, "people": 0.14, "video": 0.06})
        size = canvas.size
        as_located = rng.random() < 0.45 and photo.kind != "lspet"
        if not as_located and rng.random() < 0.8:
            self._background(canvas, rng)
        if as_located:
            # As the locator sees it: the whole picture, at the top left of the square.
            longest = max(photo.image.shape[:2])
            aspect = np.exp(rng.uniform(-0.1, 0.1))
            zoom = size / longest * rng.uniform(0.85, 1.3)
            matrix = _upright(photo, zoom, aspect, rng.random() < 0.5)
            if rng.random() < 0.6:
                matrix[:, 2] += rng.uniform(-0.25, 0.1, 2) * size
        else:
            matrix = self._anchored(
                photo, size, rng, np.exp(rng.uniform(np.log(0.15), np.log(1.3)))
            )
        canvas.paint(photo, matrix, (0, 0, size, size), recolour(rng))

    def _anchored(self, photo: Photo, size: int, rng: np.random.Generator, height: float) -> Boxes:
        """One of the photo's people gets this height (of the scene) and a place in it."""
        boxes = photo.boxes
        if not len(boxes):
            boxes = np.array([[0, 0, photo.image.shape[1], photo.image.shape[0]]], np.float64)
        x, y, w, h = boxes[rng.integers(len(boxes))]
        scale = min(height * size / max(h, 0.7 * w), _ENLARGED)
        matrix = _upright(photo, scale, np.exp(rng.uniform(-0.12, 0.12)), rng.random() < 0.5)
        middle = matrix[:, :2] @ [x + w / 2, y + h / 2] + matrix[:, 2]
        matrix[:, 2] += rng.uniform(0.05, 0.95, 2) * size - middle
        return matrix

    def _mosaic(self, canvas: Canvas, rng: np.random.Generator) -> None:
        """Four photos, or nine, side by side."""
        size, parts = canvas.size, 2 if rng.random() < 0.7 else 3
        cuts = []
        for _ in range(2):
            inner = (np.arange(1, parts) + rng.uniform(-0.3, 0.3, parts - 1)) / parts * size
            cuts.append([0, *inner.astype(int), size])
        chances: dict[Kind, float] = {"coco": 0.25, "lspet": 0.65, "people": 0.1}
        for x0, x1 in zip(cuts[0], cuts[0][1:], strict=False):
            for y0, y1 in zip(cuts[1], cuts[1][1:], strict=False):
                window = (x0, y0, x1, y1)
                if rng.random() < 0.25:
                    self._fill(canvas, self._empty_photo(rng), window, rng)
                else:
                    self._fill(canvas, self._peopled_photo(rng, chances), window, rng)

    def _paste(self, canvas: Canvas, rng: np.random.Generator) -> None:
        """People with some of their surroundings, on a picture without people."""
        self._background(canvas, rng)
        size = canvas.size
        for _ in range(rng.integers(1, 5)):
            photo = self._peopled_photo(rng, {"lspet": 0.8, "coco": 0.2})
            if not len(photo.boxes):
                continue
            height = np.exp(rng.uniform(np.log(0.1), np.log(0.7)))
            matrix = self._anchored(photo, size, rng, height)
            # The first person's box and a margin, as long as it fits.
            box = _moved(photo.boxes[rng.integers(len(photo.boxes))][None], matrix)[0]
            margin = rng.uniform(0.02, 0.5, 4) * np.tile(box[2:], 2)
            low, high = box[:2] - margin[:2], box[:2] + box[2:] + margin[2:]
            window = np.clip(np.concatenate([low, high]), 0, size).astype(int)
            canvas.paint(photo, matrix, tuple(window), recolour(rng))

    def _empty(self, canvas: Canvas, rng: np.random.Generator) -> None:
        """Nobody: a picture without people, or several."""
        if rng.random() < 0.4:
            canvas.image[:] = rng.integers(0, 256)
        else:
            self._background(canvas, rng)
        size = canvas.size
        for _ in range(rng.integers(0, 4)):
            low = rng.integers(0, size // 2, 2)
            high = low + rng.integers(size // 6, size, 2)
            x0, y0, x1, y1 = np.clip([*low, *high], 0, size)
            self._fill(canvas, self._empty_photo(rng), (x0, y0, x1, y1), rng)

    def _cover(self, canvas: Canvas, rng: np.random.Generator) -> None:
        """Hide a part of the scene behind something that is no person."""
        size = canvas.size
        w, h = rng.integers(size // 12, int(size / 2.5), 2)
        x, y = rng.integers(0, size - w), rng.integers(0, size - h)
        self._fill(canvas, self._empty_photo(rng), (x, y, x + w, y + h), rng)

    def _background(self, canvas: Canvas, rng: np.random.Generator) -> None:
        self._fill(canvas, self._empty_photo(rng), (0, 0, canvas.size, canvas.size), rng)

    def _fill(
        self,
        canvas: Canvas,
        photo: Photo,
        window: tuple[int, int, int, int],
        rng: np.random.Generator,
    ) -> None:
        """A photo that covers a window, or a little less of it or more."""
        x0, y0, x1, y1 = window
        height, width = photo.image.shape[:2]
        scale = max((x1 - x0) / width, (y1 - y0) / height) * np.exp(rng.uniform(-0.1, 0.7))
        matrix = _upright(photo, scale, np.exp(rng.uniform(-0.15, 0.15)), rng.random() < 0.5)
        w, h = _moved(np.array([[0, 0, width, height]]), matrix)[0][2:]
        place = np.array([x0, y0]) - rng.uniform(0, 1, 2) * [w - (x1 - x0), h - (y1 - y0)]
        matrix[:, 2] += place - _moved(np.array([[0, 0, width, height]]), matrix)[0][:2]
        canvas.paint(photo, matrix, window, recolour(rng))

    def _peopled_photo(self, rng: np.random.Generator, chances: dict[Kind, float]) -> Photo:
        kinds = [kind for kind in chances if kind in self.peopled] or list(self.peopled)
        weights = np.array([chances.get(kind, 1.0) for kind in kinds])
        photos = self.peopled[kinds[rng.choice(len(kinds), p=weights / weights.sum())]]
        return photos[rng.integers(len(photos))]

    def _empty_photo(self, rng: np.random.Generator) -> Photo:
        """A picture without people: a negative, or a window of another picture."""
        if self.negatives and (not self.free or rng.random() < 0.4):
            return self.negatives[rng.integers(len(self.negatives))]
        if self.free:
            return self.free[rng.integers(len(self.free))]
        noise = rng.integers(0, 256, (8, 8, 3), np.uint8)
        return Photo("negative", "noise", noise, np.zeros((0, 4)), np.zeros((0, 4)))


def person_free(photo: Photo, rng: np.random.Generator, most: int = 4) -> list[Photo]:
    """Windows of a photo that touch neither a person nor a region to ignore, large ones first."""
    height, width = photo.image.shape[:2]
    taken = np.concatenate([photo.boxes, photo.ignore])
    found: list[Photo] = []
    for shrink in np.linspace(1, 0.15, 24 if len(taken) else 1):
        w, h = np.clip(
            np.array([width, height]) * shrink * np.exp(rng.uniform(-0.4, 0.4, 2)),
            1,
            [width, height],
        ).astype(int)
        if min(w, h) < _WINDOW:
            continue
        x, y = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
        apart = (
            (taken[:, 0] >= x + w)
            | (taken[:, 1] >= y + h)
            | (taken[:, 0] + taken[:, 2] <= x)
            | (taken[:, 1] + taken[:, 3] <= y)
        )
        if apart.all():
            part = photo.image[y : y + h, x : x + w]
            found.append(Photo("negative", photo.name, part, np.zeros((0, 4)), np.zeros((0, 4))))
            if len(found) == most:
                break
    return found


def recolour(rng: np.random.Generator) -> Picture:
    """A random table (256, 3) of brightness, contrast and colour."""
    gain = rng.uniform(0.7, 1.3) * rng.uniform(0.9, 1.1, 3)
    shift = 128 * (1 - gain) + rng.uniform(-30, 30)
    return np.clip(np.arange(256)[:, None] * gain + shift, 0, 255).astype(np.uint8)


def degrade(image: Picture, rng: np.random.Generator) -> Picture:
    """Sometimes grey, blurred, noisy or JPEG-coded: pictures differ in that, people do not."""
    if rng.random() < 0.06:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        image = np.repeat(grey[:, :, None], 3, axis=2)
    if rng.random() < 0.1:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.3))  # type: ignore[assignment]
    if rng.random() < 0.1:
        noise = rng.normal(0, rng.uniform(2, 10), image.shape)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.15:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 90))]
        image = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], 1)  # type: ignore[assignment]
    return image


def _upright(photo: Photo, scale: float, aspect: float, flip: bool) -> Boxes:
    """(2, 3) matrix that scales (x by `aspect` more) and mirrors, with the photo's corner at 0."""
    sx, sy = scale * np.sqrt(aspect), scale / np.sqrt(aspect)
    matrix = np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2]])
    if flip:
        matrix[0] = [-sx, 0, sx * photo.image.shape[1] - 1 - matrix[0, 2]]
    return matrix


def _moved(boxes: Boxes, matrix: Boxes) -> Boxes:
    """Boxes (N, 4) under an upright matrix; a box covers the whole area of its pixels."""
    scale = np.diag(matrix[:, :2])
    corners = np.stack([boxes[:, :2] - 0.5, boxes[:, :2] + boxes[:, 2:] - 0.5])
    a, b = corners * scale + matrix[:, 2]
    low, high = np.minimum(a, b), np.maximum(a, b)
    return np.concatenate([low + 0.5, high - low], axis=1)


def _common(window: tuple[int, int, int, int], box: Boxes) -> tuple[int, int, int, int]:
    """The pixels of a window that a box covers."""
    x0, y0 = np.maximum(window[:2], np.rint(box[:2])).astype(int)
    x1, y1 = np.minimum(window[2:], np.rint(box[:2] + box[2:])).astype(int)
    return int(x0), int(y0), int(x1), int(y1)


def _averaged(image: Picture, matrix: Boxes) -> tuple[Picture, Boxes]:
    """Half the picture as often as it will shrink to less than that, so that it does not alias."""
    while abs(matrix[0, 0]) < 0.6 and abs(matrix[1, 1]) < 0.6 and min(image.shape[:2]) >= 4:
        height, width = image.shape[0] // 2, image.shape[1] // 2
        ratio = np.array([image.shape[1] / width, image.shape[0] / height])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        linear = matrix[:, :2] * ratio
        matrix = np.column_stack([linear, matrix[:, 2] + matrix[:, :2] @ (0.5 * ratio - 0.5)])
    return image, matrix


def _stack(boxes: list[Boxes] | list[NDArray[np.float64]]) -> Boxes:
    return np.array(boxes, np.float64).reshape(-1, 4)
