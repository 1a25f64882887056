"""`ray_cluster.yaml` is what `ray up` accepts, and says what the documentation promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def config() -> dict[str, Any]:
    """The file, as read."""
    document: dict[str, Any] = yaml.safe_load((REPOSITORY / "ray_cluster.yaml").read_text())
    return document


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    """By Ray's own preparation and validation."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


def test_ray_refuses_a_misspelt_key(config: dict[str, Any]) -> None:
    """The check above can fail."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(Exception, match="clustre_name"):
        validate_config(prepare_config(config | {"clustre_name": "x"}))


def test_head_does_no_work_and_workers_are_spot(config: dict[str, Any]) -> None:
    """A CPU head, spot GPU workers, token authentication on every node."""
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    starts = config["head_start_ray_commands"][1], config["worker_start_ray_commands"][1]
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
