import json

import numpy as np
import pytest
import yaml

from cpm_core.errors import SkeletonError
from cpm_core.skeleton import BUILT_IN, Skeleton, load_skeleton

GOOD = """\
name: duck
keypoints:
  - beak
  - left_wing
  - right_wing
limbs:
  - [beak, left_wing]
  - [beak, right_wing, "#0A0b0c"]
flip_pairs:
  - [left_wing, right_wing]
oks_sigmas: [0.1, 0.05, 0.05]
pck_reference:
  - [left_wing, right_wing]
"""


@pytest.mark.parametrize(("name", "joints"), [("lsp14", 14), ("mpii16", 16), ("coco17", 17)])
def test_shipped_skeletons_are_complete(name, joints):
    skeleton = load_skeleton(name)
    assert skeleton.name == name
    assert len(skeleton) == joints == len(skeleton.oks_sigmas)
    assert len(skeleton.limb_colors) == len(skeleton.limbs)
    # A drawing of the limbs is in one piece and leaves no joint out.
    reached = {skeleton.limbs[0][0]}
    for _ in range(joints):
        reached |= {joint for limb in skeleton.limbs if reached & set(limb) for joint in limb}
    assert reached == set(range(joints))


def test_all_shipped_skeletons_are_listed():
    assert BUILT_IN == ("lsp14", "mpii16", "coco17")


@pytest.mark.parametrize("name", BUILT_IN)
def test_flip_order_swaps_left_and_right_by_name(name):
    skeleton = load_skeleton(name)
    order = skeleton.flip_order
    np.testing.assert_array_equal(order[order], np.arange(len(skeleton)))
    for i, keypoint in enumerate(skeleton.keypoints):
        side, _, rest = keypoint.partition("_")
        mirrored = {"left": f"right_{rest}", "right": f"left_{rest}"}.get(side, keypoint)
        assert skeleton.keypoints[order[i]] == mirrored


def test_lsp14_has_the_order_of_the_data_set():
    # joints.mat: 1-based joint 3 is the right hip, 10 the left shoulder, 14 the head top.
    skeleton = load_skeleton("lsp14")
    assert skeleton.index("right_hip") == 2
    assert skeleton.index("left_shoulder") == 9
    assert skeleton.index("head_top") == 13


def test_coco17_has_the_order_and_sigmas_of_coco():
    skeleton = load_skeleton("coco17")
    assert skeleton.keypoints[:3] == ("nose", "left_eye", "right_eye")
    assert skeleton.keypoints[-1] == "right_ankle"
    # pycocotools: np.array([.26, .25, .25, .35, .35, .79, .79, .72, ..., .89]) / 10
    assert skeleton.oks_sigmas[:7] == (0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079)
    assert skeleton.oks_sigmas[-1] == 0.089


@pytest.mark.parametrize("name", BUILT_IN)
def test_json_round_trip(name):
    skeleton = load_skeleton(name)
    text = skeleton.to_json()
    assert "\n" not in text
    assert Skeleton.from_json(text) == skeleton


def test_own_file(tmp_path):
    path = tmp_path / "duck.yaml"
    path.write_text(GOOD)
    skeleton = load_skeleton(path)
    assert skeleton == Skeleton(
        name="duck",
        keypoints=("beak", "left_wing", "right_wing"),
        limbs=((0, 1), (0, 2)),
        flip_pairs=((1, 2),),
        oks_sigmas=(0.1, 0.05, 0.05),
        limb_colors=("#4d9de0", "#0A0b0c"),
        pck_reference=((1, 2),),
    )
    assert Skeleton.from_json(skeleton.to_json()) == skeleton


