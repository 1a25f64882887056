"""What chance decides about the crops of an epoch: `cpm_core.augment`, for all samples at once.

Drawn on the host from (seed, epoch), so that every device cuts the same crops and a run goes on
where it stopped; a few numbers per sample then move to the device once per epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cpm_core.augment import (
    LEAST_FOR_A_PART,
    MOST_RECTANGLES,
    PART_SHARES,
    RECTANGLE_SIDES,
    Augmentation,
)
from cpm_core.resident.pack import Pack
from cpm_core.skeleton import Skeleton


@dataclass(frozen=True)
class Draws:
    """N crops, independent of their size in pixels: a crop is 1 wide, and its middle is 0, 0.

    `picture` (N,); a place q of the crop shows the picture at `centre` (N, 2) + `back` (N, 2, 2) q,
    and its side is `side` (N,) pixels there.
    `keypoints` (N, K, 2) of the crop, `labelled` (N, K), `others` (N, P, K, 2), `others_labelled`
    (N, P, K). A value v of colour c becomes `gain` (N, 3) v + `bias` (N,). `rectangles` (N, 3, 7)
    are erased: width, height, left, top as shares of what is possible, red, green, blue from 0 to
    256; width 0 is none.
    """

    picture: Tensor
    centre: Tensor
    back: Tensor
    side: Tensor
    keypoints: Tensor
    labelled: Tensor
    others: Tensor
    others_labelled: Tensor
    gain: Tensor
    bias: Tensor
    rectangles: Tensor

    def __len__(self) -> int:
        return len(self.picture)

    def to(self, device: torch.device) -> Draws:
        """The same on a device; the host does not wait for a GPU to have them."""
        pinned = device.type == "cuda"
        return Draws(
            **{
                name: (value.pin_memory() if pinned else value).to(device, non_blocking=pinned)
                for name, value in vars(self).items()
            }
        )

    def part(self, chosen: slice, people: int) -> Draws:
        """Some of them, with that many other people at most."""
        some = Draws(**{name: value[chosen] for name, value in vars(self).items()})
        return replace(
            some,
            others=some.others[:, :people],
            others_labelled=some.others_labelled[:, :people],
        )


class Samples:
    """The samples of a pack as tensors on the host, other people filled up to the most there are
    beside anybody: (N, P, K, 2)."""

    def __init__(self, pack: Pack) -> None:
        self.skeleton: Skeleton = pack.info.skeleton
        self.picture = torch.from_numpy(pack.picture).long()
        self.box = torch.from_numpy(pack.box).double()
        self.keypoints = torch.from_numpy(pack.keypoints).double()
        self.labelled = torch.from_numpy(pack.labelled)
        self.others_count = counts = torch.from_numpy(pack.others_count).long()
        people = int(counts.max()) if len(counts) else 0
        there = torch.arange(people) < counts[:, None]
        shape = (len(counts), people, len(self.skeleton))
        self.others = torch.zeros((*shape, 2), dtype=torch.float64)
        self.others[there] = torch.from_numpy(pack.others).double()
        self.others_labelled = torch.zeros(shape, dtype=torch.bool)
        self.others_labelled[there] = torch.from_numpy(pack.others_labelled)

    def draw(
        self, rows: Tensor, box_factor: float, options: Augmentation, generator: torch.Generator
    ) -> Draws:
        """Crops of samples (N,), with the distributions of `cpm_core.augment.training_crop`."""
        dice = _Dice(len(rows), generator)
        factor = box_factor / dice.between(*options.scale)
        angle = torch.deg2rad(dice.between(-options.rotation_degrees, options.rotation_degrees))
        box = self.box[rows]
        if options.part:
            parts = _parts(box, self.keypoints[rows], self.labelled[rows], dice)
            box = torch.where((dice.between() < options.part)[:, None], parts, box)
        longer = box[:, 2:].amax(dim=1)
        shift = dice.between(-options.shift, options.shift, 2) * longer[:, None]
        centre = box[:, :2] + (box[:, 2:] - 1) / 2 + shift
        flip = (dice.between() < 0.5) if options.flip else torch.zeros(len(rows), dtype=torch.bool)
        side = factor * longer
        forth = _turned(angle, 1 / side, flip)
        order = torch.arange(len(self.skeleton)).expand(len(rows), -1)
        mirrored = torch.from_numpy(self.skeleton.flip_order)
        order = torch.where(flip[:, None], mirrored, order)

        def moved(points: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
            """Points (N, P, K, 2) and their flags (N, P, K)."""
            to = order[:, None].expand(labelled.shape)
            points = (points - centre[:, None, None]) @ forth[:, None].transpose(-1, -2)
            pairs = to[..., None].expand(points.shape)
            return points.gather(2, pairs), labelled.gather(2, to)

        points, labelled = moved(self.keypoints[rows, None], self.labelled[rows, None])
        others, others_labelled = moved(self.others[rows], self.others_labelled[rows])
        gain, bias = _colors(dice, options)
        return Draws(
            picture=self.picture[rows],
            centre=centre,
            back=torch.linalg.inv(forth),
            side=side,
            keypoints=points[:, 0],
            labelled=labelled[:, 0],
            others=others,
            others_labelled=others_labelled,
            gain=gain,
            bias=bias,
            rectangles=_rectangles(dice, options.erase),
        )


def generator(*seed: int) -> torch.Generator:
    """Random numbers that depend on these numbers only."""
    state = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


class _Dice:
    """Uniform numbers (N,), or (N, columns), in double precision."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count, self.generator = count, generator

    def between(self, low: float = 0.0, high: float = 1.0, *columns: int) -> Tensor:
        shape = (self.count, *columns)
        drawn = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return low + (high - low) * drawn


