"""Entry point of `posemill belief`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs.run import NOTHING_KEPT, run
from pipeline.belief import BeliefSettings, draw_belief


def main(arguments: list[str] | None = None) -> int:
    """Draw the figure; returns the exit code."""

    def job(settings: BeliefSettings) -> None:
        joints = draw_belief(settings)
        print(f"{settings.to}: {', '.join(joints)}")

    words = sys.argv[1:] if arguments is None else arguments
    return run("posemill belief", BeliefSettings, job, _folded(words), NOTHING_KEPT)


def _folded(words: list[str]) -> list[str]:
    """`PICTURE --joint a --joint b` -> `--picture PICTURE --joint a b`.

    Of a flag given twice the parser would keep only the last.
    """
    if words and not words[0].startswith("-"):
        words = ["--picture", *words]
    joints: list[str] = []
    others: list[str] = []
    flag = ""
    for word in words:
        flag = word if word.startswith("-") else flag
        if flag != "--joint":
            others.append(word)
        elif word != "--joint" or not joints:
            joints.append(word)
    return others + joints


if __name__ == "__main__":
    sys.exit(main())
