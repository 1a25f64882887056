"""Label files: found, fetched and parsed, with refusals that name the file and the fix."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from cpm_core.skeleton import BUILT_IN, Skeleton, load_skeleton
from pipeline.errors import InputError, UsageError
from pipeline.fetch import fetch
from pipeline.importing.record import Labelled
from pipeline.importing.settings import ImportSettings
from pipeline.matlab import read_mat
from pipeline.storage import path_of, protocol_of, uri_of

_LARGEST = 4 << 30
NOT_AS_EXPECTED = (
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    OverflowError,
    AttributeError,
)
"""What comes of labels that are not what their format says."""


def below(folder: str, name: str) -> str:
    """The URI of a file in a folder, as it stands in tables."""
    protocol = protocol_of(folder)
    return f"{uri_of(protocol, path_of(folder)).rstrip('/')}/{name}"


def folder_of(file: str) -> str:
    """The folder that a file is in."""
    return uri_of(protocol_of(file), str(PurePosixPath(path_of(file)).parent))


def read_bytes(uri: str, settings: ImportSettings, fix: str) -> bytes:
    """A label file. Raises UsageError with the fix."""
    try:
        return fetch(uri, settings.storage, _LARGEST)
    except InputError as error:
        raise UsageError(f"cannot read {uri}: {error}; {fix}") from error


def read_json(
    uri: str,
    settings: ImportSettings,
    fix: str,
    hook: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Any:
    """A JSON label file; `hook` sees every object first and can make it smaller."""
    data = read_bytes(uri, settings, fix)
    try:
        return json.loads(data, object_hook=hook)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{uri} is not JSON ({error}); {fix}") from error


def mat_variable(uri: str, settings: ImportSettings, key: str, fix: str) -> Any:
    """A variable of a .mat file; of structs, without dimensions of length 1."""
    # Squeezing would make a plain array's shape ambiguous; structs are hard to read without.
    content = read_mat(uri, settings.storage, [key], squeeze=key == "RELEASE", fix=fix)
    if key not in content:
        raise UsageError(f"{uri} holds no `{key}`; {fix}")
    return content[key]


def label_file(settings: ImportSettings, patterns: tuple[str, ...], what: str) -> str:
    """The file that INPUT is, or the one file in the folder INPUT that fits the first pattern that
    any file fits."""
    if protocol_of(settings.input) != "file":
        return settings.input
    path = Path(path_of(settings.input))
    if not path.is_dir():
        return str(path)
    for pattern in patterns:
        found = sorted(path.glob(pattern))
        if len(found) == 1:
            return str(found[0])
        if found:
            names = ", ".join(str(file.relative_to(path)) for file in found)
            raise UsageError(f"{path} holds several label files: give one of {names}")
    raise UsageError(f"{path} holds no {' or '.join(patterns)}: give {what}")


def images_folder(settings: ImportSettings, labels: str, places: tuple[str, ...]) -> str:
    """`--images`, or the first of some places relative to the labels' folder that is there."""
    if settings.images:
        return settings.images
    folder = folder_of(labels)
    if protocol_of(folder) != "file":
        return below(folder, places[0])
    for place in places:
        if (Path(folder) / place).is_dir():
            return str((Path(folder) / place).resolve())
    raise UsageError(
        f"no folder of pictures beside {labels} (looked for {', '.join(places)}): give --images"
    )


def known_skeleton(joints: tuple[str, ...]) -> Skeleton | None:
    """The skeleton of the package that has just these joints, in whatever order."""
    skeletons = (load_skeleton(name) for name in BUILT_IN)
    return next((s for s in skeletons if set(s.keypoints) == set(joints)), None)


def checked(labels: str, pictures: Iterator[Labelled]) -> Iterator[Labelled]:
    """The same pictures; a label that is not as the format says becomes a UsageError."""
    count = 0
    try:
        for picture in pictures:
            yield picture
            count += 1
    except NOT_AS_EXPECTED as error:
        raise UsageError(
            f"{labels}: the labels after picture {count} are not as the format says: {error!r}"
        ) from error
