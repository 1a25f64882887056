"""The results of `quality.py` as Markdown, and their place in a page."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

Document = dict[str, Any]

BEGIN, END = "<!-- quality: begin -->", "<!-- quality: end -->"
JOINTS = ("Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle")


def tables(document: Document) -> str:
    """All of it."""
    parts = (_lspet, _joints, _stages, _coco, _whole, _speed, _origin)
    return "\n\n".join("\n".join(part(document)) for part in parts) + "\n"


def replaced(page: str, block: str) -> str:
    """A page with the block between its markers. Raises ValueError for a page without them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} and {END} around the place of the tables")
    return f"{before}{BEGIN}\n\n{block.strip()}\n\n{END}{after}"


def _lspet(document: Document) -> Iterator[str]:
    people = document["lspet"]
    yield (
        f"PCK@0.2 on {people['people']} pictures of `lspet_val`, percent: 12 limb joints, and all "
        "14 where the model has them"
    )
    yield ""
    yield "| | labels' box, 12 | 14 | detected, 12 | 14 |"
    yield "|---|---:|---:|---:|---:|"
    for row in people["models"]:
        cells = (row[boxes].get(key) for boxes in ("given", "found") for key in ("limb", "all"))
        yield _row(row["name"], *map(_figure, cells))


def _joints(document: Document) -> Iterator[str]:
    yield "By joint, labels' box; Head is neck and head top"
    yield ""
    yield _row("", *JOINTS, "Head")
    yield "|---|" + "---:|" * 7
    for row in document["lspet"]["models"]:
        values = row["given"]["rows"]
        yield _row(row["name"], *(_figure(values.get(joint)) for joint in (*JOINTS, "Head")))


def _stages(document: Document) -> Iterator[str]:
    rows = [row for row in document["lspet"]["models"] if len(row["given"]["stages"]) > 1]
    yield "12 limb joints after each stage, labels' box"
    yield ""
    most = max((len(row["given"]["stages"]) for row in rows), default=0)
    yield _row("", *(f"stage {t + 1}" for t in range(most)))
    yield "|---|" + "---:|" * most
    for row in rows:
        yield _row(row["name"], *map(_figure, row["given"]["stages"]))


def _coco(document: Document) -> Iterator[str]:
    people = document["coco"]
    yield (
        f"PCK@0.2 on `coco_people` val2017, COCO's boxes: the 12 shared joints of "
        f"{people['people']} people with a torso to measure by"
    )
    yield ""
    yield _row("", "12 joints", *JOINTS)
    yield "|---|" + "---:|" * 7
    for row in people["models"]:
        values = row["rows"]
        cells = (row["limb"], *(values.get(joint) for joint in JOINTS))
        yield _row(row["name"], *map(_figure, cells))


def _whole(document: Document) -> Iterator[str]:
    people = document["whole"]
    yield (
        f"OKS on whole pictures of the same, the 12 shared joints: {people['pictures']} pictures, "
        f"{people['people']} people"
    )
    yield ""
    yield "| people found by | estimated by | found | AP | AP50 | AP75 | AR |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for row in people["models"]:
        cells = (_figure(row[key]) for key in ("AP", "AP50", "AP75", "AR"))
        yield _row(row["locator"], row["name"], str(row["found"]), *cells)
    for note in people["notes"]:
        yield ""
        yield note


def _speed(document: Document) -> Iterator[str]:
    speed, file, threads = document["speed"], document["file"], document["threads"]
    yield f"Crops per second on {_threads(threads)}, each in processes of its own,"
    yield f"{speed['rounds']} rounds in turn, medians"
    yield ""
    yield "| | | bar |"
    yield "|---|---:|---:|"
    yield _row(document["name"], f"{speed['ours']:.1f} crops/s", "")
    yield _row("MoveNet Thunder (onnxruntime)", f"{speed['movenet']:.1f} crops/s", "")
    yield _row("ours to MoveNet, median of the rounds", f"{speed['ratio']:.2f}", "at least 1.3")
    yield _row("file of our weights", f"{file['megabytes']:.1f} MB", "at most 12 MB")
    yield _row("loading them", f"{file['seconds']:.2f} s", "below 1 s")


def _origin(document: Document) -> Iterator[str]:
    yield f"{document['date']}; {document['machine']}; {document['versions']}."
    yield f"Weights `{document['name']}`, SHA-256 `{document['sha256'][:16]}`."
    yield ""
    yield f"    {document['command']}"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _figure(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.1f}"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
