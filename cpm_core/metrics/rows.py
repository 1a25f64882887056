"""Left and right joints in one row of a table, as the papers print them."""

from __future__ import annotations

from cpm_core.skeleton import Skeleton

_FIRST = ("Head", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle")
_HEAD = ("head_top", "neck")


def joint_rows(skeleton: Skeleton) -> dict[str, tuple[int, ...]]:
    """Joints by row: neck and head top make Head, `left_knee` and `right_knee` make Knee.

    The papers' seven rows come first, in their order; other joints follow in the skeleton's. The
    value of a row is the mean of its joints' values, as in `evalLSP` and `evalMPII`.
    """
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(skeleton.keypoints):
        rows.setdefault(_row(name), []).append(i)
    order = [*(row for row in _FIRST if row in rows), *(row for row in rows if row not in _FIRST)]
    return {row: tuple(rows[row]) for row in order}


def _row(name: str) -> str:
    if name in _HEAD:
        return "Head"
    for side in ("left", "right"):
        name = name.removeprefix(f"{side}_").removesuffix(f"_{side}")
    return name.replace("_", " ").capitalize()
