"""The settings of `python -m cpm_core.resident.train`; those of a recipe are `posemill train`'s."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cpm_core.augment import Augmentation
from cpm_core.config import PRESETS, CpmConfig, preset
from cpm_core.errors import ConfigError
from cpm_core.losses import LOSSES
from cpm_core.recipe import RECIPES, Phase, Recipe, parse_phases

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}

_RECIPE_FLAGS: dict[str, dict[str, Any]] = {
    "batch_size": {"type": int, "help": "samples per step"},
    "loss": {"choices": tuple(LOSSES), "help": "squared is the paper's"},
    "optimizer": {"choices": ("adamw", "sgd"), "help": "sgd has the release's rates by layer"},
    "learning_rate": {"type": float, "help": "of the stages, or the release's base rate"},
    "trunk_learning_rate": {"type": float, "help": "of the trunk, except for the release's sgd"},
    "weight_decay": {"type": float, "help": "of weights, not of biases"},
    "schedule": {"choices": ("cosine", "step", "constant"), "help": "of the rates over the run"},
    "warmup_steps": {"type": int, "help": "in which the rates rise"},
    "clip_norm": {"type": float, "help": "largest norm of the gradient, 0 for none"},
    "ema_decay": {"type": float, "help": "of the averaged weights, 0 for none"},
    "freeze_blocks": {"type": int, "help": "first blocks of cpm-lite's trunk that are held"},
    "box_factor": {"type": float, "help": "side of the crop in boxes' longer sides"},
}
"""Flags that default to the preset's recipe and bear the name of their field in it."""

_RANGES: dict[str, tuple[float, float]] = {
    "stages": (1, 20),
    "epochs": (0, 10**9),
    "minutes": (0.05, 10**6),
    "batch_size": (1, 10**6),
    "learning_rate": (1e-12, 1e3),
    "trunk_learning_rate": (0, 1e3),
    "weight_decay": (0, 1e3),
    "warmup_steps": (0, 10**9),
    "clip_norm": (0, 1e9),
    "ema_decay": (0, 0.999999),
    "freeze_blocks": (0, 100),
    "box_factor": (0.5, 10),
    "augment_rotation": (0, 180),
    "augment_shift": (0, 1),
    "augment_color": (0, 4),
    "augment_part": (0, 1),
    "augment_erase": (0, 1),
    "seed": (0, 2**63 - 1),
    "threads": (1, 1024),
    "tunes": (1, 10**6),
}


def parser() -> argparse.ArgumentParser:
    """All flags."""
    flags = argparse.ArgumentParser(
        prog="cpm_core.resident.train",
        description="Train on one device with all samples of a pack in its memory.",
        epilog="What is not given is the preset's recipe.",
    )
    flags.add_argument("pack", type=Path, help="samples, as `python -m pipeline.pack` writes them")
    flags.add_argument("weights", type=Path, help="file to write (.safetensors)")
    _add_run(flags)
    for name, how in _RECIPE_FLAGS.items():
        flags.add_argument(_flag(name), **how)
    sizes = flags.add_mutually_exclusive_group()
    sizes.add_argument("--size", type=int, help="side of the crops in pixels, all through the run")
    sizes.add_argument("--phases", nargs="+", help="SHARE:PIXELS, from which share of the run on")
    flags.add_argument(
        "--label-sigma", type=float, nargs=2, help="of the first and last step, in the net's own"
    )
    flags.add_argument("--freeze-batch-norm", action="store_true")
    flags.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    plain = Augmentation()
    flags.add_argument("--augment-scale", type=float, nargs=2, default=plain.scale)
    flags.add_argument("--augment-rotation", type=float, default=plain.rotation_degrees)
    flags.add_argument("--augment-shift", type=float, default=plain.shift)
    flags.add_argument("--augment-flip", action=argparse.BooleanOptionalAction, default=plain.flip)
    flags.add_argument("--augment-color", type=float, default=1.0, help="strength of all three")
    flags.add_argument("--augment-part", type=float, default=plain.part)
    flags.add_argument("--augment-erase", type=float, default=plain.erase)
    flags.add_argument("--seed", type=int, default=0)
    return flags


