"""What a person-net is made of."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from cpm_core.errors import ConfigError

STRIDE = 8
"""Pixels of the input per cell of the maps."""

SIZE_UNIT = 64.0
"""Pixels of the input that a logarithm of size 0 stands for."""

OFFSET = (STRIDE - 1) / 2
"""The pixel at the centre of cell 0: cell g is at 8 g + OFFSET."""

LARGEST_LOG = 4.0
"""Limit of a log size: 55 times the unit, far beyond any input."""

_MULTIPLE = 32
"""The coarsest stride of the trunk."""


@dataclass(frozen=True)
class PersonNetConfig:
    """Stages of a person-net and the side in pixels of its square input.

    `blocks` is the number of 9x9 blocks of each stage: as many stages as entries. `mean` and `std`
    are of RGB values 0 to 255.
    """

    input_size: int = 320
    blocks: tuple[int, ...] = (1, 2)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if not _whole(self.input_size) or self.input_size % _MULTIPLE:
            raise ConfigError(f"input_size is {self.input_size!r}; use a multiple of {_MULTIPLE}")
        if not _MULTIPLE <= self.input_size <= 4096:
            raise ConfigError(f"input_size is {self.input_size}; choose {_MULTIPLE} to 4096")
        stages = self.blocks if isinstance(self.blocks, tuple) else ()
        if not 1 <= len(stages) <= 10 or not all(_whole(n) and 1 <= n <= 10 for n in stages):
            raise ConfigError(f"blocks is {self.blocks!r}; list 1 to 10 whole numbers of 1 to 10")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or len(values) != 3 or not all(map(_number, values)):
                raise ConfigError(f"{name} is {values!r}; list three numbers")
        if min(self.std) <= 0:
            raise ConfigError(f"std is {self.std}; the numbers must be positive")

    @classmethod
    def from_dict(cls, values: object) -> PersonNetConfig:
        """From JSON values. Raises ConfigError for settings that are missing, unknown or unfit."""
        if not isinstance(values, dict):
            raise ConfigError("the settings of a person-net are a mapping")
        known = {f.name for f in fields(cls)}
        for problem, names in (
            ("unknown", values.keys() - known),
            ("missing", known - values.keys()),
        ):
            if names:
                raise ConfigError(f"{problem} person-net settings: {', '.join(sorted(names))}")
        frozen: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**frozen)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e6
