"""Typed settings that read the same from flags, a YAML file and the environment.

Precedence: flag, then environment (`POSEMILL_BOX_FACTOR`), then `--config FILE.yaml`, then default.
A field's kind says what it means for a run that is continued:

- `result`: it changes what stands in the table; `plan`: it changes how inputs are cut into units;
- `run`: it changes neither, and may differ from one start to the next.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import types
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NoReturn, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from pipeline.errors import UsageError

Kind = Literal["result", "plan", "run"]
_ENVIRONMENT = "POSEMILL_"


class Settings(BaseModel):
    """Base of every job's settings. Frozen; unknown names are refused with the nearest one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    POSITIONAL: ClassVar[str] = ""
    """The one setting that may stand before the flags without its own."""

    @classmethod
    def parse(
        cls, arguments: Sequence[str], program: str, environment: Mapping[str, str] | None = None
    ) -> Self:
        """Settings from a command line. Raises UsageError; `--help` prints and exits."""
        environment = os.environ if environment is None else environment
        given = vars(_parser(cls, program).parse_args(_fold_positionals(cls, list(arguments))))
        config_file = given.pop("config", None) or environment.get(f"{_ENVIRONMENT}CONFIG")
        values: dict[str, Any] = {}
        if config_file:
            values |= _from_yaml(cls, config_file)
        values |= _from_environment(cls, environment)
        values |= {name: value for name, value in given.items() if value is not None}
        return cls.build(values)

    @classmethod
    def build(cls, values: dict[str, Any]) -> Self:
        """Validate; the error names the setting by its flag."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UsageError("; ".join(_explain(cls, e) for e in error.errors())) from None

    @classmethod
    def kinds(cls) -> dict[str, Kind]:
        """The kind of every field; a field without one is a bug."""
        kinds: dict[str, Kind] = {}
        for name, field in cls.model_fields.items():
            extra = field.json_schema_extra
            assert isinstance(extra, dict), f"{cls.__name__}.{name} has no kind"
            kinds[name] = extra["kind"]  # type: ignore[assignment]
        return kinds


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of exiting and suggests the nearest flag."""

    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        for word in message.split():
            near = difflib.get_close_matches(word.split("=")[0], flags, n=1, cutoff=0.5)
            if message.startswith("unrecognized arguments") and word.startswith("-") and near:
                raise UsageError(f"no setting {word.split('=')[0]!r}: did you mean {near[0]}?")
        if message.startswith("unrecognized arguments") and not message.split()[2].startswith("-"):
            message += "; INPUT … OUTPUT come before the flags"
        raise UsageError(f"{message}; see {self.prog} --help")


def flag_of(name: str) -> str:
    """The flag of a field: `box_factor` -> `--box-factor`."""
    return "--" + name.replace("_", "-")


