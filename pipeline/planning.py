"""Planning as a run does it: list inputs, compare with the manifest, append what is new."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.catalog import Catalog, Part
from pipeline.config import AnnotateSettings
from pipeline.errors import PASSING, PosemillError, UsageError
from pipeline.inputs import Input, Passed, Selection, named
from pipeline.lists import Boxes
from pipeline.manifest import Manifest
from pipeline.messages import DecoderConfig
from pipeline.plan import Planned, ShardRule, people_expected, plan
from pipeline.progress import Reporter
from pipeline.storage import Output, StorageOptions


@dataclass(frozen=True)
class Sources:
    """What `--input` names, looked up: the parts to list, the folders among it, and what is passed
    over on the way."""

    parts: list[Part]
    roots: list[str]
    passed: Passed


@dataclass(frozen=True)
class Planner:
    """Plans the inputs of the settings on top of what is planned in the output."""

    settings: AnnotateSettings
    storage: StorageOptions
    output: Output
    boxes: Boxes | None
    decoder: DecoderConfig
    reporter: Reporter

    def look_up(self) -> Sources:
        """Look at what each input names; raises UsageError for one that is not there."""
        passed = Passed()
        found = [named(name, self.storage, self.boxes, passed) for name in self.settings.input]
        parts = [self._selected(part) for source in found for part in source.parts]
        roots = [s.root for s in found if s.root is not None] if self._lists_all() else []
        return Sources(parts, roots, passed)

    def plan(
        self, sources: Sources, write: bool, on_listed: Callable[[], None] = lambda: None
    ) -> Manifest:
        """The manifest, with the inputs that are new; without `write` they are only counted.

        Raises PosemillError where the inputs hold nothing at all, or nothing that boxes are given
        for. `on_listed` is called once they are found good, before anything is written.
        """
        with Catalog() as catalog:
            catalog.add(sources.parts, self.settings.limit, self.reporter.listing)
            if not catalog.sizes.sum():
                raise PosemillError(f"no pictures or videos in {', '.join(self.settings.input)}")
            if self.decoder.people.kind == "boxes":
                self._check_boxes(catalog)
            on_listed()
            while True:
                manifest = Manifest.load(self.output)
                catalog.compare(manifest, self.output, sources.roots, *self._redo())
                planned = self._append(catalog, manifest, write)
                if planned.counts:
                    break
                # Another driver planned the same generation first; what is left comes after it.
            self._tell(catalog, planned, sources.passed)
            return Manifest.load(self.output)

    def _check_boxes(self, catalog: Catalog) -> None:
        """Refuse, or tell of, given boxes that no row would come of."""
        if self.boxes is not None:
            self._check_table(catalog, self.boxes)
        elif len(self.settings.input) > 1 and (found := catalog.contradictory()).example:
            raise UsageError(
                f"{found.count:,} inputs come more than once, with different boxes or with and "
                f"without any ({_shown(found.example)}); put all rows of a uri into one list, or "
                "give one table as --boxes"
            )

    def _check_table(self, catalog: Catalog, boxes: Boxes) -> None:
        missing, table = catalog.not_listed(boxes), f"--boxes {self.settings.boxes}"
        if not missing.example:
            return
        if missing.count == len(boxes):
            raise UsageError(
                f"no input is among the {missing.count:,} uris of {table}: an input is "
                f"{_printable(catalog.first().uri)}, a uri of the table means "
                f"{_printable(missing.example)}; relative ones are relative to the table's folder: "
                "move the table, or write whole paths"
            )
        if self._lists_all():
            self.reporter.say(
                f"{missing.count:,} of the {len(boxes):,} uris of {table} are no inputs "
                f"({_shown(missing.example)})"
            )

    def _append(self, catalog: Catalog, manifest: Manifest, write: bool) -> Planned:
        output = self.output if write else None
        crop = math.prod(self.decoder.view_shape)
        rule = ShardRule(self.settings.shard_size, crop, people_expected(self.decoder.people.kind))
        to_plan = self.decoder, rule, output, self.reporter.planning
        done = plan(catalog.new(), manifest, *to_plan)
        retired = catalog.units_of_again(manifest, self.output)
        if retired is None or not done.counts:
            return done
        now = Manifest.load(self.output) if done.generations else manifest
        if now.generations != manifest.generations + done.generations:
            # Another driver came in between, and may have planned them anew.
            done.counts = False
            return done
        done.add(plan(catalog.again(), now, *to_plan, retired))
        return done

    def _redo(self) -> tuple[bool, frozenset[str]]:
        """Whether changed inputs are planned anew, and after which failures videos are."""
        codes = self.settings.retry_failed
        return self.settings.changed == "redo", frozenset() if codes is None else (
            PASSING & set(codes or PASSING)
        )

    def _selected(self, part: Part) -> Part:
        chosen = Selection(self.settings.include, self.settings.exclude, self.settings.sample)

        def selected() -> Iterator[Input]:
            return (item for item in part() if chosen.wants(item.uri))

        return selected if self._is_choosy() else part

    def _lists_all(self) -> bool:
        """Whether all that is there is listed: else nothing can be said to be missing."""
        return not self._is_choosy() and self.settings.limit is None

    def _is_choosy(self) -> bool:
        s = self.settings
        return bool(s.include or s.exclude) or s.sample is not None

    def _tell(self, catalog: Catalog, planned: Planned, passed: Passed) -> None:
        known = f", {catalog.known:,} planned before" if catalog.known else ""
        self.reporter.say(
            f"planned {planned.inputs:,} new inputs ({planned.videos:,} videos, "
            f"{planned.bytes / 1e6:,.1f} MB listed){known}: {planned.units:,} units, "
            f"{planned.frames:,} frames, {planned.shards:,} shards"
        )
        if catalog.changed_count:
            redo = self.settings.changed == "redo"
            self.reporter.say(
                f"{catalog.changed_count:,} inputs have changed since they were planned "
                f"({_shown(next(catalog.changed()).uri)}); "
                f"{'they are' if redo else '--changed redo has them'} done again"
            )
        if catalog.unread_count:
            self.reporter.say(
                f"{catalog.unread_count:,} videos that could not be opened when they were planned "
                "are planned anew"
            )
        if catalog.vanished.example is not None:
            self.reporter.say(
                f"{catalog.vanished.count:,} planned inputs are not there any more "
                f"({_shown(catalog.vanished.example)}); what the table has of them stays"
            )
        if passed.count:
            self.reporter.say(
                f"passed over {passed.count:,} files that are neither pictures nor videos by name, "
                f"such as {', '.join(passed.examples)}"
            )


def _shown(uri: str) -> str:
    return f"first: {_printable(uri)}"


def _printable(uri: str) -> str:
    return uri if uri.isprintable() else ascii(uri)
