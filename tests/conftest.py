"""What all tests share."""

from __future__ import annotations

import pytest

_WITH_RAY = ("tests/e2e/", "tests/pipeline/test_flow.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs all tests that start Ray, one after the other; others run beside it."""
    for item in items:
        if item.nodeid.startswith(_WITH_RAY):
            item.add_marker(pytest.mark.xdist_group("ray"))
