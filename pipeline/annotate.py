"""The annotate job: plan, do what is not done, reconcile, finish.

The driver holds no results: parts are written by the workers, and what is done is what is there.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError

from pipeline import __version__, schema
from pipeline.commit import SUCCESS, done_shards, mark_success, part_summaries, unmark_success
from pipeline.config import AnnotateSettings, fingerprint
from pipeline.errors import PosemillError, UsageError
from pipeline.inputs import Passed, Selection, check, expand
from pipeline.lock import Lock
from pipeline.manifest import Manifest, ShardRef
from pipeline.messages import DecoderConfig
from pipeline.people import who
from pipeline.plan import Planned, ShardRule, people_expected, plan
from pipeline.progress import Meter, Reporter
from pipeline.stages import EstimatorSpec, Outcome, Summary, access_failures
from pipeline.storage import Output, StorageOptions
from pipeline.weights import read_weights

if TYPE_CHECKING:
    from pipeline.execute import Executor

_RUN = "run.json"
_SHARDS_PER_WAVE = 2000
_UNITS_BEFORE_JUDGING = 200
_FEW_SHARDS = 20


class Judge:
    """Stops a run of which too much fails.

    Of all failures the share in the whole run counts, as a folder of bad pictures is no reason to
    stop. Of objects that cannot be fetched the latest units count: credentials may expire late.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._run = Summary()
        self._latest: deque[Summary] = deque()

    def add(self, outcome: Outcome) -> None:
        """Count a shard; raises PosemillError."""
        if outcome.committed:
            self._run.add(outcome.summary)
            self._judge(self._run.units, self._run.failed_units, self._run.failed)
        self._latest.append(outcome.summary)
        units = sum(summary.units for summary in self._latest)
        while units - self._latest[0].units >= _UNITS_BEFORE_JUDGING:
            units -= self._latest.popleft().units
        codes = sum((access_failures(summary) for summary in self._latest), Counter[str]())
        self._judge(units, codes.total(), codes)

    def _judge(self, units: int, failed: int, codes: Counter[str]) -> None:
        if units < _UNITS_BEFORE_JUDGING or failed <= self.limit * units:
            return
        code, count = codes.most_common(1)[0]
        raise PosemillError(
            f"{failed} of {units} units failed (most: {code}, {count}), over --max-failures "
            f"{self.limit:g}; check the inputs and the credentials, then run the same command again"
        )


@dataclass
class Report:
    """What a run did: `total` over the whole table, `now` in this run."""

    total: Summary = field(default_factory=Summary)
    now: Summary = field(default_factory=Summary)
    seconds: float = 0.0


def annotate(settings: AnnotateSettings, reporter: Reporter) -> Report:
    """Run the job. Raises PosemillError when it cannot finish; the same call continues it."""
    try:
        return Run(settings, reporter).go()
    except (OSError, BotoCoreError) as error:
        raise PosemillError(
            f"the storage fails: {error or type(error).__name__}; check that "
            f"{settings.output} can be written, the inputs can be listed and the credentials "
            "are right, then run the same command again"
        ) from error


