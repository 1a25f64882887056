"""What becomes of a unit that fails in a task of its own."""

from __future__ import annotations

import pytest
import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from pipeline.errors import InputError, PosemillError
from pipeline.execute import check_failures, failure_alone
from pipeline.manifest import ShardRef
from pipeline.units import Unit

UNIT = Unit(0, 0, "/in/a.jpg", "image")


def error_of(cause: Exception) -> RayError:
    """As `ray.get` raises it."""
    raised = RayTaskError("annotate", f"Traceback\n{cause}", cause).as_instanceof_cause()
    assert isinstance(raised, RayError)
    return raised


@pytest.mark.parametrize(
    "error", [error_of(ValueError("no")), WorkerCrashedError(), OutOfMemoryError("too much")]
)
def test_what_it_may_have_brought_about_is_its_row(error: RayError) -> None:
    failure = failure_alone(UNIT, error)
    assert failure.code == "internal"
    assert str(failure).startswith("failed alone, too: ")


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.NodeDiedError("gone"),
        ray.exceptions.LocalRayletDiedError(),
        error_of(PosemillError("a decoder process cannot be started")),
    ],
)
def test_it_is_not_written_off_for_what_is_not_its_fault(error: RayError) -> None:
    with pytest.raises(
        PosemillError, match=r"^/in/a.jpg could not be annotated.* nothing is lost$"
    ):
        failure_alone(UNIT, error)


@pytest.mark.parametrize(
    ("units", "failed", "ends"), [(32, 32, True), (32, 31, False), (1, 1, False)]
)
def test_a_shard_of_which_every_unit_failed_alone_is_not_written(
    units: int, failed: int, ends: bool
) -> None:
    """A device that is lost takes all of them with it."""
    ref, failures = ShardRef(7, "f", 0, units), [InputError("internal", "failed alone: no device")]
    if not ends:
        check_failures(ref, units, failures * failed)
        return
    with pytest.raises(PosemillError, match=r"all 32 units of shard 7 .*: no device: .* again"):
        check_failures(ref, units, failures * failed)
