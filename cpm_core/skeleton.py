"""Skeletons: the joints of a pose, how they are linked, mirrored, measured and drawn.

One YAML file drives the number of belief maps, the left/right swap of a flip, the OKS sigmas, PCK's
unit of length, and the colours of an overlay. Three come with the package; a path names a user's
own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import yaml
from numpy.typing import NDArray

from cpm_core.errors import SkeletonError

BUILT_IN = ("lsp14", "mpii16", "coco17")
_FOLDER = Path(__file__).parent / "skeletons"
_REQUIRED = ("name", "keypoints", "limbs", "flip_pairs", "oks_sigmas")
_KNOWN = (*_REQUIRED, "pck_reference")
_MOST_KEYPOINTS = 1000
_DEFAULT_COLOR = "#4d9de0"

Pair = tuple[int, int]


@dataclass(frozen=True)
class Skeleton:
    """A named set of K keypoints. Pairs are indices into `keypoints`.

    `pck_reference` lists the pairs whose distance is PCK's unit, the first labelled one counts;
    empty means the longer side of the box around the labelled joints.
    """

    name: str
    keypoints: tuple[str, ...]
    limbs: tuple[Pair, ...]
    flip_pairs: tuple[Pair, ...]
    oks_sigmas: tuple[float, ...]
    limb_colors: tuple[str, ...]
    pck_reference: tuple[Pair, ...] = ()

    def __len__(self) -> int:
        return len(self.keypoints)

    @cached_property
    def flip_order(self) -> NDArray[np.int64]:
        """(K,) index that swaps left and right: `flipped = points[flip_order]`."""
        order = np.arange(len(self))
        for a, b in self.flip_pairs:
            order[a], order[b] = b, a
        return order

    def index(self, keypoint: str) -> int:
        """Position of a keypoint. Raises SkeletonError that lists those there are."""
        try:
            return self.keypoints.index(keypoint)
        except ValueError:
            raise SkeletonError(
                f"skeleton {self.name} has no keypoint {keypoint!r}; "
                f"it has {', '.join(self.keypoints)}"
            ) from None

    def to_json(self) -> str:
        """The skeleton as one line of JSON, as it travels in weights and table metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Skeleton:
        """Read what `to_json` wrote, with the checks of a file. Raises SkeletonError."""
        try:
            document = yaml.safe_dump(_by_name(json.loads(text)))
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise SkeletonError(f"not a skeleton in JSON: {error!r}") from error
        return _parse(document, "skeleton in JSON")


def _by_name(fields: dict[str, Any]) -> dict[str, Any]:
    """The entries of `to_json` as a skeleton file has them: joints by name, limbs with colours."""
    names = dict(enumerate(fields["keypoints"]))

    def pairs(entry: str) -> list[list[str]]:
        return [[names[a], names[b]] for a, b in fields[entry]]

    limbs = zip(pairs("limbs"), fields["limb_colors"], strict=True)
    return {
        "name": fields["name"],
        "keypoints": list(names.values()),
        "limbs": [[*limb, color] for limb, color in limbs],
        "flip_pairs": pairs("flip_pairs"),
        "oks_sigmas": fields["oks_sigmas"],
        "pck_reference": pairs("pck_reference"),
    }


