"""`run.json`: what an output was made with, and when."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from pipeline import __version__
from pipeline.errors import UsageError
from pipeline.storage import Output

NAME = "run.json"


class RunFile:
    """The run file of an output; `fields` are the settings that its table depends on."""

    def __init__(self, output: Output, fields: dict[str, Any]) -> None:
        self.output = output
        self.fields = fields

    def check(self) -> None:
        """Raise UsageError, naming what differs, if the output was made with other settings."""
        data = self.output.read(NAME)
        if data is None:
            return
        document = json.loads(data)
        if origin := document.get("compacted_from"):
            raise UsageError(f"{self.output.uri} is a copy of {origin}, made by compact; run there")
        before: dict[str, Any] = document["settings"]
        names = sorted(before.keys() | self.fields.keys())
        differing = [name for name in names if before.get(name) != self.fields.get(name)]
        if differing:
            changes = ", ".join(
                f"{name}: {before.get(name)!r} -> {self.fields.get(name)!r}" for name in differing
            )
            raise UsageError(
                f"{self.output.uri} was made with other settings ({changes}); use those again, or "
                "give another --output"
            )

    def write(self, described: dict[str, Any], run: dict[str, Any] | None = None) -> None:
        """Note what the output is made with and, at the end of a run, the run."""
        data = self.output.read(NAME)
        document: dict[str, Any] = json.loads(data) if data else {"created": now(), "runs": []}
        document |= {"settings": self.fields, **described}
        document["versions"] = {
            name: version(name) for name in ("ray", "torch", "pyarrow", "numpy")
        } | {"python": platform.python_version(), "posemill": __version__}
        if run is not None:
            document["runs"].append({"finished": now(), **run})
        self.output.replace(NAME, json.dumps(document, indent=2).encode())


def now() -> str:
    """This moment, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
