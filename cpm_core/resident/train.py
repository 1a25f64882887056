"""Training on one device, with the samples of a pack in its memory.

    python -m cpm_core.resident.train pack.safetensors my-net.safetensors --minutes 8

Exit codes are `posemill train`'s: 0 trained, 1 failed, 2 wrong settings, 130 stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import threading
import time
from typing import Any

import cv2
import numpy as np
import torch

from cpm_core.errors import ConfigError, CpmError, PackError, WeightsError
from cpm_core.model import Cpm
from cpm_core.recipe import Recipe
from cpm_core.resident import STARTED
from cpm_core.resident import options as flags
from cpm_core.resident.feed import Feed
from cpm_core.resident.lines import line_of
from cpm_core.resident.loop import Loop
from cpm_core.resident.pack import Pack, read_pack
from cpm_core.resident.plan import Plan, quickest_layout, rehearsed
from cpm_core.resident.state import State, load_state, save_state
from cpm_core.result import Best, Origin, save_result
from cpm_core.start import first_network
from cpm_core.stopping import stop_signals
from cpm_core.training import Fit, freeze
from cpm_core.weights import load_weights

_TRAINED, _FAILED, _WRONG, _STOPPED = 0, 1, 2, 130
_STATE_EVERY_S = 60.0
_WEIGHTS_S = 3.0
"""To write the weights takes no longer."""
_BYTES_PER_S = 2e8
"""States are written no slower."""


def main(arguments: list[str] | None = None, started: float | None = None) -> int:
    """Train; the exit code. `started` is when the time began (of `time.monotonic`), else now."""
    options = flags.parser().parse_args(arguments)
    try:
        with stop_signals() as stopping:
            return _TRAINED if Run(options, stopping, started).train() else _STOPPED
    except (ConfigError, PackError, WeightsError) as error:
        print(f"train: {error}", file=sys.stderr)
        return _WRONG
    except CpmError as error:
        print(f"train: {error}", file=sys.stderr)
        return _FAILED
    except torch.OutOfMemoryError as error:
        print(
            "train: GPU memory is short: lower --batch-size, or pack with a smaller --canvas "
            f"({str(error).splitlines()[0]})",
            file=sys.stderr,
        )
        return _FAILED


class Run:
    """One start of a run. Raises CpmError for settings and files that do not fit."""

    def __init__(
        self,
        options: argparse.Namespace,
        stopping: threading.Event,
        started: float | None = None,
    ) -> None:
        self.options, self.stopping = options, stopping
        self.started = time.monotonic() if started is None else started
        self.recipe = flags.recipe(options)
        self.device = _device(options.device)
        threads = options.threads or os.cpu_count() or 1
        torch.set_num_threads(threads)
        cv2.setNumThreads(1)
        torch.backends.cudnn.benchmark = True
        self.pack = read_pack(options.pack)
        model = first_network_of(options, self.recipe, self.pack)
        self.identity = _identity(self.recipe, self.pack, model)
        self.feed = Feed(self.pack, self.recipe, self.device, threads)
        self.fit = made_fit(model, options, self.feed)
        self.fit.total_steps = self.recipe.epochs * self.feed.steps_per_epoch
        self.best: Best | None = None
        self.log = options.log or options.weights.with_suffix(".jsonl")
        self.spent = 0.0
        self._state_at = time.monotonic()
        self._resume()

    def train(self) -> bool:
        """Train and write the weights; whether the run is complete."""
        plan, deadline = self._plan()
        self._tell(self._start())
        self.loop = Loop(
            self.feed,
            self.fit,
            self.best,
            self.options.tunes,
            self._tell,
            self.stopping,
            self._save_state_now_and_then,
            plan,
            deadline,
        )
        try:
            complete = self.loop.run()
        except (CpmError, torch.OutOfMemoryError):
            if self.loop.best:
                print("train: it failed; these are the best weights before that", file=sys.stderr)
                self._save_weights()
            raise
        self._save_state()
        self._save_weights()
        return complete or not self.stopping.is_set()

    def _plan(self) -> tuple[Plan | None, float]:
        """With --minutes, how many steps fit, and when there is no time for more of them."""
        fit, minutes = self.fit, self.options.minutes
        is_done = 0 < fit.total_steps <= fit.step_number
        if minutes is None or is_done:
            return None, float("inf")
        deadline = self.started + 60 * minutes - self.spent - self._ending_s()
        plan = rehearsed(self.feed, fit, self.options.tunes)
        left = plan.steps_left(fit.progress, deadline - time.monotonic())
        fit.replan(fit.step_number + left)
        return plan, deadline

    def _ending_s(self) -> float:
        """Seconds to write what a run leaves."""
        if self.options.state is None:
            return _WEIGHTS_S
        # The weights, their average, the best ones, and two moments of each.
        values = 5 * sum(p.numel() for p in self.fit.model.parameters())
        return _WEIGHTS_S + 4 * values / _BYTES_PER_S

    def _start(self) -> dict[str, Any]:
        return {
            "kind": "start",
            "device": _name(self.device),
            "samples": len(self.feed.rows),
            "tuning_samples": len(self.feed.tune_rows),
            "step": self.fit.step_number,
            "steps": self.fit.total_steps,
            "steps_per_epoch": self.feed.steps_per_epoch,
            "seconds_to_start": time.monotonic() - self.started,
        }

    def _resume(self) -> None:
        if self.options.state is None:
            return
        state = load_state(self.options.state, self.identity)
        if state is None:
            return
        self.fit.load_state_dict(state.fit)
        self.best = Best(**state.best) if state.best else None
        self.spent = state.seconds
        if self.options.minutes is not None:
            self.fit.total_steps = state.total_steps

    def _save_state_now_and_then(self) -> None:
        if time.monotonic() - self._state_at >= _STATE_EVERY_S:
            self._save_state()

    def _save_state(self) -> None:
        if self.options.state is None:
            return
        best = self.loop.best
        seconds = self.spent + time.monotonic() - self.started
        state = State(
            self.identity,
            self.fit.state_dict(),
            vars(best) if best else None,
            self.fit.total_steps,
            seconds,
        )
        save_state(self.options.state, state)
        self._state_at = time.monotonic()

    def _save_weights(self) -> None:
        options, best = self.options, self.loop.best
        origin = Origin(
            name=options.name or options.weights.stem,
            skeleton=self.pack.info.skeleton,
            box_factor=self.recipe.box_factor,
            training_data=f"{self.pack.info.source} ({self.pack.info.digest})",
            licence=options.licence,
        )
        config = self.fit.model.config
        save_result(options.weights, config, best, self.fit.ema.state_dict(), origin)
        pck = f", PCK {best.pck:.2f} on the tuning split at epoch {best.epoch}" if best else ""
        print(f"{options.weights}: {self.fit.step_number} steps{pck}", flush=True)

    def _tell(self, record: dict[str, Any]) -> None:
        """To the log and to whoever watches."""
        record["seconds"] = round(self.spent + time.monotonic() - self.started, 2)
        try:
            with self.log.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise ConfigError(f"--log {self.log}: cannot be written ({error})") from error
        print(line_of(record), flush=True)


def first_network_of(options: argparse.Namespace, recipe: Recipe, pack: Pack) -> Cpm:
    """The network that the options start from, on the host. Raises CpmError."""
    given = load_weights(options.start_from) if options.start_from else None
    config = flags.network(options, recipe, len(pack.info.skeleton))
    return first_network(config, pack.info.skeleton, options.seed, options.trunk, given)


def made_fit(model: Cpm, options: argparse.Namespace, feed: Feed) -> Fit:
    """The network on its device, ready for the first step; how many there are is yet to be said."""
    freeze(model, feed.recipe)
    name = options.memory_format
    if name == "auto":
        name = quickest_layout(feed, model) if feed.device.type == "cuda" else "channels_last"
    feed.layout = flags.LAYOUTS[name]
    model.to(feed.device, memory_format=feed.layout)  # type: ignore[call-overload]
    network = torch.compile(model, dynamic=False) if options.compile else None
    return Fit(model, feed.recipe, 0, network)  # type: ignore[arg-type]


def _device(name: str) -> torch.device:
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ConfigError("--device cuda: this machine has no GPU that PyTorch can use")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and there) else "cpu")


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _identity(recipe: Recipe, pack: Pack, model: Cpm) -> dict[str, str]:
    """Which run it is, by the names of its settings."""
    settings = {k: str(v) for k, v in recipe.to_dict().items() if k != "epochs"}
    weights = hashlib.sha256()
    for value in model.state_dict().values():
        weights.update(value.contiguous().numpy().tobytes())
    samples = hashlib.sha256(repr(pack.info).encode())
    for array in (value for value in vars(pack).values() if isinstance(value, np.ndarray)):
        samples.update(array.tobytes())
    return {
        **settings,
        "network": str(model.config),
        "first weights": weights.hexdigest(),
        "pack": samples.hexdigest(),
    }


if __name__ == "__main__":
    sys.exit(main(started=STARTED))
