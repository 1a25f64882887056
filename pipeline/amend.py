"""What of a shard is to be done, and how it becomes a part, or changes the one that is there."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.commit import amend_part, commit_part, part_summaries, read_part
from pipeline.manifest import ShardRef, read_shard
from pipeline.storage import Output
from pipeline.summary import Summary
from pipeline.units import Unit


def units_to_do(output: Output, ref: ShardRef, file: pq.ParquetFile) -> list[Unit]:
    """Units of a shard that count; of one that is amended, those that are to be done again."""
    units = [unit for unit in read_shard(file, ref.row_group) if unit.unit_id not in ref.retired]
    if not ref.amend:
        return units
    if ref.redo is None:
        return []
    again = failed_units(output, ref.shard, ref.redo)
    return [unit for unit in units if unit.unit_id in again]


def failed_units(output: Output, shard: int, codes: tuple[str, ...]) -> set[int]:
    """Units of a part that failed with one of the codes; without codes, with any."""
    rows = read_part(output, shard, ["unit_id", "status", "error_code"])
    failed = rows.filter(pc.equal(rows["status"], "failed"))
    if codes:
        failed = failed.filter(pc.is_in(failed["error_code"], pa.array(codes)))
    return set(failed["unit_id"].to_pylist())


def commit(
    output: Output, ref: ShardRef, table: pa.Table, summary: Summary, metadata: dict[bytes, bytes]
) -> Summary:
    """Create the shard's part, or amend it; returns the counts of what was done now.

    Where the part stood already, its own: whoever wrote it.
    """
    if ref.amend:
        amend_part(output, ref.shard, lambda rows: _amended(rows, ref, table), metadata)
        return summary
    if commit_part(output, ref.shard, table, metadata, summary):
        return summary
    (stands,) = part_summaries(output, {ref.shard})
    return stands


def _amended(rows: pa.Table, ref: ShardRef, new: pa.Table) -> pa.Table:
    """A part's rows with those of units that were done again, without those of retired ones.

    A video whose frames were read in part keeps them if the new attempt read fewer.
    """
    had, has = _frames_by_unit(rows), _frames_by_unit(new)
    worse = [unit for unit in has if has[unit] < had.get(unit, 0)]
    better = new.filter(pc.invert(pc.is_in(new["unit_id"], pa.array(worse, pa.int64()))))
    gone = pa.array([*ref.retired, *(unit for unit in has if unit not in worse)], pa.int64())
    kept = rows.filter(pc.invert(pc.is_in(rows["unit_id"], gone))).cast(new.schema)
    table = pa.concat_tables([kept, better])
    # Stable: the rows of a unit stay in their order.
    return table.take(pc.sort_indices(table["unit_id"]))


def _frames_by_unit(rows: pa.Table) -> dict[int, int]:
    """How many frames of each unit were decoded."""
    first = pc.equal(pc.fill_null(rows["person_index"], 0), 0)
    decoded = pc.and_(first, pc.not_equal(rows["status"], "failed"))
    counts = pa.table({"unit": rows["unit_id"], "frames": decoded.cast(pa.int64())})
    table = counts.group_by("unit").aggregate([("frames", "sum")])
    return dict(zip(table["unit"].to_pylist(), table["frames_sum"].to_pylist(), strict=True))
