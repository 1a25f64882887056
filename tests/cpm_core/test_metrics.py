import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpm_core.metrics import (
    joint_rows,
    limb_joints,
    lsp_errors,
    lspet_errors,
    pck_lsp,
    pck_lspet,
    reference_length,
)
from cpm_core.skeleton import load_skeleton

LSP = load_skeleton("lsp14")


@pytest.mark.parametrize(
    ("file", "rows", "total", "area", "at_10", "at_5"),
    [
        (
            "cpm_lsp_6s_predictions.mat",
            [96.8, 87.1, 80.4, 75.1, 86.5, 83.2, 81.2],
            *(84.32, 59.3, 71.2, 43.6),
        ),
        (
            "cpm_mpii_lsp_6s_predictions.mat",
            [97.8, 92.5, 87.0, 83.9, 91.5, 90.8, 89.9],
            *(90.50, 65.4, 78.8, 50.3),
        ),
    ],
)
def test_the_papers_figures_from_its_released_predictions(
    shared, file, rows, total, area, at_10, at_5
):
    io = pytest.importorskip("scipy.io")
    folder = shared("fixtures", "lsp_pck")
    joints = io.loadmat(folder / "lsp_joints_pc.mat")["joints"]
    labels = joints[:2, :, 1000:].transpose(2, 1, 0)
    predicted = io.loadmat(folder / file)["prediction_all"].transpose(2, 0, 1)
    assert predicted.dtype == np.uint8  # small unsigned numbers must not wrap around
    errors = lsp_errors(predicted, labels, LSP)
    result = errors.at(0.2)
    assert round(result.total, 2) == total
    assert result.counted == 14_000
    assert pck_lsp(predicted, labels, LSP).total == result.total
    by_row = [result.by_joint[list(joints)].mean() for joints in joint_rows(LSP).values()]
    assert [round(float(value), 1) for value in by_row] == rows
    curve = errors.curve(np.arange(21) / 100)
    assert round(curve.area, 1) == area
    assert round(float(curve.total[10]), 1) == at_10
    assert round(float(curve.total[5]), 1) == at_5


@pytest.fixture
def person():
    """One person whose joints lie on a line, 10 px apart, in the skeleton's order."""
    labels = np.stack([10.0 * np.arange(14), np.zeros(14)], axis=-1)[None]
    # left shoulder (9) to right hip (2): 70 px, so 14 px are allowed.
    return labels


@pytest.mark.parametrize(("distance", "correct"), [(14.0, True), (14.001, False), (0.0, True)])
def test_pck_lsp_counts_up_to_a_fifth_of_the_torso(person, distance, correct):
    predicted = person.copy()
    predicted[0, 6, 1] += distance
    result = pck_lsp(predicted, person, LSP)
    assert result.by_joint[6] == 100 * correct
    assert result.total == pytest.approx(100 * (13 + correct) / 14)


def test_pck_lsp_does_not_wrap_unsigned_labels(person):
    # The shoulder is left of the hip, and what is predicted is left of the labels.
    labels = (140 - person).astype(np.uint8)
    predicted = labels - np.array([3, 0], np.uint8)
    assert pck_lsp(predicted, labels, LSP).total == 100
    assert pck_lspet(predicted, labels, labelled_but(), LSP).total == 100


def labelled_but(*names):
    labelled = np.ones((1, 14), bool)
    labelled[0, [LSP.index(name) for name in names]] = False
    return labelled


