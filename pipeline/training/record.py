"""`run.json`: what a run is, so that the same name continues the same run and no other."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.samples import SampleTable
from pipeline.settings import flag_of
from pipeline.storage import Output
from pipeline.training.settings import TrainSettings
from pipeline.training.start import Start

RECORD = "run.json"

_SETTINGS = {
    "skeleton": "samples",
    "bf16": "precision",
    "first_sigma": "label_sigma",
    "last_sigma": "label_sigma",
    "network.trunk": "preset",
    "network.stages": "stages",
    "network.joints": "samples",
    "network.mean": "trunk",
    "network.input_size": "phases",
    "network.label_sigma": "phases",
    "network.centre_sigma": "phases",
    "augmentation.scale": "augment_scale",
    "augmentation.rotation_degrees": "augment_rotation",
    "augmentation.shift": "augment_shift",
    "augmentation.flip": "augment_flip",
    "augmentation.erase": "augment_erase",
    "augmentation.part": "augment_part",
    "augmentation.brightness": "augment_color",
    "augmentation.contrast": "augment_color",
    "augmentation.color": "augment_color",
}
"""Settings that decide a part of the identity of another name."""


class RunRecord:
    """The document of a run: its identity, its starts, and how it ended."""

    def __init__(self, output: Output, identity: dict[str, Any]) -> None:
        self.output = output
        data = output.read(RECORD)
        self.document: dict[str, Any] = json.loads(data) if data else {"starts": [], "finished": {}}
        before = self.document.get("identity")
        if before is not None:
            _refuse_another(output.uri, before, identity)
        self.document["identity"] = identity

    @property
    def finished(self) -> dict[str, Any]:
        """What `finish` was told; empty while the run goes on."""
        finished: dict[str, Any] = self.document["finished"]
        return finished

    def start(self, settings: TrainSettings) -> None:
        """Note a start of the run."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.document["starts"].append({"time": now, "settings": settings.model_dump()})
        self.document["finished"] = {}
        self._write()

    def finish(self, **values: Any) -> None:
        """Note that the run is complete."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.document["finished"] = {"time": now, **values}
        self._write()

    def _write(self) -> None:
        self.output.replace(RECORD, json.dumps(self.document, indent=2).encode())


def identity(settings: TrainSettings, start: Start, table: SampleTable) -> dict[str, Any]:
    """What must stay the same from one start of a run to the next.

    Files count by what is in them. `epochs` is not in it: a finished run may be given more.
    """
    recipe = settings.recipe().to_dict()
    del recipe["epochs"]
    if settings.teacher is None:
        del recipe["teacher_weight"]  # Runs from before there were teachers have none.
    values = {
        "samples": table.digest,
        "network": asdict(start.config),
        "skeleton": json.loads(table.skeleton.to_json()),
        "start_from": start.given,
        "trunk": _content(settings.trunk),
        "teacher": _content(settings.teacher),
        "teacher_tensor": settings.teacher_tensor,
        **recipe,
    }
    return json.loads(json.dumps(values))  # type: ignore[no-any-return]


def _content(path: str | None) -> str | None:
    """A digest of a file, and of the weights beside it where it is an OpenVINO network."""
    if path is None or not Path(path).is_file():
        return path
    digest = hashlib.sha256(Path(path).read_bytes())
    weights = Path(path).with_suffix(".bin")
    if path.endswith(".xml") and weights.is_file():
        digest.update(weights.read_bytes())
    return digest.hexdigest()[:16]


def _refuse_another(uri: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    before, now = _flat(before), _flat(now)
    differing = [k for k in before.keys() | now.keys() if before.get(k) != now.get(k)]
    if differing:
        flags = ", ".join(sorted({flag_of(_setting(name)) for name in differing}))
        raise UsageError(
            f"{uri} was started with other settings or data ({flags}); give the same ones to "
            "continue it, or another --name"
        )


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    """With the parts of the network and of the augmentation one by one."""
    parts = {name: identity[name] for name in ("network", "augmentation") if name in identity}
    rest = {name: value for name, value in identity.items() if name not in parts}
    return rest | {f"{p}.{name}": v for p, values in parts.items() for name, v in values.items()}


def _setting(name: str) -> str:
    """The setting behind a part of the identity; what has none comes with the preset."""
    return _SETTINGS.get(name, name if name in TrainSettings.model_fields else "preset")
