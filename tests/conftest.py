"""What all tests share."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests one process runs, of several that share them (pytest-xdist).

    Two heads of Ray on a machine get in each other's way, and to start one takes seconds.
    """
    for item in items:
        if "head" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("head"))
        elif item.nodeid.startswith("tests/pipeline/test_flow.py"):
            item.add_marker(pytest.mark.xdist_group("flow"))