def test_odd_names_survive_json(tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_text(GOOD.replace("beak", "'on: \"x\" ü 1'"), encoding="utf-8")
    skeleton = load_skeleton(path)
    assert skeleton.keypoints[0] == 'on: "x" ü 1'
    assert Skeleton.from_json(skeleton.to_json()) == skeleton


BAD = [
    # what to replace in GOOD, by what, the line at fault, part of the reason
    ("name: duck", "nme: duck", 1, "unknown entry 'nme'"),
    ("name: duck", "name: duck\nname: drake", 2, "name is given twice"),
    ("name: duck", "name: [duck]", 1, "single value"),
    ("oks_sigmas: [0.1, 0.05, 0.05]\n", "", 1, "oks_sigmas is missing"),
    ("  - right_wing\nlimbs", "  - left_wing\nlimbs", 5, "'left_wing' is named twice"),
    ("[beak, left_wing]", "[beak, left_foot]", 7, "no keypoint is named 'left_foot'"),
    ("[beak, left_wing]", "[beak, beak]", 7, "'beak' is paired with itself"),
    ("[beak, left_wing]", "[beak]", 7, "a limb is"),
    ('"#0A0b0c"', "red", 8, "'red' is not a colour"),
    ('"#0A0b0c"', "'#12345g'", 8, "is not a colour"),
    ("  - [left_wing, right_wing]\noks", "  - [beak, beak]\noks", 10, "paired with itself"),
    ("  - [left_wing, right_wing]\noks", "  - [beak]\noks", 10, "expected a pair"),
    (
        "  - [left_wing, right_wing]\noks",
        "  - [left_wing, right_wing]\n  - [beak, left_wing]\noks",
        11,
        "'left_wing' is in two flip pairs",
    ),
    ("[0.1, 0.05, 0.05]", "[0.1, 0.05]", 11, "2 oks_sigmas for 3 keypoints"),
    ("[0.1, 0.05, 0.05]", "\n  - 0.1\n  - small\n  - 0.1", 13, "'small' is not a number"),
    ("[0.1, 0.05, 0.05]", "[0.1, 0.05, 1.5]", 11, "between 0 and 1, not 1.5"),
    ("[0.1, 0.05, 0.05]", "[0.1, 0.05, 0]", 11, "between 0 and 1"),
    ("[0.1, 0.05, 0.05]", "[0.1, 0.05, .nan]", 11, "is not a number"),
    ("[0.1, 0.05, 0.05]", "[0.1, 0.05, nan]", 11, "between 0 and 1"),
    ("[0.1, 0.05, 0.05]", "0.1", 11, "expected a list"),
    ("  - beak\n  - left_wing\n  - right_wing\n", "  []\n", 3, "1 to 1000 keypoints, not 0"),
    ("pck_reference:\n", "pck_reference: x\n#", 12, "expected a list"),
    ("flip_pairs:", "flip_pairs: [", 10, "not YAML"),
    ("duck", "du\x07ck", 1, "not YAML"),
    (GOOD, "- a\n- b\n", 1, "expected a mapping"),
    (GOOD, "# nothing\n", 1, "expected a mapping"),
]


@pytest.mark.parametrize(("old", "new", "line", "reason"), BAD, ids=[case[3] for case in BAD])
def test_bad_file_is_refused_with_file_line_and_reason(tmp_path, old, new, line, reason):
    assert old in GOOD
    path = tmp_path / "bad.yaml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(SkeletonError) as caught:
        load_skeleton(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "content", [None, b"\xff\xfe\x00bad", b"[" * 2000], ids=["absent", "not text", "deep"]
)
def test_unreadable_file_is_refused(tmp_path, content):
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SkeletonError, match=r"bad\.yaml"):
        load_skeleton(path)


def test_unknown_name_says_what_there_is():
    with pytest.raises(SkeletonError, match=r"'lsp15'.*lsp14, mpii16, coco17"):
        load_skeleton("lsp15")


def test_unknown_keypoint_says_what_there_is():
    with pytest.raises(SkeletonError, match=r"no keypoint 'tail'.*right_ankle"):
        load_skeleton("lsp14").index("tail")


@pytest.mark.parametrize(
    "change",
    [
        {"limbs": [[0, 99]]},
        {"limbs": [[0, -1]]},
        {"limbs": [[0, 1, 2]]},
        {"limb_colors": []},
        {"keypoints": 7},
        {"keypoints": ["a"] * 14},
        {"oks_sigmas": None},
        {"oks_sigmas": {"a": 1}},
        {"flip_pairs": "ab"},
        {"name": ""},
    ],
    ids=str,
)
def test_damaged_json_is_refused(change):
    fields = json.loads(load_skeleton("lsp14").to_json())
    with pytest.raises(SkeletonError):
        Skeleton.from_json(json.dumps(fields | change))


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", "[" * 100_000], ids=lambda t: t[:3])
def test_json_that_is_no_skeleton_is_refused(text):
    with pytest.raises(SkeletonError):
        Skeleton.from_json(text)


def test_too_many_keypoints_are_refused(tmp_path):
    names = [f"k{i}" for i in range(1001)]
    document = {"name": "n", "keypoints": names, "limbs": [], "flip_pairs": [], "oks_sigmas": []}
    path = tmp_path / "many.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(SkeletonError, match="1 to 1000 keypoints, not 1001"):
        load_skeleton(path)