def _turned(angle: Tensor, scale: Tensor, flip: Tensor) -> Tensor:
    """(N, 2, 2) from picture to crop, as `cpm_core.geometry.crop_matrix`."""
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    sign = torch.where(flip, -1.0, 1.0)
    return torch.stack([torch.stack([sign * cos, -sign * sin], 1), torch.stack([sin, cos], 1)], 1)


def _parts(box: Tensor, points: Tensor, labelled: Tensor, dice: _Dice) -> Tensor:
    """(N, 4) boxes around a part of the body, as `cpm_core.augment`; with few labels `box`."""
    count = labelled.sum(dim=1)
    joints = labelled.shape[1]
    chosen = torch.where(labelled, dice.between(0, 1, joints), -1.0).argmax(dim=1)
    seed = points[torch.arange(len(points)), chosen]
    distance = (points - seed[:, None]).norm(dim=2).where(labelled, torch.tensor(math.inf))
    rank = distance.argsort(dim=1, stable=True).argsort(dim=1)
    taken = (count * dice.between(*PART_SHARES)).round()
    near = (rank < taken[:, None])[..., None]
    low = points.where(near, torch.tensor(math.inf)).amin(dim=1)
    high = points.where(near, torch.tensor(-math.inf)).amax(dim=1)
    size = torch.maximum(high - low, box[:, 2:].amax(dim=1, keepdim=True) / 4)
    part = torch.cat([(low + high) / 2 - size / 2, size], dim=1)
    return torch.where((count >= LEAST_FOR_A_PART)[:, None], part, box)


def _colors(dice: _Dice, options: Augmentation) -> tuple[Tensor, Tensor]:
    """Gain (N, 3) and bias (N,) of a crop's values."""
    gain = 1 + dice.between(-options.contrast, options.contrast)
    channels = gain[:, None] * (1 + dice.between(-options.color, options.color, 3))
    bias = 128 * (1 - gain) + 128 * dice.between(-options.brightness, options.brightness)
    return channels, bias


def _rectangles(dice: _Dice, share: float) -> Tensor:
    """(N, 3, 7) as in `Draws`: one to three of them in a share of the crops."""
    if not share:
        return torch.zeros((dice.count, 0, 7), dtype=torch.float64)
    sides = dice.between(*RECTANGLE_SIDES, MOST_RECTANGLES, 2)
    places = dice.between(0, 1, MOST_RECTANGLES, 2)
    colors = dice.between(0, 256, MOST_RECTANGLES, 3).floor()
    wanted = 1 + (dice.between() * MOST_RECTANGLES).floor()
    wanted = torch.where(dice.between() < share, wanted, 0)
    there = torch.arange(MOST_RECTANGLES) < wanted[:, None]
    return torch.cat([sides * there[..., None], places, colors], dim=2)
