"""The import itself: one pass over the pictures to find near-duplicates, one to write."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cpm_core.errors import CpmError
from cpm_core.skeleton import Skeleton, load_skeleton
from pipeline.errors import UsageError
from pipeline.importing import annotated, coco, lsp, mpii, plain_json
from pipeline.importing.pictures import Looked, fetch_only, in_threads, look
from pipeline.importing.record import LEAST_SPAN, TRAIN, TUNE, JointMap, Labelled, Reading
from pipeline.importing.settings import ImportSettings
from pipeline.importing.table import SamplesWriter, person_columns
from pipeline.importing.tuning import Groups, Survey, group_pictures
from pipeline.pace import Pace
from pipeline.storage import path_of

log = logging.getLogger("posemill")

_READERS: dict[str, Callable[[ImportSettings], Reading]] = {
    "lsp": lsp.read,
    "lspet": lsp.read,
    "mpii": mpii.read,
    "coco": coco.read,
    "json": plain_json.read,
    "annotations": annotated.read,
}
_SECONDS = 5.0
_NAMED = 5
"""So many pictures that cannot be used are named."""


@dataclass
class Counts:
    """What was written: samples by split, distinct pictures, pictures left out, groups."""

    splits: Counter[str] = field(default_factory=Counter)
    pictures: int = 0
    left_out: int = 0
    without_joints: int = 0
    too_small: int = 0
    groups: int | None = None
    skeleton: str = ""
    digest: str = ""

    @property
    def samples(self) -> int:
        """All samples."""
        return self.splits.total()


def import_samples(settings: ImportSettings) -> Counts:
    """Write the samples table. Raises UsageError for labels that cannot be used."""
    reading = _READERS[settings.format](settings)
    skeleton = _target(settings, reading)
    joints = JointMap(reading.joints, skeleton)
    if joints.missing:
        names = ", ".join(joints.missing)
        log.info("import: unlabelled everywhere, the labels do not have them: %s", names)
    if joints.unused:
        names = ", ".join(joints.unused)
        log.info("import: not used, %s does not have them: %s", skeleton.name, names)
    survey, groups = None, None
    if settings.tune_share and TRAIN in reading.splits:
        survey = _survey(settings, reading)
        groups = group_pictures(survey, settings.tune_share)
    counts = Counts(skeleton=skeleton.name, groups=groups.count if groups else None)
    with SamplesWriter(Path(path_of(settings.output)), skeleton) as writer:
        for labelled, data in _usable(settings, reading, survey, counts):
            _add(writer, labelled, data, joints, groups, counts)
        if not writer.count:
            raise UsageError(
                f"{settings.input}: no sample is left: {counts.left_out} pictures cannot be used, "
                f"{counts.without_joints} people have no joint of {skeleton.name}, "
                f"{counts.too_small} have joints that span less than {LEAST_SPAN} pixels"
            )
        counts.digest = writer.finish()
    _report(counts)
    return counts


def _report(counts: Counts) -> None:
    if counts.without_joints:
        log.info("import: %d people without a labelled joint left out", counts.without_joints)
    if counts.too_small:
        log.info(
            "import: %d people left out: no box or scale, and joints that span less than %d pixels",
            *(counts.too_small, LEAST_SPAN),
        )


def _target(settings: ImportSettings, reading: Reading) -> Skeleton:
    if settings.skeleton is None:
        if reading.skeleton is None:
            raise UsageError(
                f"{settings.input}: joints of no skeleton that comes with posemill "
                f"({', '.join(reading.joints)}): give --skeleton"
            )
        return reading.skeleton
    try:
        return load_skeleton(settings.skeleton)
    except CpmError as error:
        raise UsageError(str(error)) from error


def _pace(doing: str) -> Pace:
    return Pace(f"import: {doing}", "pictures", _SECONDS)


def _survey(settings: ImportSettings, reading: Reading) -> Survey:
    """The first pass: a thumbnail of every picture."""
    survey, progress = Survey(), _pace("looking for near-duplicates")
    # Some formats name a picture once per person.
    first_time = (labelled for labelled in reading.pictures() if survey.note(labelled))
    for labelled, looked in in_threads(partial(look, settings=settings), first_time):
        progress.step()
        if looked.thumbnail is None:
            survey.problems[labelled.source] = looked.problem or "it cannot be used"
        else:
            survey.thumbnails[labelled.source] = looked.thumbnail
    return survey


def _usable(
    settings: ImportSettings, reading: Reading, survey: Survey | None, counts: Counts
) -> Iterator[tuple[Labelled, bytes | None]]:
    """The second pass: pictures that can be used, with their bytes; the others are counted."""

    def load(labelled: Labelled) -> Looked:
        if survey is None:
            return look(labelled, settings)
        if problem := survey.problems.get(labelled.source):
            return Looked(problem=problem)
        return fetch_only(labelled, settings) if with_bytes else Looked()

    with_bytes = settings.pictures == "bytes"
    progress, good, bad = _pace("writing"), set[str](), set[str]()
    for labelled, looked in in_threads(load, reading.pictures()):
        progress.step()
        if looked.problem is None:
            good.add(labelled.source)
            yield labelled, looked.data if with_bytes else None
        elif labelled.source not in bad:
            bad.add(labelled.source)
            if len(bad) <= _NAMED:
                log.warning("import: %s left out: %s", labelled.uri, looked.problem)
    if len(bad) > _NAMED:
        log.warning("import: %d pictures left out in all", len(bad))
    counts.pictures, counts.left_out = len(good), len(bad)


def _add(
    writer: SamplesWriter,
    labelled: Labelled,
    data: bytes | None,
    joints: JointMap,
    groups: Groups | None,
    counts: Counts,
) -> None:
    """One row for every wanted person of a picture."""
    people = [joints(person) for person in labelled.people]
    split = labelled.split
    if groups and split == TRAIN and labelled.source in groups.tune:
        split = TUNE
    for person in people:
        if not person.wanted:
            continue
        if not person.labelled.any():
            counts.without_joints += 1
            continue
        if person.box is None:
            counts.too_small += 1
            continue
        others = [p for p in people if p is not person and p.labelled.any()]
        ignored = [p for p in people if p.box is not None and (p.crowd or not p.labelled.any())]
        writer.add(
            {
                "source": labelled.source,
                "split": split,
                "uri": labelled.uri,
                "image": data,
                "group": groups.group.get(labelled.source) if groups else None,
                **person_columns(person, others, ignored),
            }
        )
        counts.splits[split] += 1
