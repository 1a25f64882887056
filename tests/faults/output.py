"""An output read without PoseMill's code: is every unit there, once, and nothing else?"""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from dataclasses import dataclass

import pyarrow.fs
import pyarrow.parquet as pq


@dataclass
class Findings:
    """What is wrong with an output, or with many."""

    units: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    failed_by_fault: int = 0
    stray: int = 0
    what: str = ""

    def add(self, other: Findings) -> None:
        """Add another output's."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def bad(self) -> bool:
        """Whether anything is lost, doubled or wrong."""
        return bool(self.lost or self.doubled or self.wrong)

    def complain(self, is_wrong: bool, text: str) -> None:
        """Note what should not be."""
        if is_wrong:
            self.wrong += 1
            self.what += f"{text}; "

    def __str__(self) -> str:
        return f"{self.lost} lost, {self.doubled} doubled, {self.stray} stray files. {self.what}"


def files_under(fs: pyarrow.fs.FileSystem, folder: str) -> list[str]:
    """All files below, hidden ones too, relative to the folder."""
    selector = pyarrow.fs.FileSelector(folder, allow_not_found=True, recursive=True)
    infos = fs.get_file_info(selector)
    found = [posixpath.relpath(i.path, folder) for i in infos if i.is_file]
    return sorted(found)


def part_files(fs: pyarrow.fs.FileSystem, output: str) -> list[str]:
    """The parts that are there."""
    return [f for f in files_under(fs, f"{output}/annotations") if f.endswith(".parquet")]


def examine(
    fs: pyarrow.fs.FileSystem, output: str, units: int, bad_every: int, excused: int
) -> Findings:
    """Compare an output with its `units` inputs, `000000.jpg` and so on, of which every
    `bad_every`th is no picture; so many others may have failed as are `excused`."""
    found = Findings(units=units)
    every = files_under(fs, output)
    found.stray = sum(".posemill-" in name for name in every)
    every = [name for name in every if ".posemill-" not in name]

    shards = []
    named = set()
    for complete in sorted(name for name in every if name.endswith("/_COMPLETE")):
        folder = posixpath.dirname(complete)
        named.add(complete)
        for name in _json(fs, f"{output}/{complete}")["files"]:
            named.add(f"{folder}/{name}")
            file = pq.ParquetFile(f"{output}/{folder}/{name}", filesystem=fs)
            shards += [
                file.read_row_group(g, ["unit_id", "uri"]) for g in range(file.num_row_groups)
            ]
    planned = [uri for shard in shards for uri in shard["uri"].to_pylist()]
    names = sorted(posixpath.basename(uri) for uri in planned)
    found.complain(names != [f"{i:06d}.jpg" for i in range(units)], "the plan is not the inputs")

    rows: Counter[tuple[object, ...]] = Counter()
    with_rows: set[int] = set()
    failed = 0
    for number, shard in enumerate(shards):
        part = f"annotations/{number // 10_000:05d}/part-{number:09d}.parquet"
        named.add(part)
        if part not in every:
            continue
        table = pq.ParquetFile(f"{output}/{part}", filesystem=fs).read()
        ids, expected = set(table["unit_id"].to_pylist()), set(shard["unit_id"].to_pylist())
        found.complain(not ids <= expected, f"{part} has units of other shards")
        with_rows |= ids
        columns = (table[c].to_pylist() for c in ("unit_id", "pts", "person_index"))
        rows.update(zip(*columns, strict=True))
        for uri, status in zip(*(table[c].to_pylist() for c in ("uri", "status")), strict=True):
            is_bad = int(posixpath.basename(uri)[:6]) % bad_every == 0
            found.complain(is_bad and status != "failed", f"{uri} cannot be {status}")
            failed += status == "failed" and not is_bad
    found.lost = units - len(with_rows)
    found.doubled = sum(count - 1 for count in rows.values())
    found.failed_by_fault = failed
    found.complain(failed > excused, f"{failed} units failed, {excused} decoders were hit")

    done = _json(fs, f"{output}/_SUCCESS") if "_SUCCESS" in every else {}
    stands = (done.get("units"), done.get("shards"), done.get("counts", {}).get("rows"))
    found.complain(stands != (units, len(shards), rows.total()), f"_SUCCESS says {stands}")
    extra = set(every) - named - {"_SUCCESS", "run.json"}
    found.complain(bool(extra), f"nobody knows {sorted(extra)[:3]}")
    return found


def _json(fs: pyarrow.fs.FileSystem, path: str) -> dict[str, object]:
    with fs.open_input_stream(path) as file:
        return json.loads(file.read())  # type: ignore[no-any-return]
