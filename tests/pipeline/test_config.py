"""The settings of annotate: the public surface, limits, and what enters the fingerprint."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import AnnotateSettings, fingerprint
from pipeline.errors import UsageError
from pipeline.settings import flag_of

FLAGS = {
    "--input": "run",
    "--output": "run",
    "--weights": "result",
    "--precision": "result",
    "--flip": "result",
    "--scales": "result",
    "--refinement": "result",
    "--box-factor": "result",
    "--people": "result",
    "--boxes": "result",
    "--person-threshold": "result",
    "--same-person": "result",
    "--max-people": "result",
    "--max-pixels": "result",
    "--max-frames": "result",
    "--max-bytes": "result",
    "--max-seconds": "result",
    "--max-memory": "result",
    "--fps": "plan",
    "--shard-size": "plan",
    "--limit": "run",
    "--sample": "run",
    "--include": "run",
    "--exclude": "run",
    "--changed": "run",
    "--retry-failed": "run",
    "--max-failures": "run",
    "--partition": "run",
    "--stall-after": "run",
    "--address": "run",
    "--device": "run",
    "--locator-device": "run",
    "--locator-gpus": "run",
    "--estimators": "run",
    "--preparers": "run",
    "--decoders": "run",
    "--threads": "run",
    "--s3-endpoint": "run",
    "--s3-anonymous": "run",
    "--s3-requester-pays": "run",
    "--dry-run": "run",
}
"""The public surface. Whoever changes it changes what users' scripts and resumed runs mean."""

CHANGED: dict[str, Any] = {
    "weights": "other",
    "precision": "fp32",
    "flip": True,
    "scales": (0.7, 1.3),
    "refinement": "none",
    "box_factor": 1.5,
    "people": "boxes",
    "person_threshold": 0.5,
    "same_person": 0.5,
    "max_people": 3,
    "max_pixels": 10,
    "max_frames": 10,
    "max_bytes": 10,
    "max_seconds": 5.0,
    "max_memory": 1024,
    "fps": 2.0,
    "shard_size": 8,
    "input": ("b",),
    "output": "elsewhere",
    "limit": 3,
    "sample": 0.5,
    "include": ("*x*",),
    "exclude": ("*y*",),
    "changed": "redo",
    "retry_failed": ("timeout",),
    "max_failures": 0.1,
    "partition": "2/3",
    "stall_after": 5.0,
    "address": "auto",
    "device": "cpu",
    "locator_device": "cuda",
    "locator_gpus": 0.5,
    "estimators": 2,
    "preparers": 2,
    "decoders": 2,
    "threads": 2,
    "s3_endpoint": "http://x",
    "s3_anonymous": True,
    "s3_requester_pays": True,
    "dry_run": True,
}


def settings(**values: Any) -> AnnotateSettings:
    return AnnotateSettings.build({"input": ["a"], "output": "out", **values})


def test_the_flags_and_their_kinds_are_these() -> None:
    kinds = {flag_of(name): kind for name, kind in AnnotateSettings.kinds().items()}
    assert kinds == FLAGS


def test_every_flag_has_a_help_text() -> None:
    assert all(field.description for field in AnnotateSettings.model_fields.values())


@pytest.mark.parametrize("name", [n for n in AnnotateSettings.model_fields if n != "boxes"])
def test_only_settings_that_change_the_table_change_the_fingerprint(name: str) -> None:
    before = fingerprint(settings().fingerprint_fields())
    after = fingerprint(settings(**{name: CHANGED[name]}).fingerprint_fields())
    assert (before != after) == (FLAGS[flag_of(name)] != "run")


def test_the_fingerprint_is_of_what_is_in_the_files() -> None:
    """The same weights from another path are the same; other boxes under one name are not."""
    here = settings(weights="a.safetensors").fingerprint_fields(weights="sha")
    there = settings(weights="b.safetensors").fingerprint_fields(weights="sha")
    other = settings(weights="b.safetensors").fingerprint_fields(weights="other sha")
    assert fingerprint(here) == fingerprint(there) != fingerprint(other)


def test_the_fingerprint_is_stable() -> None:
    """It stands in run.json of finished runs: a new default must not look like a new setting."""
    assert fingerprint({"b": [1.0], "a": None}) == "869de939a9579421"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scales": [9.0]}, "--scales .*between 0.25 and 4"),
        ({"scales": []}, "--scales .*between 0.25 and 4"),
        ({"people": "everyone"}, "--people 'everyone': choose person-net"),
        ({"partition": "0/2"}, "--partition '0/2': expected i/n"),
        ({"partition": "3/2"}, "--partition '3/2': expected i/n"),
        ({"partition": "²/2"}, "--partition '²/2': expected i/n"),
        ({"people": "detector:"}, "--people 'detector:': choose person-net"),
        ({"people": "detector"}, "--people 'detector': choose person-net"),
        ({"people": "boxes:b.csv"}, "--people 'boxes:b.csv': choose person-net"),
        ({"boxes": "b.csv", "people": "person-net"}, "--boxes goes with --people boxes"),
        (
            {"people": "whole-image", "person_threshold": 0.5},
            "--person-threshold does not go with --people whole-image",
        ),
        ({"person_threshold": 1}, "--person-threshold 1: .*less than 1"),
        ({"same_person": 0}, "--same-person 0: .*greater than or equal to 0.1"),
        ({"precision": "fp8"}, "--precision 'fp8': .*'fp32' or 'bf16'"),
        ({"sample": 0}, "--sample 0: .*greater than 0"),
        ({"sample": 1.5}, "--sample 1.5: .*less than or equal to 1"),
        ({"max_failures": 2}, "--max-failures 2"),
        ({"input": []}, "--input"),
        ({"output": ""}, "--output ''"),
        ({"fps": 0}, "--fps 0"),
        ({"locator_device": "tpu"}, "--locator-device 'tpu': .*'cpu' or 'cuda'"),
        ({"locator_gpus": 0}, "--locator-gpus 0: .*greater than"),
        ({"locator_gpus": 1}, "--locator-gpus 1: .*less than"),
        (
            {"locator_device": "cuda", "device": "cpu"},
            "--locator-device cuda does not go with --device cpu",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_flag(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings(**values)


@pytest.mark.parametrize(("text", "pair"), [("1/1", (0, 1)), ("2/8", (1, 8)), ("8/8", (7, 8))])
def test_a_partition_counts_from_one(text: str, pair: tuple[int, int]) -> None:
    assert settings(partition=text).part_of == pair
