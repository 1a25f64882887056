"""What a run leaves behind about itself: JSON lines, TensorBoard, and what a person sees."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from tensorboardX import SummaryWriter

from pipeline.errors import PosemillError
from pipeline.storage import Output

log = logging.getLogger("posemill")

LOG = "log.jsonl"
EVENTS = "tensorboard"
_SYNC_EVERY_S = 300.0


@ray.remote(num_cpus=0)
class Board:
    """Where workers leave records for the driver, and learn that it wants to stop."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.stopping = False

    def post(self, record: dict[str, Any]) -> bool:
        """Leave a record; whether the run shall stop."""
        self.records.append(record)
        return self.stopping

    def take(self) -> list[dict[str, Any]]:
        """All records since the last call."""
        records, self.records = self.records, []
        return records

    def stop(self) -> None:
        """Ask the workers to write a checkpoint and stop."""
        self.stopping = True


class Logbook:
    """Writes records to `log.jsonl` and `tensorboard/` in the run's folder.

    Files grow on a local disk; for a run in object storage that is a temporary one, and what
    changed is copied every five minutes. No trouble with them ends a run: it is only said.
    """

    def __init__(self, output: Output) -> None:
        self.output = output
        self._stack = ExitStack()
        self._writer: SummaryWriter | None = None
        self._sizes: dict[str, int] = {}
        self._synced = time.monotonic()

    def __enter__(self) -> Self:
        if self.output.protocol == "file":
            self.folder = Path(self.output.root)
            self.folder.mkdir(parents=True, exist_ok=True)
        else:
            self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            self._fetch_log()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()
        with self._stack:
            self._sync()

    def rewind(self, step: int) -> None:
        """Forget what was recorded after the step at which the run goes on."""
        path = self.folder / LOG
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            rewound = path.with_name(f".{LOG}")
            rewound.write_text("".join(f"{line}\n" for line in kept))
            rewound.replace(path)
        if self._writer is not None:
            self._writer.close()
        # Files are named by the second; a start within the same one must not overwrite its elder.
        self._writer = SummaryWriter(
            str(self.folder / EVENTS), purge_step=step + 1, filename_suffix=f".{step}"
        )

    def write(self, record: dict[str, Any]) -> None:
        """Add a record: numbers to both, a picture to TensorBoard only."""
        try:
            if record["kind"] != "picture":
                self._append(record)
            if self._writer is not None:
                _show(self._writer, record, record.get("step", 0))
        except OSError as error:
            log.warning("the log cannot be written: %s", error)
        if time.monotonic() - self._synced >= _SYNC_EVERY_S:
            self._sync()

    def _append(self, record: dict[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": now, **record}) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """All records of the run so far, those of earlier starts included."""
        path = self.folder / LOG
        lines = path.read_text().splitlines() if path.exists() else []
        return [record for line in lines if (record := _parse(line))]

    def _fetch_log(self) -> None:
        data = self.output.read(LOG)
        if data is not None:
            (self.folder / LOG).write_bytes(data)

    def _sync(self) -> None:
        self._synced = time.monotonic()
        if self._writer is not None:
            self._writer.flush()
        if self.output.protocol == "file":
            return
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and self._sizes.get(str(path)) != path.stat().st_size:
                try:
                    self.output.replace(str(path.relative_to(self.folder)), path.read_bytes())
                except PosemillError as error:
                    log.warning("%s", error)
                    return
                self._sizes[str(path)] = path.stat().st_size


def _show(writer: SummaryWriter, record: dict[str, Any], step: int) -> None:
    if record["kind"] == "picture":
        writer.add_image(record["tag"], record["picture"], step, dataformats="HWC")
    for tag, value in _scalars(record):
        writer.add_scalar(tag, value, step)


def _scalars(record: dict[str, Any]) -> list[tuple[str, float]]:
    if record["kind"] == "progress":
        stages = [(f"loss/stage-{t + 1}", v) for t, v in enumerate(record["loss"])]
        hints = [("loss/hints", record["hint_loss"])] if "hint_loss" in record else []
        names = ("learning_rate", "samples_per_second", "wait_share", "size")
        return [*stages, *hints, *((f"train/{name}", record[name]) for name in names)]
    if record["kind"] == "epoch":
        return [(f"tune-pck/stage-{t + 1}", v) for t, v in enumerate(record["tune_pck"])]
    return []


def _parse(line: str) -> dict[str, Any]:
    """A line of the log; one that a kill cut short is none."""
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:
        return {}
    return record


def _step_of(line: str) -> float:
    record = _parse(line)
    return float(record.get("step", 0)) if record else float("inf")
