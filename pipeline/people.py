"""Who says where people are: the settings, and what is given, brought together."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from cpm_core.errors import CpmError
from cpm_core.locators import FOUND, LocatorSpec, read_locator
from cpm_core.poses import SAME_PERSON
from pipeline.config import AnnotateSettings
from pipeline.errors import UsageError
from pipeline.lists import Boxes, boxes_by_uri, has_boxes, read_table
from pipeline.storage import StorageOptions

DEFAULT = "person-net"


@dataclass(frozen=True)
class Who:
    """The locator, the boxes of `--boxes` if there are any, and the OKS from which two poses are
    one person (None: nobody is dropped)."""

    locator: LocatorSpec
    boxes: Boxes | None
    same_person: float | None

    def fingerprint_fields(self) -> dict[str, Any]:
        """What changes the table, with files replaced by what is in them."""
        return {
            "people": self.locator.identity,
            "person_threshold": self.locator.threshold,
            "same_person": self.same_person,
            "boxes": _digest(self.boxes),
        }

    def metadata(self) -> dict[str, Any]:
        """What stands in the metadata of every part."""
        locator = self.locator
        return {
            "locator": locator.kind,
            "locator_sha256": locator.sha256,
            "threshold": locator.threshold,
            "same_person": self.same_person,
        }


def who(settings: AnnotateSettings, storage: StorageOptions) -> Who:
    """What the settings mean. Raises UsageError."""
    boxes = None
    if settings.boxes is not None:
        boxes = boxes_by_uri(read_table(settings.boxes, storage), settings.boxes)
    people = settings.people or _default(settings, storage)
    locator = locator_of(people, settings.person_threshold)
    if settings.locator_device == "cuda" and not locator.is_net:
        raise UsageError(
            f"--locator-device cuda goes with --people person-net, not {people}, which "
            "locates without a GPU: leave --locator-device out"
        )
    return Who(locator, boxes, same_person_of(locator, settings.same_person))


def locator_of(people: str, threshold: float | None) -> LocatorSpec:
    """The locator of `--people`, loaded once. Raises UsageError."""
    if threshold is not None and people in ("boxes", "whole-image"):
        raise UsageError(f"--person-threshold does not go with --people {people}")
    try:
        return read_locator(people, threshold)
    except (CpmError, OSError) as error:
        raise UsageError(f"--people {people}: {error}") from error


def same_person_of(locator: LocatorSpec, given: float | None) -> float | None:
    """The OKS of `--same-person`; a box that somebody gave keeps its row unless that is asked."""
    if given is None:
        return SAME_PERSON if locator.kind in FOUND else None
    return given if given < 1 else None


def _default(settings: AnnotateSettings, storage: StorageOptions) -> str:
    """Boxes where they are given, for all inputs; else the locator in the box."""
    if settings.boxes is not None:
        return "boxes"
    given = {name: has_boxes(name, storage) for name in settings.input}
    if any(given.values()) and not all(given.values()):
        names = {answer: name for name, answer in given.items()}
        raise UsageError(
            f"{names[True]} gives boxes and {names[False]} does not: say --people boxes or "
            f"--people {DEFAULT}"
        )
    return "boxes" if any(given.values()) else DEFAULT


def _digest(boxes: Boxes | None) -> str | None:
    if boxes is None:
        return None
    return hashlib.sha256(json.dumps(sorted(boxes.items())).encode()).hexdigest()
