"""The `posemill` command: the same jobs as `jobs/*.py`, as subcommands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

_COMMANDS = {
    "annotate": "annotate pictures and videos with human keypoints",
    "status": "how far an annotation is, and who works on it",
    "verify": "check that every planned unit is in the table, once",
    "compact": "copy a finished table into few large, sorted files",
    "gc": "remove what stopped runs have left behind",
    "preview": "draw annotated pictures on a contact sheet",
    "import": "turn labelled pictures into a training table",
    "train": "train or fine-tune a network",
    "evaluate": "measure weights, annotations or predictions by their labels",
    "belief": "draw what a network believes about a joint, stage by stage",
}


def _module(command: str) -> str:
    return "jobs.import_" if command == "import" else f"jobs.{command}"


def main(arguments: list[str] | None = None) -> int:
    """Dispatch; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, _COMMANDS))
        print("usage: posemill COMMAND …\n")
        for name, text in _COMMANDS.items():
            print(f"  {name:<{width}}  {text}")
        print("\nposemill COMMAND --help lists a command's settings.")
        return 0 if words else 2
    if words[0] == "--version":
        from pipeline import __version__

        print(f"posemill {__version__}")
        return 0
    if words[0] not in _COMMANDS:
        print(f"error: no command {words[0]!r}; there is {', '.join(_COMMANDS)}", file=sys.stderr)
        return 2
    try:
        run: Callable[[list[str]], int] = import_module(_module(words[0])).main
    except KeyboardInterrupt:
        print("stopped before it began", file=sys.stderr)
        return 130
    return run(words[1:])


if __name__ == "__main__":
    sys.exit(main())
