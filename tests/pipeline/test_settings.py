"""Settings by flag, environment and YAML: the same field, one precedence, helpful refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from pipeline.errors import UsageError
from pipeline.settings import Settings, flag_of


class Job(Settings):
    """A job.

    example INPUT … OUTPUT
    """

    input: tuple[str, ...] = Field(..., description="what", json_schema_extra={"kind": "run"})
    output: str = Field(..., description="where to", json_schema_extra={"kind": "run"})
    box_factor: float = Field(
        1.25, description="100 % is 1", json_schema_extra={"kind": "result"}, gt=0
    )
    scales: tuple[float, ...] = Field((1.0,), json_schema_extra={"kind": "result"})
    flip: bool = Field(False, description="mirror", json_schema_extra={"kind": "result"})
    limit: int | None = Field(None, description="stop", json_schema_extra={"kind": "plan"}, ge=1)


def parse(arguments: str, environment: dict[str, str] | None = None) -> Job:
    return Job.parse(arguments.split(), "example", environment or {})


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        pytest.param("a out", "input", ("a",), id="short form"),
        pytest.param("a b c out", "input", ("a", "b", "c"), id="several inputs"),
        pytest.param("a b c out", "output", "out", id="the last positional is the output"),
        pytest.param("a out --flip", "flip", True, id="switch"),
        pytest.param("a out --no-flip", "flip", False, id="switched off"),
        pytest.param("a out --limit 5", "limit", 5, id="number"),
        pytest.param("a out --limit=5", "limit", 5, id="with an equals sign"),
        pytest.param("a out --scales 0.7 1.3", "scales", (0.7, 1.3), id="list"),
        pytest.param("--input a b --output out", "input", ("a", "b"), id="long form"),
        pytest.param("a --output out", "input", ("a",), id="input short, output long"),
        pytest.param("out --input a", "output", "out", id="output short, input long"),
        pytest.param("a out", "box_factor", 1.25, id="default"),
    ],
)
def test_a_command_line_sets_fields(arguments: str, field: str, value: object) -> None:
    assert getattr(parse(arguments), field) == value


@pytest.mark.parametrize(
    ("flag", "environment", "yaml", "expected"),
    [
        (None, None, None, 1.25),
        (None, None, "4", 4.0),
        (None, "3", "4", 3.0),
        ("2", "3", "4", 2.0),
        ("2", None, "4", 2.0),
        ("2", "3", None, 2.0),
    ],
)
def test_a_flag_beats_the_environment_beats_yaml_beats_the_default(
    flag: str | None, environment: str | None, yaml: str | None, expected: float, tmp_path: Path
) -> None:
    arguments = "a out" + (f" --box-factor {flag}" if flag else "")
    variables = {"POSEMILL_BOX_FACTOR": environment} if environment else {}
    if yaml:
        (tmp_path / "s.yaml").write_text(f"box_factor: {yaml}\n")
        arguments += f" --config {tmp_path}/s.yaml"
    assert parse(arguments, variables).box_factor == expected


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        pytest.param("box-factor: 2", "box_factor", 2.0, id="names as on the command line"),
        pytest.param("box_factor: 2", "box_factor", 2.0, id="names as in the environment"),
        pytest.param("scales: [0.7, 1.3]", "scales", (0.7, 1.3), id="list"),
        pytest.param("scales: 0.7", "scales", (0.7,), id="a list of one, without brackets"),
        pytest.param("flip: yes", "flip", True, id="switch"),
        pytest.param("limit: null", "limit", None, id="null"),
        pytest.param("", "box_factor", 1.25, id="empty file"),
    ],
)
def test_yaml_sets_fields(text: str, field: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(text)
    assert getattr(parse(f"a out --config {tmp_path}/s.yaml"), field) == value


def test_yaml_can_name_inputs_and_output(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("input: photos\noutput: out\n")
    job = parse(f"--config {tmp_path}/s.yaml")
    assert (job.input, job.output) == (("photos",), "out")


@pytest.mark.parametrize(
    ("variables", "field", "value"),
    [
        ({"POSEMILL_SCALES": "0.7 1.3"}, "scales", (0.7, 1.3)),
        ({"POSEMILL_FLIP": "true"}, "flip", True),
        ({"POSEMILL_LIMIT": "7"}, "limit", 7),
        ({"UNRELATED": "1"}, "limit", None),
    ],
)
def test_the_environment_sets_fields(variables: dict[str, str], field: str, value: object) -> None:
    assert getattr(parse("a out", variables), field) == value


def test_the_environment_can_quote_paths_with_spaces() -> None:
    variables = {"POSEMILL_INPUT": "'my photos' b", "POSEMILL_OUTPUT": "my out"}
    job = parse("", variables)
    assert (job.input, job.output) == (("my photos", "b"), "my out")


def test_the_environment_can_name_the_yaml_file(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("limit: 3")
    assert parse("a out", {"POSEMILL_CONFIG": str(tmp_path / "s.yaml")}).limit == 3


@pytest.mark.parametrize(
    ("arguments", "variables", "yaml", "message"),
    [
        pytest.param("a out --box-facter 2", {}, None, "did you mean --box-factor", id="flag"),
        pytest.param("a out --flop", {}, None, "did you mean --flip", id="switch"),
        pytest.param("a out --fli", {}, None, "did you mean --flip", id="no abbreviations"),
        pytest.param("a out", {}, "box_facter: 2", "did you mean 'box_factor'", id="YAML entry"),
        pytest.param("a out", {}, "zzz: 2", "known are input, output", id="nothing near"),
        pytest.param("a out", {"POSEMILL_LIMTI": "2"}, None, "did you mean 'limit'", id="variable"),
        pytest.param("a out --limit 0", {}, None, r"--limit '0': .*greater than", id="too small"),
        pytest.param("a out --limit x", {}, None, r"--limit 'x': .*valid integer", id="no number"),
        pytest.param("a out --limit", {}, None, "--limit: expected one argument", id="no value"),
        pytest.param("a out --scales 1 x", {}, None, r"--scales 'x': .*number", id="in a list"),
        pytest.param("a out --box-factor nan", {}, None, "--box-factor 'nan'", id="nan"),
        pytest.param("a out --box-factor inf", {}, None, "--box-factor 'inf'", id="infinite"),
        pytest.param("a out", {}, "limit: many", "--limit 'many'", id="wrong value in YAML"),
        pytest.param("a out", {"POSEMILL_FLIP": "2"}, None, "--flip '2'", id="in the environment"),
        pytest.param("a out", {"POSEMILL_SCALES": "'1"}, None, "POSEMILL_SCALES", id="open quote"),
        pytest.param("a out", {}, "- 1", "expected `setting: value`", id="YAML list"),
        pytest.param("a out", {}, "a: [", "is not YAML", id="no YAML"),
        pytest.param("a out --config nowhere.yaml", {}, None, "cannot read --config", id="no file"),
        pytest.param("a", {}, None, "expected INPUT … OUTPUT", id="no output"),
        pytest.param("", {}, None, "--input is needed; --output is needed", id="nothing"),
        pytest.param("--flip a out", {}, None, "come before the flags", id="flags first"),
        pytest.param("a out --input b", {}, None, "--input given twice", id="input twice"),
        pytest.param("a b --output c --input d", {}, None, "given twice", id="both twice"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name_and_the_fix(
    arguments: str, variables: dict[str, str], yaml: str | None, message: str, tmp_path: Path
) -> None:
    if yaml:
        (tmp_path / "s.yaml").write_text(yaml)
        arguments += f" --config {tmp_path}/s.yaml"
    with pytest.raises(UsageError, match=message):
        parse(arguments, variables)


def test_help_names_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        parse("--help")
    text = capsys.readouterr().out
    assert done.value.code == 0
    assert all(flag_of(name) in text for name in Job.model_fields)
    assert "100 % is 1 (default: 1.25)" in text


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse("a out").limit = 3