@pytest.mark.parametrize(
    ("labelled", "unit"),
    [
        (labelled_but(), 50.0),  # right shoulder (8) to left hip (3)
        (labelled_but("right_shoulder"), 70.0),  # left shoulder (9) to right hip (2)
        (labelled_but("left_hip"), 70.0),
        (labelled_but("left_hip", "left_shoulder"), None),
    ],
    ids=["first pair", "second pair", "second pair again", "no pair"],
)
def test_pck_lspet_takes_the_first_labelled_pair(person, labelled, unit):
    predicted = person.copy()
    predicted[0, 6, 1] += 0.2 * (unit or 0)
    predicted[0, 7, 1] += 0.2 * (unit or 0) + 0.001
    result = pck_lspet(predicted, person, labelled, LSP)
    if unit is None:
        assert np.isnan(result.total)
        assert result.counted == 0
        assert np.isnan(result.by_joint).all()
        return
    assert reference_length(person, labelled, LSP) == [unit]
    assert (result.by_joint[6], result.by_joint[7]) == (100, 0)
    assert result.counted == labelled.sum()
    assert result.total == pytest.approx(100 * (labelled.sum() - 1) / labelled.sum())


def test_unlabelled_joints_do_not_count(person):
    labels = person.copy()
    labels[0, LSP.index("left_wrist")] = np.nan
    predicted = np.nan_to_num(labels, nan=1e9)
    result = pck_lspet(predicted, labels, labelled_but("left_wrist"), LSP)
    assert (result.total, result.counted) == (100, 13)
    assert np.isnan(result.by_joint[LSP.index("left_wrist")])
    assert result.by_joint[LSP.index("right_wrist")] == 100


def test_people_are_pooled_joint_by_joint(person):
    labels = np.repeat(person, 2, axis=0)
    labelled = np.concatenate([labelled_but(), labelled_but(*LSP.keypoints[4:8])])
    predicted = labels.copy()
    predicted[0, :4, 1] += 1000
    result = pck_lspet(predicted, labels, labelled, LSP)
    assert result.counted == 24
    assert result.total == pytest.approx(100 * 20 / 24)
    assert result.by_joint[0] == 50


def test_only_chosen_joints_count(person):
    predicted = person.copy()
    predicted[0, 12:, 1] += 1000
    chosen = limb_joints(LSP)
    assert [LSP.keypoints[i] for i in np.flatnonzero(~chosen)] == ["neck", "head_top"]
    assert pck_lspet(predicted, person, labelled_but(), LSP, joints=chosen).total == 100
    assert pck_lspet(predicted, person, labelled_but(), LSP).total == pytest.approx(100 * 12 / 14)


@pytest.mark.parametrize(("name", "joints"), [("mpii16", 12), ("coco17", 12)])
def test_limb_joints_of_other_skeletons(name, joints):
    assert limb_joints(load_skeleton(name)).sum() == joints


def test_without_reference_pairs_the_unit_is_the_side_of_the_box(hands):
    labels = np.array([[[0.0, 0], [30, 80], [500, 500]], [[5, 5], [9, 9], [7, 7]]])
    labelled = np.array([[True, True, False], [False, False, False]])
    unit = reference_length(labels, labelled, hands)
    assert unit[0] == 80
    assert np.isnan(unit[1])
    predicted = labels + np.array([16.0, 0])
    result = pck_lspet(predicted, labels, labelled, hands)
    assert (result.total, result.counted) == (100, 2)
    assert pck_lspet(predicted + np.array([0.01, 0]), labels, labelled, hands).total == 0


def test_nobody():
    none = np.empty((0, 14, 2))
    assert np.isnan(pck_lsp(none, none, LSP).total)
    assert np.isnan(pck_lspet(none, none, np.empty((0, 14), bool), LSP).total)


@pytest.mark.parametrize("distance", [1, 2, 3, 6, 7, 11, 13, 21])
def test_equality_counts_whatever_the_numbers(distance):
    """0.2 * 5 * d is not d in floating point for all of these, but d / (5 * d) is 0.2."""
    labels = np.zeros((1, 14, 2))
    labels[0, 2, 0] = 5 * distance
    predicted = labels.copy()
    predicted[0, 6, 1] = distance
    assert pck_lsp(predicted, labels, LSP).total == 100


def test_left_and_right_swapped_are_wrong(person):
    swapped = person[:, LSP.flip_order]
    result = pck_lspet(swapped, person, labelled_but(), LSP)
    wrong = np.abs(np.arange(14) - LSP.flip_order) * 10 > 0.2 * 50
    assert (result.by_joint == 100 * ~wrong).all()
    assert pck_lspet(swapped[:, LSP.flip_order], person, labelled_but(), LSP).total == 100


