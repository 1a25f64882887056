"""What decoder processes do on purpose in tests: imported there as `sitecustomize`.

A picture file that starts with one of these words makes its decoder misbehave.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

import cv2
import numpy as np

from pipeline import pictures
from pipeline.errors import InputError


class Hostile(pictures.Still):
    """Looks at the first word before it reads the header."""

    def __init__(self, data: bytes, max_pixels: int) -> None:
        super().__init__(_obeyed(data), max_pixels)


def _obeyed(data: bytes) -> bytes:
    """The picture to go on with, if any."""
    word = data[:16].partition(b" ")[0].decode("ascii", "replace")
    if word == "ABORT":
        os.abort()
    if word == "EXIT":
        os._exit(3)
    if word == "KILL":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "HANG":
        time.sleep(1000)
    if word == "STUCK":
        # As a decoder that never ends: native code that does not let go of the interpreter.
        ctypes.PyDLL(None).sleep(1000)
    if word == "HUNGRY":
        np.ones((1 << 10, 1 << 20, 3), np.uint8)
    if word == "RAISE":
        raise RuntimeError("a surprise")
    if word == "REFUSE":
        raise InputError("corrupt", "\udce9 is not text")
    if word == "NOISE":
        print("noise on standard output", flush=True)
        os.write(1, b"more noise\n")
        print("and on standard error", file=sys.stderr, flush=True)
        return cv2.imencode(".png", np.full((8, 8, 3), 7, np.uint8))[1].tobytes()
    return data


pictures.Still = Hostile  # type: ignore[misc]
