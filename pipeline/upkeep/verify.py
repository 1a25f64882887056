"""Is every planned unit in the table, once, and nothing else?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import commit, manifest
from pipeline.commit import SUCCESS, part_name, read_part, shard_of, summary_in
from pipeline.manifest import Manifest, ShardRef, opened
from pipeline.runfile import read_run_file
from pipeline.storage import Output
from pipeline.upkeep.settings import VerifySettings

_AT_ONCE = 1024
_KEY = ["unit_id", "frame_index", "pts", "person_index"]
_EXAMPLES = 5


@dataclass
class Findings:
    """What is wrong, by kind, with a few examples each; `units` and `rows` were looked at."""

    units: int = 0
    rows: int = 0
    failed_units: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.wrong.total()

    def note(self, kind: str, count: int, example: str) -> None:
        """Count `count` defects of a kind."""
        if not count:
            return
        self.wrong[kind] += count
        examples = self.examples.setdefault(kind, [])
        if len(examples) < _EXAMPLES:
            examples.append(example)

    def add(self, other: Findings) -> None:
        """Add the findings of a shard."""
        self.units += other.units
        self.rows += other.rows
        self.failed_units += other.failed_units
        for kind, examples in other.examples.items():
            self.note(kind, other.wrong[kind], examples[0])


def verify(settings: VerifySettings, on_progress: Callable[[int, int], None]) -> Findings:
    """Compare the table of an output with its manifest, shard by shard, in bounded memory.

    `on_progress` is told how many shards of how many are done. Raises UsageError where there is no
    output, PosemillError where it cannot be read.
    """
    output, plan = settings.planned()
    findings = Findings()
    parts = set[int]()
    for name in leftovers(output, plan, parts):
        findings.note("file that belongs to no shard or plan", 1, name)
    fingerprint = (read_run_file(output) or {}).get("fingerprint")

    def check(ref: ShardRef) -> Findings:
        return _check(output, ref, ref.shard in parts, fingerprint)

    with ThreadPoolExecutor(commit.READERS, "verify") as threads:
        done, shards = 0, plan.shards(output)
        # In pieces, as `map` submits all that it gets at once.
        while some := list(islice(shards, _AT_ONCE)):
            for found in threads.map(check, some):
                findings.add(found)
                done += 1
                on_progress(done, plan.next_shard)
    _check_success(output, findings)
    return findings


def leftovers(output: Output, plan: Manifest, parts: set[int]) -> Iterator[str]:
    """Files that are neither parts of planned shards nor of the plan; `parts` gets the shards."""
    yield from output.temporaries()
    for name in output.list(commit.FOLDER):
        shard = shard_of(f"{commit.FOLDER}/{name}")
        if shard is not None and shard < plan.next_shard:
            parts.add(shard)
        else:
            yield f"{commit.FOLDER}/{name}"
    known = {*plan.files, *plan.retired_files}
    for name in output.list(manifest.FOLDER):
        path = f"{manifest.FOLDER}/{name}"
        folder, _, file = name.rpartition("/")
        is_mark = file == manifest.COMPLETE and folder in plan.folders
        if path not in known and not is_mark:
            yield path


def _check(output: Output, ref: ShardRef, is_there: bool, fingerprint: str | None) -> Findings:
    findings = Findings()
    planned = _planned_units(output, ref)
    if not is_there:
        findings.note("unit without rows", len(planned), f"shard {ref.shard} has no part")
        return findings
    try:
        rows = read_part(output, ref.shard, _KEY)
        described = summary_in(rows.schema)
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
        findings.note("part that cannot be read", 1, f"{part_name(ref.shard)}: {error}")
        return findings
    units = pc.unique(rows["unit_id"])
    missing = planned.filter(pc.invert(pc.is_in(planned, units)))
    foreign = units.filter(pc.invert(pc.is_in(units, planned)))
    doubled = rows.num_rows - rows.group_by(_KEY).aggregate([]).num_rows
    name = part_name(ref.shard)
    findings.units, findings.rows = len(planned) - len(missing), rows.num_rows
    findings.failed_units = described.failed_units
    findings.note("unit without rows", len(missing), f"units {missing[:3].to_pylist()} in {name}")
    findings.note(
        "unit that is not planned there", len(foreign), f"units {foreign[:3].to_pylist()} in {name}"
    )
    findings.note("doubled row", doubled, name)
    if (described.units, described.rows) != (len(units), rows.num_rows):
        findings.note("part whose summary is not its content", 1, name)
    made_with = json.loads(rows.schema.metadata.get(b"posemill", b"{}")).get("fingerprint")
    findings.note("part made with other settings", int(made_with != fingerprint), name)
    return findings


def _planned_units(output: Output, ref: ShardRef) -> pa.Array:
    with opened(output, ref.file) as file:
        units = file.read_row_group(ref.row_group, columns=["unit_id"])["unit_id"]
    retired = pa.array(ref.retired, pa.int64())
    return pc.unique(units.filter(pc.invert(pc.is_in(units, retired))))


def _check_success(output: Output, findings: Findings) -> None:
    data = output.read(SUCCESS)
    if data is None:
        findings.note(f"no {SUCCESS}", 1, "run posemill annotate again")
        return
    units = json.loads(data)["units"]
    if units != findings.units:
        what = f"says {units} units, {findings.units} are in the table"
        findings.note(f"{SUCCESS} that is not true", 1, what)
