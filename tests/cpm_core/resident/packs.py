"""Packs in memory, of pictures that are given."""

import cv2
import numpy as np

from cpm_core.resident.pack import Pack, PackInfo
from cpm_core.skeleton import load_skeleton

LSP = load_skeleton("lsp14")


def blobs(seed, width, height):
    """A smooth picture (H, W, 3), so that places a fraction of a pixel apart look alike."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 12 + 2, width // 12 + 2, 3))
    return cv2.resize(noise.astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def pack_of(pictures, samples, skeleton, canvas=128, splits=("train", "tune")):
    """A pack of PNGs (H, W, 3) and of samples (picture, split, `Sample` without its image)."""
    data = [cv2.imencode(".png", p[..., ::-1])[1].ravel() for p in pictures]
    joints = len(skeleton)
    others = [s.others.reshape(-1, joints, 2) for _, _, s in samples]
    flags = [s.others_labelled.reshape(-1, joints) for _, _, s in samples]
    return Pack(
        PackInfo(skeleton, canvas, splits, "test", "digest"),
        np.concatenate(data),
        np.cumsum([len(d) for d in data], dtype=np.int64),
        np.array([p.shape[1::-1] for p in pictures], np.int32),
        np.array([picture for picture, _, _ in samples], np.int32),
        np.array([splits.index(split) for _, split, _ in samples], np.uint8),
        np.array([s.box for _, _, s in samples], np.float32),
        np.array([s.keypoints for _, _, s in samples], np.float32),
        np.array([s.labelled for _, _, s in samples]),
        np.array([len(o) for o in others], np.int32),
        np.concatenate(others).astype(np.float32),
        np.concatenate(flags),
    )


def figures_pack(figures, tune=2):
    """The drawn figures of `tests.cpm_core.conftest` as a pack: some to tune, all to train on."""
    from cpm_core.augment import Sample

    pictures = list(figures.crops.numpy())
    size = len(pictures[0])
    box = np.array([size / 10, size / 10, size * 0.8, size * 0.8])
    samples = [
        (i, split, Sample(pictures[i], box, points, np.ones(len(points), bool)))
        for split, count in (("train", len(pictures)), ("tune", tune))
        for i, points in enumerate(figures.keypoints.numpy()[:count].astype(float))
    ]
    return pack_of(pictures, samples, LSP, canvas=size)
