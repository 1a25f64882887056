"""What a network of the CPM family is made of: `CpmConfig` and its three presets."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from cpm_core.errors import ConfigError

Trunk = Literal["original", "vgg", "lite"]
Pooling = Literal["padded", "ceil"]
ColorOrder = Literal["rgb", "bgr"]

STRIDE = 8
"""Pixels of the input per cell of a belief map, in every network of the family."""

_LARGEST_NUMBER = 1e6


@dataclass(frozen=True)
class CpmConfig:
    """A Convolutional Pose Machine: T stages of J + 1 belief maps, background last, at stride 8.

    Lengths are pixels of the square input. `label_sigma` is the one of the labels it was made for.
    `centre_sigma` 0 means that the net has no centre map. `cell_offset` is the pixel at the centre
    of cell 0: cell g is at 8 g + cell_offset. `pooling` is `padded` (3x3 pools with padding 1, as
    in the PyTorch ports) or `ceil` (no padding and rounding up, as in Caffe); it only matters for
    the `original` trunk and the centre map. `mean` and `std` are in `color_order`.
    """

    trunk: Trunk
    joints: int = 14
    stages: int = 6
    input_size: int = 368
    label_sigma: float = 7.0
    centre_sigma: float = 21.0
    cell_offset: float = 3.5
    pooling: Pooling = "padded"
    color_order: ColorOrder = "bgr"
    mean: tuple[float, float, float] = (128.0, 128.0, 128.0)
    std: tuple[float, float, float] = (256.0, 256.0, 256.0)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self._check_types()
        if not 1 <= self.joints <= 1000:
            raise ConfigError(f"joints is {self.joints}; a skeleton has 1 to 1000 keypoints")
        if not 1 <= self.stages <= 20:
            raise ConfigError(f"stages is {self.stages}; choose 1 to 20")
        multiple = 32 if self.trunk == "lite" else STRIDE
        if not multiple <= self.input_size <= 4096 or self.input_size % multiple:
            raise ConfigError(
                f"input_size is {self.input_size}; it must be a multiple of {multiple} up to 4096"
            )
        if self.label_sigma <= 0 or self.centre_sigma < 0 or min(self.std) <= 0:
            raise ConfigError("label_sigma and std must be positive, centre_sigma 0 or positive")
        if not 0 <= self.cell_offset <= STRIDE:
            raise ConfigError(f"cell_offset is {self.cell_offset}; choose 0 to {STRIDE}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; choose 0 to below 1")

    def _check_types(self) -> None:
        """Values may come from the metadata of a file that anybody wrote."""
        for name, allowed in (("trunk", Trunk), ("pooling", Pooling), ("color_order", ColorOrder)):
            if getattr(self, name) not in get_args(allowed):
                choices = ", ".join(get_args(allowed))
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose one of {choices}")
        for name in ("joints", "stages", "input_size"):
            if type(getattr(self, name)) is not int:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be a whole number")
        for name in ("label_sigma", "centre_sigma", "cell_offset", "dropout"):
            if not _is_number(getattr(self, name)):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be a number")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != 3 or not all(map(_is_number, value)):
                raise ConfigError(f"{name} is {value!r}; it must be three numbers, one per colour")

    @property
    def map_size(self) -> int:
        """Cells along one side of a belief map."""
        return self.input_size // STRIDE

    def at_size(self, input_size: int) -> CpmConfig:
        """The same net for another input size, sigmas in proportion.

        A net without a centre map keeps its label sigma: it was chosen in cells.
        """
        ratio = input_size / self.input_size
        return replace(
            self,
            input_size=input_size,
            label_sigma=self.label_sigma * (ratio if self.centre_sigma else 1),
            centre_sigma=self.centre_sigma * ratio,
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CpmConfig:
        """Build from JSON values; unknown, missing or ill-typed entries raise ConfigError."""
        if not isinstance(values, dict):
            raise ConfigError(f"network settings are a mapping, not {type(values).__name__}")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"unknown network settings: {', '.join(unknown)}")
        if "trunk" not in values:
            raise ConfigError("network settings lack trunk")
        frozen: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**frozen)


def _is_number(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= _LARGEST_NUMBER  # type: ignore[arg-type]


PRESETS: dict[str, CpmConfig] = {
    "cpm": CpmConfig("original", dropout=0.5),
    "cpm-vgg": CpmConfig("vgg"),
    "cpm-lite": CpmConfig(
        "lite",
        stages=3,
        input_size=256,
        label_sigma=8.0,
        centre_sigma=0.0,
        color_order="rgb",
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
    ),
}
"""The paper's net, the authors' later one on a VGG trunk, and a small one for CPUs."""


def preset(name: str, **changes: Any) -> CpmConfig:
    """A preset with changes, as `preset("cpm", joints=16)`. Raises ConfigError if there is none."""
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; choose one of {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)
