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

    def check(self) -> bool:
        """Whether somebody has begun the output. Raises UsageError, naming what differs, if that
        was with other settings."""
        data = self.output.read(NAME)
        if data is None:
            return False
        self._compare(data)
        return True

    def begin(self, described: dict[str, Any]) -> None:
        """Note what the output is made with; `check` it where somebody did before."""
        document = {"created": utc_now(), "runs": [], "settings": self.fields, **described}
        data = json.dumps(document | _versions(), indent=2).encode()
        if not self.output.create(NAME, data):
            self.check()
            self._change(described | _versions())

    def finish(self, described: dict[str, Any], run: dict[str, Any]) -> None:
        """Note a run that came to its end."""
        self._change(described | _versions(), {"finished": utc_now(), **run})

    def _change(self, values: dict[str, Any], run: dict[str, Any] | None = None) -> None:
        """Nothing of what a driver beside this one notes is lost."""
        while (found := self.output.read_version(NAME)) is not None:
            data, version = found
            document = _parse(data, self.output) | values
            if run is not None:
                document["runs"] = [*document.get("runs", []), run]
            if self.output.replace_if(NAME, json.dumps(document, indent=2).encode(), version):
                return

    def _compare(self, data: bytes) -> None:
        document = _parse(data, self.output)
        if origin := document.get("compacted_from"):
            raise UsageError(f"{self.output.uri} is a copy of {origin}, made by compact; run there")
        before = document.get("settings")
        if not isinstance(before, dict) or "fingerprint" not in document:
            raise UsageError(
                f"{self.output.uri} holds something else than annotations; give another --output"
            )
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


def read_run_file(output: Output) -> dict[str, Any] | None:
    """The run file's document, None where there is none. Raises UsageError for a damaged one."""
    data = output.read(NAME)
    return None if data is None else _parse(data, output)


def _parse(data: bytes, output: Output) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise UsageError(f"{output.uri}/{NAME} is damaged ({error})") from error
    return document


def _versions() -> dict[str, Any]:
    packages = {name: version(name) for name in ("ray", "torch", "pyarrow", "numpy")}
    ours = {"python": platform.python_version(), "posemill": __version__}
    return {"versions": packages | ours}


def utc_now() -> str:
    """This moment, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
