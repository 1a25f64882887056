"""What is kept apart for tuning: whole groups of near-duplicates, chosen by a hash of their name.

A picture of which training has seen the neighbour would flatter every figure that steers training.
The choice depends on the pictures and their names only, not on the order of the files.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from pipeline.importing.near_duplicates import Thumbnail, near_duplicate_groups
from pipeline.importing.record import TRAIN, Labelled

log = logging.getLogger("posemill")


@dataclass
class Survey:
    """What the first pass saw, by the pictures' source: splits, wanted people, thumbnails."""

    splits: dict[str, set[str]] = field(default_factory=dict)
    people: Counter[str] = field(default_factory=Counter)
    thumbnails: dict[str, Thumbnail] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def note(self, labelled: Labelled) -> bool:
        """Count a picture's people; whether the picture itself is new."""
        new = labelled.source not in self.splits
        self.splits.setdefault(labelled.source, set()).add(labelled.split)
        self.people[labelled.source] += sum(person.wanted for person in labelled.people)
        return new


@dataclass(frozen=True)
class Groups:
    """Group of every picture, by source, and the pictures that are for tuning."""

    group: dict[str, int]
    tune: frozenset[str]

    @property
    def count(self) -> int:
        """How many groups there are."""
        return len(set(self.group.values()))


def group_pictures(survey: Survey, share: float) -> Groups:
    """Groups of near-duplicates, and about `share` of the training samples for tuning."""
    sources = sorted(survey.thumbnails)
    if not sources:
        return Groups({}, frozenset())
    roots = near_duplicate_groups(np.stack([survey.thumbnails[source] for source in sources]))
    # A group is named after its first picture, which is its lowest in order of names.
    group = {s: _number(sources[root]) for s, root in zip(sources, roots.tolist(), strict=True)}
    _warn_of_leaks(survey, group)
    tune = _chosen(survey, group, share)
    if not tune:
        log.warning(
            "import: the training pictures look too much alike to keep %.0f %% of them apart: "
            "single pictures are taken for tuning, whose figures will flatter",
            100 * share,
        )
        tune = _chosen(survey, {source: _number(source) for source in sources}, share)
    return Groups(group, frozenset(tune))


def _chosen(survey: Survey, group: dict[str, int], share: float) -> set[str]:
    """The sources of whole groups, lowest number first, until the share is met.

    A group that is larger than what is still missing stays in training, and so does one that has
    pictures of another split, too: its tuning figures would rest on what is being reported.
    """
    sizes: Counter[int] = Counter()
    mixed = set()
    for source, number in group.items():
        sizes[number] += survey.people[source]
        if survey.splits[source] != {TRAIN}:
            mixed.add(number)
    own = {number: size for number, size in sizes.items() if number not in mixed}
    missing = max(1, round(share * sum(own.values())))
    chosen = set()
    for number in sorted(own):
        if 0 < own[number] <= missing:
            chosen.add(number)
            missing -= own[number]
    return {source for source, number in group.items() if number in chosen}


def _warn_of_leaks(survey: Survey, group: dict[str, int]) -> None:
    """Say how many training pictures nearly stand in another split of the same source."""
    splits: dict[int, set[str]] = {}
    for source, number in group.items():
        splits.setdefault(number, set()).update(survey.splits[source])
    leaks = sum(
        TRAIN in survey.splits[source] and len(splits[number]) > 1
        for source, number in group.items()
    )
    if leaks:
        log.warning(
            "import: %d training pictures have a near-duplicate in another split of this source "
            "(same `group`)",
            leaks,
        )


def _number(name: str) -> int:
    """A number of 63 bits that depends on nothing but the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
