"""Children of this process that run one of our own modules."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence


def start(
    module: str, words: Sequence[str], handed: Sequence[int], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start `python -m MODULE HANDED... WORDS...`; `handed` are descriptors that it inherits.

    Raises OSError where the machine has no process, memory or descriptors left.
    """
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, handed), *words],
        pass_fds=handed,
        stdin=subprocess.DEVNULL,
        # What libraries print is for the log; standard output is for results.
        stdout=2,
        # Ctrl-C is for the parent, which ends its children.
        process_group=0,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            **environment,
        },
    )


def cause_of_death(code: int | None) -> str:
    """What an exit code says; None is of a process that has not ended."""
    name = signal.strsignal(-code) if code is not None and code < 0 else None
    return name or f"exit code {code}"