class Run:
    """One start of the job."""

    def __init__(self, settings: AnnotateSettings, reporter: Reporter) -> None:
        self.settings = settings
        self.reporter = reporter
        self.storage = StorageOptions(
            settings.s3_endpoint or _endpoint_of_environment(),
            settings.s3_anonymous,
            settings.s3_requester_pays,
        )
        # What is read without credentials, or at the reader's cost, is never where one writes.
        self.output = Output(settings.output, StorageOptions(self.storage.endpoint))
        self.weights = read_weights(settings.weights, self.storage)
        self.who = who(settings, self.storage)
        self.decoder = self._decoder_config()
        self.fields = settings.fingerprint_fields(
            weights=self.weights.sha256,
            schema=str(schema.SCHEMA_VERSION),
            **self.who.fingerprint_fields(),
        )
        self.fingerprint = fingerprint(self.fields)

    def go(self) -> Report:
        """Plan and annotate, or only print the plan."""
        check(self.settings.input, self.storage)
        if self.settings.dry_run:
            self._check_fingerprint()
            self._plan(write=False)
            return Report()
        with Lock(self.output, self.settings.part_of, self.reporter.say) as lock:
            self._check_fingerprint()
            self._write_run_file()
            manifest = self._plan(write=True)
            licence = self.weights.info.licence
            self.reporter.say(f"weights {self.weights.info.name}; licence: {licence}")
            return self._annotate(manifest, lock)

    def _annotate(self, manifest: Manifest, lock: Lock) -> Report:
        report = Report()
        mine = self._partition(manifest)
        done = done_shards(self.output)
        todo = [ref for ref in mine if ref.shard not in done]
        self._add_parts(report.total, {ref.shard for ref in mine if ref.shard in done})
        expected = sum(ref.units for ref in mine)
        if todo:
            unmark_success(self.output)
            from pipeline.execute import Executor

            with Executor(self._executor_inputs(), self.reporter) as executor:
                with self.reporter.annotating(expected, report.total) as meter:
                    self._work(executor, todo, meter, lock)
                report.now, report.seconds = meter.so_far, meter.seconds
            report.total.add(report.now)
        if report.total.units != expected:
            raise PosemillError(
                f"{report.total.units} units are in the table, {expected} were planned; "
                "this is a bug in PoseMill, please report it with run.json"
            )
        self._finish(manifest, report)
        return report

    def _work(self, executor: Executor, todo: Sequence[ShardRef], meter: Meter, lock: Lock) -> None:
        """Run the shards in waves; what stays undone is run again, then unit by unit."""
        judge = Judge(self.settings.max_failures)
        for start in range(0, len(todo), _SHARDS_PER_WAVE):
            wave = todo[start : start + _SHARDS_PER_WAVE]
            told: set[int] = set()
            for attempt in (executor.run, executor.run_again, executor.run_unit_by_unit):
                if attempt == executor.run_unit_by_unit and len(wave) > _FEW_SHARDS:
                    raise PosemillError(
                        f"{len(wave)} shards were lost twice, which is no fault of single inputs; "
                        "see what Ray printed, mend it, then run the same command again"
                    )
                for outcome in attempt(wave):
                    judge.add(outcome)
                    if outcome.committed and outcome.shard not in told:
                        told.add(outcome.shard)
                        meter.add(outcome.summary)
                    lock.check()
                wave = self._undone(wave, told, meter)
                if not wave:
                    break
                executor.keep_log = True
                names = ", ".join(str(ref.shard) for ref in wave[:5])
                self.reporter.say(f"{len(wave)} shards are not written (first: {names}); once more")
            if wave:
                raise PosemillError(
                    f"shard {wave[0].shard} could not be written after three attempts; see what "
                    "Ray printed, then run the same command again"
                )

    def _undone(self, wave: Sequence[ShardRef], told: set[int], meter: Meter) -> list[ShardRef]:
        """Shards without a part. A part may be there although Ray died before it said so."""
        done = done_shards(self.output, {ref.shard for ref in wave})
        untold = Summary()
        self._add_parts(untold, done - told)
        told |= done
        meter.add(untold)
        return [ref for ref in wave if ref.shard not in told]

    def _add_parts(self, total: Summary, shards: set[int]) -> None:
        for text in part_summaries(self.output, shards):
            total.add(Summary.from_json(text))

    def _finish(self, manifest: Manifest, report: Report) -> None:
        """Note the run; if the whole table is complete (not only a partition), say so."""
        self._write_run_file(report)
        complete = len(done_shards(self.output)) == manifest.next_shard
        if not complete or (not report.now.shards and self.output.read(SUCCESS) is not None):
            return
        document = {
            "fingerprint": self.fingerprint,
            "generations": manifest.generations,
            "shards": manifest.next_shard,
            "units": manifest.next_unit,
            "finished": _now(),
        }
        if self.settings.part_of[1] == 1:
            document["counts"] = _counts(report.total)
        mark_success(self.output, document)

    def _plan(self, write: bool) -> Manifest:
        settings, passed = self.settings, Passed()
        manifest = Manifest.load(self.output)
        selection = Selection(settings.include, settings.exclude, settings.sample)
        inputs = (
            item
            for item in expand(settings.input, self.storage, self.who.boxes, passed)
            if selection.wants(item.uri)
        )
        crop = math.prod(self.decoder.view_shape)
        rule = ShardRule(settings.shard_size, crop, people_expected(self.who.locator.kind))
        planned = plan(
            inputs,
            manifest,
            manifest.uri_digests(self.output),
            self.decoder,
            rule,
            self.output if write else None,
            settings.limit,
            self.reporter.planning,
        )
        if write and not planned.counts:
            # Another driver planned the same generation first; what is left is planned after it.
            return self._plan(write)
        if not planned.inputs and not planned.known:
            raise PosemillError(f"no pictures or videos in {', '.join(settings.input)}")
        self._tell_plan(planned, passed, write)
        return Manifest.load(self.output)

    def _tell_plan(self, planned: Planned, passed: Passed, write: bool) -> None:
        known = f", {planned.known:,} planned before" if planned.known else ""
        self.reporter.say(
            f"planned {planned.inputs:,} new inputs ({planned.videos:,} videos, "
            f"{planned.bytes / 1e6:,.1f} MB listed){known}: {planned.units:,} units, "
            f"{planned.frames:,} frames, {planned.shards:,} shards"
        )
        if passed.count:
            self.reporter.say(
                f"passed over {passed.count:,} files that are neither pictures nor videos by name, "
                f"such as {', '.join(passed.examples)}"
            )
        if not write:
            from pipeline.execute import Executor

            with Executor(self._executor_inputs(), self.reporter):
                pass
            self.reporter.say(f"fingerprint {self.fingerprint}; nothing was written (--dry-run)")

    def _partition(self, manifest: Manifest) -> list[ShardRef]:
        index, count = self.settings.part_of
        return [ref for ref in manifest.shards(self.output) if ref.shard % count == index]

    def _check_fingerprint(self) -> None:
        data = self.output.read(_RUN)
        if data is None:
            return
        before: dict[str, Any] = json.loads(data)["settings"]
        differing = [
            k
            for k in sorted(before.keys() | self.fields.keys())
            if before.get(k) != self.fields.get(k)
        ]
        if differing:
            changes = ", ".join(
                f"{k}: {before.get(k)!r} -> {self.fields.get(k)!r}" for k in differing
            )
            raise UsageError(
                f"{self.output.uri} was made with other settings ({changes}); use those again, or "
                "give another --output"
            )

    def _write_run_file(self, report: Report | None = None) -> None:
        data = self.output.read(_RUN)
        document: dict[str, Any] = json.loads(data) if data else {"created": _now(), "runs": []}
        document |= {
            "fingerprint": self.fingerprint,
            "settings": self.fields,
            "model": self.weights.info.name,
            "people": self.who.metadata(),
            "licence": self.weights.info.licence,
            "versions": {name: version(name) for name in ("ray", "torch", "pyarrow", "numpy")}
            | {"python": platform.python_version(), "posemill": tool_version()},
        }
        if report is not None:
            document["runs"].append(
                {
                    "finished": _now(),
                    "input": list(self.settings.input),
                    "partition": self.settings.partition,
                    "seconds": round(report.seconds, 2),
                    "now": _counts(report.now),
                    "stage_seconds": {k: round(v, 2) for k, v in report.now.seconds.items()},
                }
            )
            document["counts"] = _counts(report.total)
        self.output.replace(_RUN, json.dumps(document, indent=2).encode())

    def _decoder_config(self) -> DecoderConfig:
        s, info = self.settings, self.weights.info
        return DecoderConfig(
            storage=self.storage,
            crop_size=info.config.input_size,
            box_factor=s.box_factor or info.box_factor,
            scales=s.scales,
            people=self.who.locator,
            max_people=s.max_people,
            max_pixels=s.max_pixels,
            max_bytes=s.max_bytes,
            max_seconds=s.max_seconds,
            max_memory=s.max_memory,
            fps=s.fps,
        )

    def _executor_inputs(self) -> ExecutorInputs:
        s = self.settings
        metadata = {
            "model": {"name": self.weights.info.name, "weights_sha256": self.weights.sha256},
            "people": self.who.metadata(),
            "fingerprint": self.fingerprint,
            "tool": f"posemill {tool_version()}",
        }
        return ExecutorInputs(
            settings=s,
            decoder=self.decoder,
            output=self.output,
            estimator=EstimatorSpec(
                self.weights, None, s.precision, s.flip, s.scales, s.refinement, s.box_factor
            ),
            same_person=self.who.same_person,
            metadata=schema.table_metadata(metadata, self.weights.info.skeleton),
        )


@dataclass(frozen=True)
class ExecutorInputs:
    """All that the execution on Ray needs."""

    settings: AnnotateSettings
    decoder: DecoderConfig
    output: Output
    estimator: EstimatorSpec
    same_person: float | None
    metadata: dict[bytes, bytes]


def _endpoint_of_environment() -> str | None:
    """The S3 server that this process would talk to; a cluster's workers have other variables."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _counts(summary: Summary) -> dict[str, Any]:
    names = ("units", "frames", "people", "rows", "failed_units")
    return {name: getattr(summary, name) for name in names} | {"failed": dict(summary.failed)}


def tool_version() -> str:
    """Version of the code, installed or not."""
    return __version__


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