def test_a_person_without_a_prediction_is_missed(person):
    missing = np.full_like(person, np.nan)
    result = pck_lspet(missing, person, labelled_but("neck"), LSP)
    assert (result.total, result.counted) == (0, 13)
    assert lspet_errors(missing, person, labelled_but("neck"), LSP).curve(np.arange(3)).area == 0


def test_shapes_must_agree(person):
    with pytest.raises(ValueError, match="do not go with"):
        pck_lsp(person[:, :13], person, LSP)


def test_curve_of_two_errors(person):
    """Torso 50 px: errors of 2.5 and 5 px are 0.05 and 0.1; the others are exact."""
    predicted = person.copy()
    predicted[0, 6, 1] += 2.5
    predicted[0, 7, 1] += 5
    errors = lspet_errors(predicted, person, labelled_but(), LSP)
    curve = errors.only(np.isin(np.arange(14), (6, 7))).curve(np.arange(5) / 20)
    assert curve.thresholds.tolist() == [0, 0.05, 0.1, 0.15, 0.2]
    assert curve.total.tolist() == [0, 50, 100, 100, 100]
    assert curve.by_joint[:, 6].tolist() == [0, 100, 100, 100, 100]
    assert np.isnan(curve.by_joint[:, 0]).all()
    # Trapezia: (25 + 75 + 100 + 100) / 4.
    assert curve.area == pytest.approx(75)
    assert curve.area_by_joint[[6, 7]] == pytest.approx([87.5, 62.5])


people = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@given(people, st.sampled_from([0.25, 0.5, 2, 1024]), st.floats(-500, 500))
def test_pck_does_not_depend_on_scale_or_place(rng, scale, shift):
    labels = rng.uniform(0, 200, (5, 14, 2))
    predicted = labels + rng.normal(0, 15, labels.shape)
    labelled = rng.random((5, 14)) < 0.8
    errors = lspet_errors(predicted, labels, labelled, LSP).values
    scaled = lspet_errors(predicted * scale, labels * scale, labelled, LSP).values
    moved = lspet_errors(predicted + shift, labels + shift, labelled, LSP).values
    assert np.array_equal(scaled, errors, equal_nan=True)
    assert np.allclose(moved, errors, equal_nan=True)


@given(people)
def test_curves_rise_and_the_total_is_the_weighted_mean(rng):
    labels = rng.uniform(0, 200, (6, 14, 2))
    predicted = labels + rng.normal(0, 15, labels.shape)
    errors = lspet_errors(predicted, labels, rng.random((6, 14)) < 0.8, LSP)
    curve = errors.curve(np.arange(21) / 100)
    assert (np.diff(curve.total) >= 0).all()
    counts = (~np.isnan(errors.values)).sum(axis=0)
    by_joint = np.nan_to_num(errors.at(0.2).by_joint)
    if counts.sum():
        assert errors.at(0.2).total == pytest.approx((by_joint * counts).sum() / counts.sum())


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("lsp14", "Head Shoulder Elbow Wrist Hip Knee Ankle"),
        ("mpii16", "Head Shoulder Elbow Wrist Hip Knee Ankle Pelvis Thorax"),
        ("coco17", "Shoulder Elbow Wrist Hip Knee Ankle Nose Eye Ear"),
    ],
)
def test_rows_pair_left_and_right(name, rows):
    skeleton = load_skeleton(name)
    grouped = joint_rows(skeleton)
    assert " ".join(grouped) == rows
    assert sorted(i for joints in grouped.values() for i in joints) == list(range(len(skeleton)))
    knees = {skeleton.index("left_knee"), skeleton.index("right_knee")}
    assert set(grouped["Knee"]) == knees


def test_rows_of_an_own_skeleton(hands):
    assert joint_rows(hands) == {"Head": (2,), "Hand": (0, 1)}
