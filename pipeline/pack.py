"""A samples table as a pack, for training with all samples in the memory of one device.

    python -m pipeline.pack train.parquet pack.safetensors [--canvas 256] [--most-mib 35]

Every picture is cut to what a crop can reach, shrunk to fit a square canvas and encoded; samples
that share picture and box share it in the pack. `python -m cpm_core.resident.train` trains on it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cpm_core.errors import CpmError
from cpm_core.resident.pack import (
    CANVAS_MULTIPLE,
    Pack,
    PackInfo,
    bytes_of,
    usable_canvas,
    write_pack,
)
from pipeline.errors import PosemillError, UsageError
from pipeline.packing import FORMATS, KEEP, Packer, Packing, picture_key
from pipeline.samples import SampleTable, decode_sample, iter_rows
from pipeline.storage import StorageOptions

REACH = 2.65
"""Crops of `cpm-lite` stay within this: 1.25 / 0.7 of the box's longer side, turned by 40 degrees
(times 1.41), shifted by 5 % either way. Those of `cpm` and `cpm-vgg` are wider: 3.3."""

_TRIED = 400
"""Pictures of which a quality is found."""
_MARGIN = 0.97
_WORST, _BEST = 10, 98
Rows = Iterator[dict[str, Any]]


def main(arguments: list[str] | None = None) -> int:
    """Write a pack; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        pack(options)
    except (PosemillError, CpmError) as error:
        print(f"pack: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("pipeline.pack", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("table", help="samples table of `posemill import`")
    parser.add_argument("pack", type=Path, help="file to write (.safetensors)")
    parser.add_argument("--canvas", type=int, default=256, help="largest side of a picture, pixels")
    parser.add_argument(
        "--reach", type=float, default=REACH, help="side of what is kept, in boxes' longer sides"
    )
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        default=KEEP,
        help="keep: JPEG and WebP stay as they are, where they are not cut or shrunk (webp)",
    )
    parser.add_argument("--quality", type=int, default=90, help="of the encoder, 1 to 100")
    parser.add_argument(
        "--most-mib", type=float, help="largest file; the best quality that fits is looked for"
    )
    parser.add_argument("--splits", nargs="+", default=["train", "tune"], help="which to take")
    parser.add_argument("--most-samples", type=int, help="of each split: a small pack to try with")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--s3-endpoint", help="URL of an S3-compatible server")
    return parser


def pack(options: argparse.Namespace) -> None:
    """Read the table, write the pack, say what is in it. Raises PosemillError."""
    _check(options)
    cv2.setNumThreads(1)
    table = SampleTable(options.table, StorageOptions(options.s3_endpoint))
    if not len(table.rows("train")):
        raise UsageError(f"{options.table}: no samples in the split 'train'")
    contents, how = _packed(table, options)
    write_pack(options.pack, contents)
    size = options.pack.stat().st_size / 2**20
    counts = ", ".join(f"{name} {len(contents.rows(name)):,}" for name in contents.info.splits)
    print(
        f"{options.pack}: {len(contents.picture):,} samples ({counts}) of {len(contents.ends):,} "
        f"pictures, {how}, {size:.1f} MiB"
    )