def _add_run(flags: argparse.ArgumentParser) -> None:
    flags.add_argument("--preset", choices=tuple(PRESETS), default="cpm-lite")
    flags.add_argument("--stages", type=int)
    flags.add_argument("--start-from", help="weights to start from: shipped ones or a file")
    flags.add_argument("--trunk", help="ImageNet weights of the trunk, as of `posemill train`")
    length = flags.add_mutually_exclusive_group(required=True)
    length.add_argument("--epochs", type=int, help="passes over the samples; 0 trains nothing")
    length.add_argument("--minutes", type=float, help="all that the run may take, from its start")
    flags.add_argument("--state", type=Path, help="file to continue from, written on the way")
    flags.add_argument("--log", type=Path, help="JSON lines (default: beside the weights)")
    flags.add_argument("--tunes", type=int, default=20, help="looks at the tuning split in a run")
    flags.add_argument("--name", help="of the weights (default: that of the file)")
    flags.add_argument("--licence", default="unknown", help="of the weights")
    flags.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    flags.add_argument("--threads", type=int, help="CPU threads (default: all)")
    flags.add_argument("--compile", action="store_true", help="torch.compile the network")
    flags.add_argument(
        "--memory-format",
        choices=("auto", *LAYOUTS),
        default="auto",
        help="of the network; auto tries both on GPUs, as depthwise layers may like either",
    )


def recipe(options: argparse.Namespace) -> Recipe:
    """The preset's recipe with what was set. Raises ConfigError that names the flag."""
    _check_ranges(options)
    if options.freeze_blocks and options.preset != "cpm-lite":
        raise ConfigError("--freeze-blocks goes with --preset cpm-lite")
    given = {name: getattr(options, name) for name in _RECIPE_FLAGS}
    changes: dict[str, Any] = {name: v for name, v in given.items() if v is not None}
    if options.size is not None:
        changes["phases"] = (Phase(0.0, options.size),)
    elif options.phases is not None:
        changes["phases"] = _named("--phases", lambda: parse_phases(options.phases))
    if options.label_sigma is not None:
        changes["first_sigma"], changes["last_sigma"] = options.label_sigma
    made = replace(
        RECIPES[options.preset],
        **changes,
        epochs=options.epochs or 0,
        freeze_batch_norm=options.freeze_batch_norm,
        bf16=None if options.precision == "auto" else options.precision == "bf16",
        augmentation=_augmentation(options),
        seed=options.seed,
    )
    for phase in made.phases:
        flag = f"--phases {phase.start:g}:{phase.size}" if options.phases else "--size"
        _named(flag, lambda size=phase.size: PRESETS[options.preset].at_size(size))
    return made


def network(options: argparse.Namespace, made: Recipe, joints: int) -> CpmConfig:
    """The network, for the crop size that it will have at last."""
    stages = options.stages or PRESETS[options.preset].stages
    return preset(options.preset, joints=joints, stages=stages).at_size(made.phases[-1].size)


def _augmentation(options: argparse.Namespace) -> Augmentation:
    plain, color = Augmentation(), options.augment_color
    low, high = options.augment_scale
    return Augmentation(
        scale=(low, high),
        rotation_degrees=options.augment_rotation,
        shift=options.augment_shift,
        flip=options.augment_flip,
        brightness=plain.brightness * color,
        contrast=plain.contrast * color,
        color=plain.color * color,
        erase=options.augment_erase,
        part=options.augment_part,
    )


def _check_ranges(options: argparse.Namespace) -> None:
    for name, (low, high) in _RANGES.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"{_flag(name)} {value}: choose {low:g} to {high:g}")
    low, high = options.augment_scale
    if not 0.1 <= low <= high <= 10:
        raise ConfigError("--augment-scale: give least and largest between 0.1 and 10")
    if options.label_sigma and not all(0.1 <= sigma <= 10 for sigma in options.label_sigma):
        raise ConfigError("--label-sigma: give two factors between 0.1 and 10, such as 2 1")
    if options.weights.suffix != ".safetensors":
        raise ConfigError(f"{options.weights}: weights are written to a .safetensors file")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _named(flag: str, make: Any) -> Any:
    try:
        return make()
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from error