def _parser(cls: type[Settings], program: str) -> _Parser:
    parser = _Parser(
        prog=program,
        description=(cls.__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Every setting can also stand in a YAML file (--config) or in the environment "
        "(POSEMILL_BOX_FACTOR for --box-factor).",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings")
    for name, field in cls.model_fields.items():
        options: dict[str, Any] = {"default": None, "help": _help(field)}
        if _is_bool(field):
            options["action"] = argparse.BooleanOptionalAction
        elif _is_list(field):
            options |= {"nargs": "*", "action": "extend", "metavar": _metavar(name)}
        else:
            options["metavar"] = _metavar(name)
        parser.add_argument(flag_of(name), dest=name, **options)
    return parser


def _fold_positionals(cls: type[Settings], arguments: list[str]) -> list[str]:
    """`IN … OUT rest` -> `--input IN … --output OUT rest`, for settings that have both.

    Settings with a `format`, too, take it as the first word.
    """
    if cls.POSITIONAL:
        return _fold_one(cls.POSITIONAL, arguments)
    if not {"input", "output"} <= cls.model_fields.keys():
        return arguments
    words = []
    while arguments and not arguments[0].startswith("-"):
        words.append(arguments.pop(0))
    if not words:
        return arguments
    given = {argument.split("=")[0] for argument in arguments}
    if "format" in cls.model_fields and "--format" not in given:
        arguments = ["--format", _checked_format(cls, words.pop(0)), *arguments]
        if not words:
            return arguments
    flags = given & {"--input", "--output"}
    if len(words) == 1 and len(flags) == 1:
        return [*({"--input", "--output"} - flags), *words, *arguments]
    if len(words) == 1:
        raise UsageError(f"expected INPUT … OUTPUT, got only {words[0]!r}")
    if flags:
        raise UsageError(f"{' and '.join(sorted(flags))} given twice: as {words!r}, too")
    return ["--input", *words[:-1], "--output", words[-1], *arguments]


def _fold_one(name: str, arguments: list[str]) -> list[str]:
    """`WORD rest` -> `--name WORD rest`."""
    if not arguments or arguments[0].startswith("-"):
        return arguments
    if len(arguments) > 1 and not arguments[1].startswith("-"):
        raise UsageError(f"expected one {_metavar(name)}, got {arguments[0]!r} {arguments[1]!r}")
    return [flag_of(name), *arguments]


def _checked_format(cls: type[Settings], word: str) -> str:
    """The word, which is one of the field's choices: else the user may have left the format out."""
    choices = get_args(cls.model_fields["format"].annotation)
    if word in choices:
        return word
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    hint = f": did you mean {near[0]}?" if near else ""
    raise UsageError(
        f"no format {word!r}{hint}; expected FORMAT INPUT OUTPUT, "
        f"where FORMAT is one of {', '.join(choices)}"
    )


def _help(field: FieldInfo) -> str:
    text = (field.description or "").replace("%", "%%")
    if field.is_required() or field.default in (None, (), False):
        return text
    default = field.default
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"{text} (default: {shown})"


def _metavar(name: str) -> str:
    return name.upper()


def _is_bool(field: FieldInfo) -> bool:
    return field.annotation is bool


def _is_list(field: FieldInfo) -> bool:
    kinds = [field.annotation]
    if get_origin(field.annotation) in (Union, types.UnionType):
        kinds = list(get_args(field.annotation))
    return any(get_origin(kind) is tuple for kind in kinds)


def _from_yaml(cls: type[Settings], path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            document = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read --config {path}: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--config {path} is not YAML: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageError(f"--config {path}: expected `setting: value` lines")
    values: dict[str, Any] = {}
    for key, value in document.items():
        name = str(key).replace("-", "_")
        if name not in cls.model_fields:
            raise UsageError(f"--config {path}: {_unknown(cls, name)}")
        single = _is_list(cls.model_fields[name]) and isinstance(value, str | int | float)
        values[name] = [value] if single else value
    return values


def _from_environment(cls: type[Settings], environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(_ENVIRONMENT) or variable == f"{_ENVIRONMENT}CONFIG":
            continue
        name = variable.removeprefix(_ENVIRONMENT).lower()
        if name not in cls.model_fields:
            # Another job's setting is none of ours; a misspelt one of ours is refused.
            if difflib.get_close_matches(name, cls.model_fields, n=1, cutoff=0.7):
                raise UsageError(f"environment variable {variable}: {_unknown(cls, name)}")
            continue
        try:
            values[name] = shlex.split(text) if _is_list(cls.model_fields[name]) else text
        except ValueError as error:
            raise UsageError(f"environment variable {variable}: {error}") from error
    return values


def _unknown(cls: type[Settings], name: str) -> str:
    near = difflib.get_close_matches(name, cls.model_fields, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]!r}?" if near else f"; known are {', '.join(cls.model_fields)}"
    return f"no setting {name!r}{hint}"


def _explain(cls: type[Settings], error: Any) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return _unknown(cls, name)
    if error["type"] == "missing":
        return f"{flag_of(name)} is needed"
    message = error["msg"].removeprefix("Value error, ")
    if not name:
        return str(message)
    return f"{flag_of(name)} {error['input']!r}: {message[0].lower()}{message[1:]}"
