"""The command itself: help, version, unknown commands."""

from __future__ import annotations

import pytest

from jobs.cli import main

COMMANDS = ("annotate", "preview", "import", "train", "evaluate", "belief")


@pytest.mark.parametrize("words", [["--help"], ["-h"]])
def test_help_lists_the_commands(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every subcommand with a line."""
    assert main(words) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


def test_no_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """It prints the help and fails."""
    assert main([]) == 2
    assert "annotate" in capsys.readouterr().out


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    """It names what there is."""
    assert main(["anotate"]) == 2
    assert "annotate" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` prints every setting and exits with 0."""
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "--config" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The installed version."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("posemill ")
