"""What all jobs share: settings in, exit code out."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from aiohttp import ClientError
from botocore.exceptions import BotoCoreError

from pipeline.errors import LockedError, PosemillError, UsageError, redact
from pipeline.settings import Settings
from pipeline.storage import check_endpoint, endpoint_of_environment, protocol_of

DONE, FAILED, USAGE, NOTHING_TO_DO, LOCKED, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 130, 143

S = TypeVar("S", bound=Settings)


CONTINUES = "stopped; what is done is kept: run the same command again to continue"
NOTHING_KEPT = "stopped; nothing was written"


def run(
    program: str,
    kind: type[S],
    job: Callable[[S], int | None],
    arguments: list[str] | None = None,
    interrupted: str = CONTINUES,
) -> int:
    """Parse, run, and say in one line what went wrong; after Ctrl-C or SIGTERM, `interrupted`.

    Exit codes: 0 finished, 1 could not finish, 2 wrong settings, 3 nothing to do (where a job says
    so), 4 another run works on the same output, 130 stopped by Ctrl-C, 143 by SIGTERM.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("posemill").setLevel(logging.INFO)
    signals: list[int] = []
    try:
        with _interrupted_by_sigterm(signals):
            settings = kind.parse(sys.argv[1:] if arguments is None else arguments, program)
            _check_storage(settings)
            code = job(settings)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except LockedError as error:
        print(f"error: {error}", file=sys.stderr)
        return LOCKED
    except PosemillError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except (OSError, BotoCoreError, ClientError) as error:
        reason = redact(str(error) or type(error).__name__)
        print(
            f"error: the storage fails: {reason}; mend it, and run the same again", file=sys.stderr
        )
        return FAILED
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return TERMINATED if signals else INTERRUPTED
    return DONE if code is None else code


def _check_storage(settings: Settings) -> None:
    """That the S3 server answers, where a setting names something on it."""
    endpoint = getattr(settings, "s3_endpoint", None) or endpoint_of_environment()
    values = [
        each
        for value in vars(settings).values()
        for each in (value if isinstance(value, tuple) else (value,))
    ]
    if endpoint and any(isinstance(v, str) and protocol_of(v) == "s3" for v in values):
        check_endpoint(endpoint)


@contextmanager
def _interrupted_by_sigterm(signals: list[int]) -> Iterator[None]:
    """While inside, SIGTERM is as Ctrl-C, and noted."""

    def interrupt(number: int, _: object) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
