"""What a run that was stopped continues from: one file, written whole or not at all."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cpm_core.errors import ConfigError

_VERSION = 1


@dataclass(frozen=True)
class State:
    """`fit` is `cpm_core.training.Fit`'s state, `best` the fields of a `Best`; `seconds` were spent
    so far. `identity` says which run it is, setting by setting."""

    identity: dict[str, str]
    fit: dict[str, Any]
    best: dict[str, Any] | None
    total_steps: int
    seconds: float


def save_state(path: Path, state: State) -> None:
    """Write it. Raises ConfigError where that is not possible."""
    partial = Path(f"{path}.partial")
    try:
        torch.save({"version": _VERSION, **vars(state)}, partial)
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"--state {path}: cannot be written ({error})") from error


def load_state(path: Path, identity: dict[str, str]) -> State | None:
    """The state of this very run, None where there is none yet. Never runs code from the file.

    Raises ConfigError for another run's, and for a file that is no state.
    """
    if not path.exists():
        return None
    try:
        values = torch.load(path, weights_only=True, map_location="cpu")
        if values.pop("version") != _VERSION:
            raise ConfigError(f"--state {path}: of another version; remove it to begin anew")
        state = State(**values)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, LookupError) as error:
        raise ConfigError(f"--state {path}: no state of a run ({error})") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"--state {path}: no state of a run ({error})") from error
    names = sorted(state.identity.keys() | identity.keys())
    others = [name for name in names if state.identity.get(name) != identity.get(name)]
    if others:
        raise ConfigError(
            f"--state {path} is of a run with another {', '.join(others)}; give the settings of "
            "that run, or another --state"
        )
    return state