def _packed(table: SampleTable, options: argparse.Namespace) -> tuple[Pack, str]:
    """The contents, and how their pictures are encoded. Raises UsageError if they do not fit."""
    most = options.most_mib * 2**20 if options.most_mib else float("inf")
    packing = Packing(options.canvas, options.reach, options.format, options.quality)
    if not options.most_mib or packing.kind == KEEP:
        contents = _contents(table, options, packing)
        if bytes_of(contents) <= most:
            kept = "as they are, or webp" if packing.kind == KEEP else packing.kind
            return contents, f"{kept} of quality {packing.quality}"
        size = bytes_of(contents) / 2**20
        print(f"pack: {size:.1f} MiB as they are; they are encoded anew, as webp", file=sys.stderr)
        packing = replace(packing, kind="webp")
    packing = replace(packing, quality=_fitting_quality(table, options, packing))
    while bytes_of(contents := _contents(table, options, packing)) > most:
        size = bytes_of(contents) / 2**20
        if packing.quality <= _WORST:
            raise UsageError(
                f"{size:.1f} MiB at quality {packing.quality}, more than --most-mib "
                f"{options.most_mib:g}; choose a smaller --canvas"
            )
        print(f"pack: {size:.1f} MiB at quality {packing.quality}: once more", file=sys.stderr)
        packing = replace(packing, quality=max(_WORST, packing.quality - 2))
    return contents, f"{packing.kind} of quality {packing.quality}"


def _check(options: argparse.Namespace) -> None:
    if not usable_canvas(options.canvas):
        raise UsageError(
            f"--canvas {options.canvas}: choose a multiple of {CANVAS_MULTIPLE} from 16 to 4096"
        )
    ranges = (("reach", 0.5, 20), ("quality", 1, 100), ("threads", 1, 256))
    for name, low, high in (*ranges, ("most_samples", 1, 10**9)):
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise UsageError(f"--{name.replace('_', '-')} {value}: choose {low} to {high}")
    if not cv2.haveImageWriter(f"picture{FORMATS[options.format][0]}"):
        raise UsageError(f"--format {options.format}: this OpenCV cannot write it; choose webp")
    if options.most_mib is not None and options.most_mib <= 0:
        raise UsageError(f"--most-mib {options.most_mib}: choose more than 0")


def _rows(table: SampleTable, options: argparse.Namespace) -> Rows:
    return (
        row
        for name in options.splits
        for row in islice(iter_rows(table, name), options.most_samples)
    )


def _contents(table: SampleTable, options: argparse.Namespace, packing: Packing) -> Pack:
    counts = (len(table.rows(name)) for name in options.splits)
    total = sum(min(count, options.most_samples or count) for count in counts)
    source = Path(options.table).name
    info = PackInfo(table.skeleton, options.canvas, tuple(options.splits), source, table.digest)
    with Packer(packing, table.options, options.threads, total) as packer:
        return packer.pack(_rows(table, options), info)


def _fitting_quality(table: SampleTable, options: argparse.Namespace, packing: Packing) -> int:
    """The best quality at which all pictures should fit, as far as some of them can tell."""
    first: dict[bytes, int] = {}
    samples = 0
    for row in _rows(table, options):
        first.setdefault(picture_key(row), samples)
        samples += 1
    chosen = set(list(first.values())[:: max(1, len(first) // _TRIED)])
    pictures = list(_canvases(table, options, packing, chosen))
    # Labels of a sample take some 10 bytes a joint.
    labels = samples * (10 * len(table.skeleton) + 64)
    room = (options.most_mib * 2**20 * _MARGIN - labels) / len(first)
    low, high = _WORST, _BEST
    with ThreadPoolExecutor(options.threads) as pool:
        while low < high:
            middle = (low + high + 1) // 2
            sizes = list(pool.map(replace(packing, quality=middle).encode, pictures))
            fits = sum(map(len, sizes)) <= room * len(sizes)
            low, high = (middle, high) if fits else (low, middle - 1)
    print(f"pack: quality {low} should fit into {options.most_mib:g} MiB", file=sys.stderr)
    return low


def _canvases(
    table: SampleTable, options: argparse.Namespace, packing: Packing, chosen: set[int]
) -> Iterator[NDArray[np.uint8]]:
    """Pictures of some rows as they would be packed."""
    for place, row in enumerate(_rows(table, options)):
        if place in chosen:
            try:
                sample = decode_sample(row, table.options)
                yield packing.window(sample).cut(sample.image)
            except UsageError:
                continue  # Told when the pack is made.


if __name__ == "__main__":
    sys.exit(main())