def load_skeleton(name_or_path: str | Path) -> Skeleton:
    """A skeleton that comes with the package (`lsp14`, `mpii16`, `coco17`) or a YAML file.

    Raises SkeletonError that names the file, the line and the reason.
    """
    built_in = str(name_or_path) in BUILT_IN
    path = _FOLDER / f"{name_or_path}.yaml" if built_in else Path(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SkeletonError(
            f"cannot read skeleton {str(name_or_path)!r}: {error}; "
            f"give a YAML file or one of {', '.join(BUILT_IN)}"
        ) from error
    return _parse(text, str(path))


def _parse(text: str, source: str) -> Skeleton:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SkeletonError(f"{source}, line {line}: not YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SkeletonError(f"{source}, line {line}: not YAML: {error.reason}") from error
    except RecursionError as error:
        raise SkeletonError(f"{source}: nested too deeply for a skeleton") from error
    if not isinstance(root, yaml.MappingNode):
        line = root.start_mark.line + 1 if root else 1
        raise SkeletonError(
            f"{source}, line {line}: expected a mapping with {', '.join(_REQUIRED)}"
        )
    return _Reader(source).skeleton(root)


class _Reader:
    """Builds a Skeleton from YAML nodes; nodes know their line, plain values would not."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.indices: dict[str, int] = {}

    def skeleton(self, root: yaml.MappingNode) -> Skeleton:
        fields = self.fields(root)
        self.indices = self.keypoints(fields["keypoints"])
        limbs = [self.limb(node) for node in self.items(fields["limbs"])]
        return Skeleton(
            name=self.text(fields["name"]),
            keypoints=tuple(self.indices),
            limbs=tuple(limb for limb, _ in limbs),
            limb_colors=tuple(color for _, color in limbs),
            flip_pairs=tuple(self.flip_pairs(fields["flip_pairs"])),
            oks_sigmas=tuple(self.sigmas(fields["oks_sigmas"])),
            pck_reference=tuple(self.pair(n) for n in self.items(fields.get("pck_reference"))),
        )

    def fields(self, root: yaml.MappingNode) -> dict[str, yaml.Node]:
        fields: dict[str, yaml.Node] = {}
        for key, value in root.value:
            name = self.text(key)
            if name not in _KNOWN:
                self.fail(key, f"unknown entry {name!r}; known are {', '.join(_KNOWN)}")
            if name in fields:
                self.fail(key, f"{name} is given twice")
            fields[name] = value
        for name in _REQUIRED:
            if name not in fields:
                self.fail(root, f"{name} is missing")
        return fields

    def keypoints(self, node: yaml.Node) -> dict[str, int]:
        indices: dict[str, int] = {}
        for item in self.items(node):
            name = self.text(item)
            if name in indices:
                self.fail(item, f"keypoint {name!r} is named twice")
            indices[name] = len(indices)
        if not 1 <= len(indices) <= _MOST_KEYPOINTS:
            self.fail(node, f"a skeleton has 1 to {_MOST_KEYPOINTS} keypoints, not {len(indices)}")
        return indices

    def limb(self, node: yaml.Node) -> tuple[Pair, str]:
        items = self.items(node)
        if len(items) not in (2, 3):
            self.fail(node, "a limb is [keypoint, keypoint] or [keypoint, keypoint, '#rrggbb']")
        color = self.text(items[2]) if len(items) == 3 else _DEFAULT_COLOR
        if not re.fullmatch("#[0-9a-fA-F]{6}", color):
            self.fail(node, f"{color!r} is not a colour like '#4d9de0'")
        return self.joints(node, items[:2]), color

    def flip_pairs(self, node: yaml.Node) -> Iterator[Pair]:
        seen: set[int] = set()
        for item in self.items(node):
            pair = self.pair(item)
            for joint in pair:
                if joint in seen:
                    self.fail(item, f"{list(self.indices)[joint]!r} is in two flip pairs")
            seen.update(pair)
            yield pair

    def sigmas(self, node: yaml.Node) -> Iterator[float]:
        items = self.items(node)
        if len(items) != len(self.indices):
            self.fail(node, f"{len(items)} oks_sigmas for {len(self.indices)} keypoints")
        for item in items:
            try:
                sigma = float(self.text(item))
            except ValueError:
                self.fail(item, f"{self.text(item)!r} is not a number")
            if not 0 < sigma < 1:
                self.fail(item, f"an OKS sigma lies between 0 and 1, not {sigma}")
            yield sigma

    def pair(self, node: yaml.Node) -> Pair:
        items = self.items(node)
        if len(items) != 2:
            self.fail(node, "expected a pair [keypoint, keypoint]")
        return self.joints(node, items)

    def joints(self, node: yaml.Node, items: list[yaml.Node]) -> Pair:
        first, second = (self.text(item) for item in items)
        for name in (first, second):
            if name not in self.indices:
                self.fail(node, f"no keypoint is named {name!r}")
        if first == second:
            self.fail(node, f"{first!r} is paired with itself")
        return self.indices[first], self.indices[second]

    def items(self, node: yaml.Node | None) -> list[yaml.Node]:
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            self.fail(node, "expected a list")
        return node.value  # type: ignore[no-any-return]

    def text(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            self.fail(node, "expected a single value")
        return str(node.value)

    def fail(self, node: yaml.Node, reason: str) -> NoReturn:
        raise SkeletonError(f"{self.source}, line {node.start_mark.line + 1}: {reason}")
