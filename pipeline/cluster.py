"""Ray: connecting, and what there is in the cluster."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from pipeline.config import AnnotateSettings
from pipeline.errors import PosemillError
from pipeline.layout import Layout, check_placement, layout

log = logging.getLogger("posemill")

NODE_LABEL = "ray.io/node-id"
"""Ray's own label of every node, to place actors and tasks on a certain one."""


def connect(given_address: str | None, dashboard: bool = False) -> None:
    """Join the cluster of `--address`, RAY_ADDRESS or the surrounding Ray job; else start one
    here."""
    if ray.is_initialized():
        return
    address = given_address or os.environ.get("RAY_ADDRESS")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address and address != "local":
            ray.init(address=address, runtime_env=_code_for_workers(), **quiet)
        else:
            ray.init(address="local", include_dashboard=dashboard, **quiet)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PosemillError(
            f"cannot reach Ray at {address or 'this machine'}: {reason}; check --address and that "
            "RAY_AUTH_TOKEN or ~/.ray/auth_token fits the cluster"
        ) from error
    if threading.current_thread() is threading.main_thread():
        # Ray puts its own in the place, whose SystemExit aborts the process amid a call of Ray.
        signal.signal(signal.SIGTERM, on_sigterm)


@contextmanager
def connected(address: str | None, dashboard: bool = False) -> Iterator[None]:
    """Connected to Ray while inside; a connection that was there before is left alone."""
    owns = not ray.is_initialized()
    connect(address, dashboard)
    try:
        yield
    finally:
        if owns:
            ray.shutdown()


@contextmanager
def native_stderr_to(path: Path) -> Iterator[None]:
    """While inside, what is written to this process's standard error goes to a file.

    Ray's C++ core writes there by itself, of a lost worker pages of stack. `Reporter` has a stream
    of its own.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)


def _code_for_workers() -> dict[str, Any]:
    """Ship the packages to the cluster's workers, unless `ray job submit --working-dir` did."""
    if os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        return {}
    root = Path(__file__).resolve().parent.parent
    return {"py_modules": [str(root / name) for name in ("cpm_core", "pipeline", "jobs")]}


def nodes_alive() -> list[dict[str, float]]:
    """The resources of each node of the connected cluster."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


def cluster_layout(settings: AnnotateSettings, light: bool) -> Layout:
    """The layout for the connected cluster, checked. PosemillError says what is missing."""
    nodes = nodes_alive()
    if not any(node.get("CPU") for node in nodes):
        raise PosemillError("the Ray cluster has no node with a CPU for work; add worker nodes")
    chosen = layout(settings, nodes, light)
    check_placement(chosen, nodes)
    return chosen
