"""The annotate job: plan, do what is not done, reconcile, finish.

The driver holds no results: parts are written by the workers, and what is done is what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError

from pipeline import __version__, schema
from pipeline.commit import SUCCESS, done_shards, mark_success, part_summaries, unmark_success
from pipeline.compiler import Compiler
from pipeline.config import AnnotateSettings, fingerprint
from pipeline.errors import PosemillError
from pipeline.estimators import EstimatorSettings
from pipeline.judge import Judge
from pipeline.lock import Lock
from pipeline.manifest import Manifest, ShardRef
from pipeline.messages import DecoderConfig
from pipeline.people import who
from pipeline.planning import Planner, Sources
from pipeline.progress import Meter, Reporter
from pipeline.runfile import RunFile, utc_now
from pipeline.storage import Output, StorageOptions, endpoint_of_environment
from pipeline.summary import Summary
from pipeline.weights import WeightsFile
from pipeline.work import Totals, Work, find_work, stale_shards

if TYPE_CHECKING:
    from pipeline.execute import Executor

_SHARDS_PER_WAVE = 2000
_FEW_SHARDS = 20


@dataclass
class Report:
    """What a run did: `total` over the whole table, `now` in this run."""

    total: Summary = field(default_factory=Summary)
    now: Summary = field(default_factory=Summary)
    seconds: float = 0.0


def annotate(settings: AnnotateSettings, reporter: Reporter) -> Report:
    """Run the job. Raises PosemillError when it cannot finish; the same call continues it."""
    try:
        run = Run(settings, reporter)
        with closing(run.compiler):
            return run.go()
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
            settings.s3_endpoint or endpoint_of_environment(),
            settings.s3_anonymous,
            settings.s3_requester_pays,
        )
        # What is read without credentials, or at the reader's cost, is never where one writes.
        self.output = Output(settings.output, StorageOptions(self.storage.endpoint))
        self.weights = WeightsFile(settings.weights, self.storage)
        self.who = who(settings, self.storage)
        self.decoder = self._decoder_config()
        self.estimator = EstimatorSettings(
            settings.precision,
            settings.flip,
            settings.scales,
            settings.refinement,
            settings.box_factor,
        )
        on_cpus = settings.device != "cuda" and self.estimator.want_compiled(self.weights.info)
        self.compiler = Compiler(self.weights, on_cpus, self.who.locator.is_net)
        fields = settings.fingerprint_fields(
            weights=self.weights.sha256,
            schema=str(schema.SCHEMA_VERSION),
            **self.who.fingerprint_fields(),
        )
        self.fingerprint = fingerprint(fields)
        self.run_file = RunFile(self.output, fields)
        self.planner = Planner(
            settings, self.storage, self.output, self.who.boxes, self.decoder, reporter
        )

    def go(self) -> Report:
        """Plan and annotate, or only print the plan."""
        sources = self.planner.look_up()
        if self.settings.dry_run:
            self._try(sources)
            return Report()
        with Lock(self.output, self.settings.part_of, self.reporter.say) as lock:
            self._check()
            # Noted when the inputs are listed: whoever gave the wrong boxes is not held to them.
            manifest = self.planner.plan(
                sources, write=True, on_listed=lambda: self.run_file.begin(self._description())
            )
            licence = self.weights.info.licence
            self.reporter.say(f"weights {self.weights.info.name}; licence: {licence}")
            return self._annotate(manifest, lock)

    def _check(self) -> None:
        """Refuse other settings than the output was begun with, and what is no weights for a new
        one: those of an old one were looked at when it was begun."""
        if not self.run_file.check():
            self.compiler.start()
            # Ray takes as long as PyTorch does over there.
            from pipeline import execute  # noqa: F401

            self.compiler.check()

    def _try(self, sources: Sources) -> None:
        self._check()
        self.planner.plan(sources, write=False)
        self.compiler.start()
        from pipeline.execute import Executor

        with Executor(self._executor_inputs(), self.reporter):
            pass
        self.reporter.say(f"fingerprint {self.fingerprint}; nothing was written (--dry-run)")

    def _annotate(self, manifest: Manifest, lock: Lock) -> Report:
        index, count = self.settings.part_of
        mine = [ref for ref in manifest.shards(self.output) if ref.shard % count == index]
        expected = sum(ref.units for ref in mine)
        work = find_work(self.output, mine, self.settings.retry_failed)
        report = Report()
        with Totals(self.output, work.finished) as before:
            if work.shards:
                unmark_success(self.output)
                self._work(work, expected, report, lock)
            report.total.add(before.wait())
        if report.total.units != expected:
            raise PosemillError(
                f"{report.total.units} units are in the table, {expected} were planned; "
                "this is a bug in PoseMill, please report it with run.json"
            )
        self._finish(manifest, report, lock)
        return report

    def _work(self, work: Work, expected: int, report: Report, lock: Lock) -> None:
        """Run the shards in waves; what stays undone is run again, then unit by unit."""
        self.compiler.start()
        from pipeline.execute import Executor

        judge = Judge(self.settings.max_failures)
        with Executor(self._executor_inputs(), self.reporter) as executor:
            with self.reporter.annotating(expected, expected - work.pending) as meter:
                for start in range(0, len(work.shards), _SHARDS_PER_WAVE):
                    wave = work.shards[start : start + _SHARDS_PER_WAVE]
                    self._wave(executor, wave, meter, judge, lock)
                    for summary in part_summaries(self.output, (ref.shard for ref in wave)):
                        report.total.add(summary)
            report.now, report.seconds = meter.so_far, meter.seconds

    def _wave(
        self,
        executor: Executor,
        wave: Sequence[ShardRef],
        meter: Meter,
        judge: Judge,
        lock: Lock,
    ) -> None:
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
                return
            executor.keep_log = True
            names = ", ".join(str(ref.shard) for ref in wave[:5])
            self.reporter.say(f"{len(wave)} shards are not written (first: {names}); once more")
        raise PosemillError(
            f"shard {wave[0].shard} could not be written after three attempts; see what "
            "Ray printed, then run the same command again"
        )

    def _undone(self, wave: Sequence[ShardRef], told: set[int], meter: Meter) -> list[ShardRef]:
        """Shards without a part. A part may be there although Ray died before it said so.

        Of an amended part that cannot be seen; to amend it once more does no harm.
        """
        created = {ref.shard for ref in wave if not ref.amend}
        untold = done_shards(self.output, created) - told
        for summary in part_summaries(self.output, untold):
            meter.add(summary)
        told |= untold
        return [ref for ref in wave if ref.shard not in told]

    def _finish(self, manifest: Manifest, report: Report, lock: Lock) -> None:
        """Note the run; if the whole table is complete (not only a partition), say so."""
        whole = self.settings.part_of[1] == 1
        counts = {"counts": _counts(report.total)}
        run = {
            "input": list(self.settings.input),
            "partition": self.settings.partition,
            "seconds": round(report.seconds, 2),
            "now": _counts(report.now),
            "stage_seconds": {k: round(v, 2) for k, v in report.now.seconds.items()},
        }
        self.run_file.finish(self._description() | (counts if whole else {}), run)
        lock.check()
        is_marked = self.output.read(SUCCESS) is not None
        if is_marked and not report.now.shards:
            return
        if not self._is_complete(manifest) or not lock.is_last():
            return
        document = {
            "fingerprint": self.fingerprint,
            "generations": manifest.generations,
            "shards": manifest.next_shard,
            "units": manifest.next_unit - manifest.retired_units(self.output).num_rows,
            "finished": utc_now(),
        }
        if whole:
            document |= counts
        mark_success(self.output, document)
        # Who came meanwhile may have looked for the mark before it stood.
        if Manifest.load(self.output) != manifest or not lock.is_last():
            unmark_success(self.output)

    def _is_complete(self, manifest: Manifest) -> bool:
        """Whether the other partitions have done theirs, too, and have planned nothing since."""
        if Manifest.load(self.output) != manifest:
            return False
        if len(done_shards(self.output, range(manifest.next_shard))) < manifest.next_shard:
            return False
        if self.settings.part_of[1] == 1:
            # All that there was to amend has been.
            return True
        return not stale_shards(self.output, manifest.shards(self.output))

    def _description(self) -> dict[str, Any]:
        """What stands in the run file from the start."""
        return {
            "fingerprint": self.fingerprint,
            "model": self.weights.info.name,
            "people": self.who.metadata(),
            "licence": self.weights.info.licence,
        }

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
            max_frames=s.max_frames,
            max_bytes=s.max_bytes,
            max_seconds=s.max_seconds,
            max_memory=s.max_memory,
            fps=s.fps,
        )

    def _executor_inputs(self) -> ExecutorInputs:
        metadata = {
            "model": {"name": self.weights.info.name, "weights_sha256": self.weights.sha256},
            "people": self.who.metadata(),
            "fingerprint": self.fingerprint,
            "tool": f"posemill {__version__}",
        }
        return ExecutorInputs(
            settings=self.settings,
            decoder=self.decoder,
            output=self.output,
            weights=self.weights,
            compiler=self.compiler,
            estimator=self.estimator,
            same_person=self.who.same_person,
            metadata=schema.table_metadata(metadata, self.weights.info.skeleton),
        )


@dataclass(frozen=True)
class ExecutorInputs:
    """All that the execution on Ray needs."""

    settings: AnnotateSettings
    decoder: DecoderConfig
    output: Output
    weights: WeightsFile
    compiler: Compiler
    estimator: EstimatorSettings
    same_person: float | None
    metadata: dict[bytes, bytes]


def _counts(summary: Summary) -> dict[str, Any]:
    names = ("units", "frames", "people", "rows", "failed_units")
    return {name: getattr(summary, name) for name in names} | {"failed": dict(summary.failed)}
