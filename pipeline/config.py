"""The settings of `posemill annotate`."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cpm_core.errors import LocatorError
from cpm_core.locators import check_name
from cpm_core.poses import SAME_PERSON
from pipeline.errors import ERROR_CODES
from pipeline.settings import Kind, Settings

_MIB = 1 << 20


def setting(kind: Kind, default: Any, description: str, **limits: Any) -> Any:
    """A field with its kind, default, help text and limits; `...` as default makes it required."""
    return Field(default, description=description, json_schema_extra={"kind": kind}, **limits)


class AnnotateSettings(Settings):
    """Annotate pictures and videos with human keypoints.

    posemill annotate INPUT … OUTPUT       one row per person in OUTPUT/annotations/*.parquet
    """

    input: tuple[str, ...] = setting(
        "run",
        ...,
        "pictures, videos, folders, globs, or list files (.txt, .csv, .parquet with a column uri "
        "and optional x, y, w, h); local or any fsspec URL",
        min_length=1,
    )
    output: str = setting("run", ..., "folder or s3:// prefix of the result", min_length=1)

    weights: str = setting("result", "cpm-lite", "shipped weights or a .safetensors file")
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "result", "auto", "arithmetic of the network; auto is bf16 where that is quick, else fp32"
    )
    flip: bool = setting("result", False, "average over mirrored crops: slower, more accurate")
    scales: tuple[float, ...] = setting(
        "result", (1.0,), "average over crops at these scales, as the CPM release: 0.7 0.8 … 1.3"
    )
    refinement: Literal["gaussian", "quarter", "none"] = setting(
        "result", "gaussian", "how a peak is placed within its cell"
    )
    box_factor: float | None = setting(
        "result",
        None,
        "side of the crop in units of the box's longer side (default: the weights')",
        ge=0.5,
        le=10,
    )
    people: str | None = setting(
        "result",
        None,
        "who is in a picture: person-net (finds people), boxes (given in the list file or by "
        "--boxes), whole-image (one person), or detector:FILE.onnx (YOLOX); default: boxes where "
        "they are given, else person-net",
    )
    boxes: str | None = setting(
        "result",
        None,
        "table (.csv, .parquet) with uri, x, y, w, h and optional score, frame_index",
    )
    person_threshold: float | None = setting(
        "result", None, "least score of a found person (default: the locator's own)", ge=0.01, lt=1
    )
    same_person: float | None = setting(
        "result",
        None,
        "OKS from which two poses are one person found twice, and the worse is dropped; 1: never "
        f"(default: {SAME_PERSON}; never where boxes are given)",
        ge=0.1,
        le=1,
    )
    max_people: int = setting("result", 50, "most people per picture, best first", ge=1, le=10_000)
    max_pixels: int = setting("result", 100_000_000, "largest picture that is decoded", ge=1)
    max_frames: int = setting(
        "result", 10_000_000, "most frames of a video that is cut into ranges", ge=1
    )
    max_bytes: int = setting("result", 256 * _MIB, "largest picture file that is fetched", ge=1)
    max_seconds: float = setting(
        "result", 60.0, "longest time a picture, or one frame of a video, may take", gt=0, le=86_400
    )
    max_memory: int = setting(
        "result", 4096, "MiB that a decoder process may use", ge=512, le=1 << 20
    )

    fps: float | None = setting(
        "plan", None, "frames per second taken from videos (default: every frame)", gt=0
    )
    shard_size: int = setting("plan", 512, "most pictures or frames in a shard", ge=1, le=4096)

    limit: int | None = setting("run", None, "stop planning after this many inputs", ge=1)
    sample: float | None = setting(
        "run",
        None,
        "plan only this share (0..1) of the inputs, the same ones every time",
        gt=0,
        le=1,
    )
    include: tuple[str, ...] = setting(
        "run", (), "plan only inputs whose path matches one of these patterns, such as '*/cam1/*'"
    )
    exclude: tuple[str, ...] = setting(
        "run", (), "leave out inputs whose path matches one of these patterns"
    )
    changed: Literal["report", "redo"] = setting(
        "run",
        "report",
        "inputs that are not what they were when they were planned (ETag, size, time): only say "
        "so, or do them again and replace their rows",
    )
    retry_failed: tuple[str, ...] | None = setting(
        "run", None, "do units again that failed: with these error codes, or without a word all"
    )
    max_failures: float = setting(
        "run",
        0.5,
        "stop when more than this share of the units fails, after the first 200",
        ge=0,
        le=1,
    )
    partition: str = setting(
        "run", "1/1", "do part i of n of the shards, so that several drivers share one plan"
    )
    stall_after: float = setting(
        "run",
        120.0,
        "when no shard has come through for so many seconds, say what the stages are at",
        gt=0,
    )
    address: str | None = setting(
        "run",
        None,
        "Ray cluster to use (default: RAY_ADDRESS, the cluster of the Ray job, or here)",
    )
    device: Literal["auto", "cpu", "cuda"] = setting("run", "auto", "where the network runs")
    locator_device: Literal["cpu", "cuda"] = setting(
        "run", "cpu", "where a person-net finds people; cuda is the GPUs that the network runs on"
    )
    locator_gpus: float = setting(
        "run",
        0.25,
        "share of each GPU that is reserved for finding people with --locator-device cuda",
        ge=0.05,
        le=0.95,
    )
    estimators: int | None = setting(
        "run", None, "actors that run the network (default: one per GPU, or by the CPUs)", ge=1
    )
    preparers: int | None = setting(
        "run", None, "actors that fetch and decode (default: by the CPUs)", ge=1
    )
    decoders: int | None = setting(
        "run", None, "decoder processes per preparer (default: by the CPUs)", ge=1, le=64
    )
    threads: int | None = setting(
        "run", None, "CPU threads per estimator (default: by the CPUs)", ge=1
    )
    s3_endpoint: str | None = setting("run", None, "URL of an S3-compatible server")
    s3_anonymous: bool = setting("run", False, "read public buckets without credentials")
    s3_requester_pays: bool = setting("run", False, "pay for reading requester-pays buckets")
    dry_run: bool = setting("run", False, "print the plan and the resources, and stop")

    @field_validator("scales")
    @classmethod
    def _check_scales(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        if not scales or not all(0.25 <= scale <= 4 for scale in scales):
            raise ValueError("scales lie between 0.25 and 4")
        return scales

    @field_validator("people")
    @classmethod
    def _check_people(cls, people: str | None) -> str | None:
        try:
            return people if people is None else check_name(people)
        except LocatorError as error:
            raise ValueError(str(error)) from error

    @field_validator("retry_failed")
    @classmethod
    def _check_codes(cls, codes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for code in codes or ():
            if code not in ERROR_CODES:
                raise ValueError(f"{code!r} is none of the codes {', '.join(ERROR_CODES)}")
        return codes

    @field_validator("partition")
    @classmethod
    def _check_partition(cls, partition: str) -> str:
        index, _, count = partition.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise ValueError("expected i/n with i from 1 to n, such as 2/8")
        return partition

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.boxes and self.people not in (None, "boxes"):
            raise ValueError("--boxes goes with --people boxes")
        if self.person_threshold is not None and self.people in ("boxes", "whole-image"):
            raise ValueError(f"--person-threshold does not go with --people {self.people}")
        if self.locator_device == "cuda" and self.device == "cpu":
            raise ValueError(
                "--locator-device cuda does not go with --device cpu: leave out one of them"
            )
        return self

    @property
    def part_of(self) -> tuple[int, int]:
        """Partition as (index from 0, count)."""
        index, _, count = self.partition.partition("/")
        return int(index) - 1, int(count)

    def fingerprint_fields(self, **content: str | float | None) -> dict[str, Any]:
        """Settings of kind result and plan, with files replaced by what is in them (`content`)."""
        kinds = self.kinds()
        values = {name: value for name, value in self.model_dump().items() if kinds[name] != "run"}
        return json.loads(json.dumps({**values, **content}))  # type: ignore[no-any-return]


def fingerprint(fields: dict[str, Any]) -> str:
    """Short digest of what `fingerprint_fields` gives."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
