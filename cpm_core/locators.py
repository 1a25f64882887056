"""Locators by name: what `--people` chooses, made where it is needed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from cpm_core import cpu
from cpm_core.errors import LocatorError
from cpm_core.people import Locator, WholeImage, YoloxDetector
from cpm_core.person_net.info import checked_threshold, read_info

if TYPE_CHECKING:
    from cpm_core.person_net import PersonNetLocator
    from cpm_core.person_net.compiled import CompiledPersonNet

Kind = Literal["person-net", "boxes", "whole-image", "detector"]
FOUND: tuple[Kind, ...] = ("person-net", "detector")
"""Locators whose boxes have a score that was measured."""

CHOICES = "person-net, boxes, whole-image or detector:FILE.onnx"


@dataclass(frozen=True)
class LocatorSpec:
    """All that a process needs to make a locator; `model` holds an ONNX file's bytes, `net` a
    person-net for processes on CPUs, which need no PyTorch then.

    `sha256` is of the file that finds people, if there is one, and `threshold` the score from which
    a box counts.
    """

    kind: Kind
    threshold: float | None = None
    sha256: str | None = None
    model: bytes | None = field(default=None, repr=False)
    net: CompiledPersonNet | None = field(default=None, repr=False)

    @property
    def identity(self) -> str:
        """What it means for a result: a model is its content, not its path."""
        return self.kind if self.sha256 is None else f"{self.kind}:{self.sha256}"

    @property
    def is_net(self) -> bool:
        """Whether it is a network of PyTorch's, which runs on a GPU (`build_net`) and can be
        compiled (`net`)."""
        return self.kind == "person-net"

    def build(self, device: str = "cpu", threads: int = 1) -> Locator | None:
        """The locator; None where boxes are given. Raises CpmError.

        `device` is where a person-net runs; a detector runs on the CPU. `threads` hold for all that
        torch does in this process.
        """
        if self.kind == "boxes":
            return None
        if self.kind == "whole-image":
            return WholeImage()
        if self.kind == "detector":
            assert self.model is not None
            return YoloxDetector(self.model, self.threshold, threads=threads)
        if self.net is not None and device == "cpu" and cpu.has_openvino():
            assert self.threshold is not None
            return self.net.locator(self.threshold, threads)
        return self.build_net(device, threads)

    def build_net(self, device: str, threads: int = 1) -> PersonNetLocator:
        """The person-net, as `build`, where that is what this names."""
        assert self.is_net
        # Nothing else here needs torch, which takes seconds to import.
        from cpm_core.person_net import PersonNetLocator

        return PersonNetLocator(threshold=self.threshold, device=device, threads=threads)


def check_name(people: str) -> str:
    """`people` if it names a locator. Raises LocatorError."""
    kind, _, file = people.partition(":")
    if people in set(get_args(Kind)) - {"detector"} or (kind == "detector" and file):
        return people
    raise LocatorError(f"choose {CHOICES}")


def read_locator(people: str, threshold: float | None = None) -> LocatorSpec:
    """The locator that `people` names, its file read and checked (of a person-net, which comes with
    the package, only what it says of itself). Raises CpmError.

    `threshold` defaults to the locator's own.
    """
    kind, _, file = check_name(people).partition(":")
    if kind == "detector":
        detector = YoloxDetector(file, threshold)
        content = Path(file).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        return LocatorSpec("detector", detector.threshold, digest, content)
    if kind == "person-net":
        info, digest = read_info()
        threshold = checked_threshold(info.threshold if threshold is None else threshold)
        return LocatorSpec("person-net", threshold, digest)
    return LocatorSpec("boxes" if kind == "boxes" else "whole-image")
