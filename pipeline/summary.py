"""Counts of a shard, or of many: what stands in a part's footer, and what progress shows."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc


@dataclass
class Summary:
    """Counts of a shard, or of many. `failed` counts units by error code; `seconds` are by
    stage."""

    shards: int = 0
    units: int = 0
    frames: int = 0
    rows: int = 0
    people: int = 0
    failed_units: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)

    def add(self, other: Summary) -> None:
        """Add another summary's counts."""
        for name in ("shards", "units", "frames", "rows", "people", "failed_units"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.failed.update(other.failed)
        self.seconds.update(other.seconds)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Summary:
        """Undo `to_json`."""
        values = json.loads(text)
        values["failed"], values["seconds"] = Counter(values["failed"]), Counter(values["seconds"])
        return cls(**values)

    @classmethod
    def of(cls, table: pa.Table) -> Summary:
        """Counts of the annotation rows of one shard."""
        failed = table.filter(pc.equal(table["status"], "failed"))
        codes = failed.group_by(["unit_id", "error_code"]).aggregate([])
        units = pc.count_distinct(table["unit_id"]).as_py()
        people = table["person_index"]
        first = pc.fill_null(people, 0)
        return cls(
            shards=1,
            units=units,
            frames=(pc.sum(pc.equal(first, 0)).as_py() or 0) - failed.num_rows,
            rows=table.num_rows,
            people=len(people) - people.null_count,
            failed_units=pc.count_distinct(failed["unit_id"]).as_py(),
            failed=Counter(codes["error_code"].to_pylist()),
        )
