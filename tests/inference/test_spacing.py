import math

import pytest

from nnunet_ext.inference.axes import Axes
from nnunet_ext.inference.spacing import (
    CaseGeometry,
    ForcedSpacing,
    MaxVoxels,
    PlansSpacing,
    TargetSpacing,
    check_shape,
)

STRAIGHT = Axes((2, 1, 0), known=True)
SIDEWAYS = Axes((0, 2, 1), known=True)  # array axes run along x, z, y
PAPER, RELEASED = ForcedSpacing(), ForcedSpacing(1, 1, 1.5)


def geometry(shape=(300, 512, 512), spacing=(2.5, 0.8, 0.7), plan=(2.5, 0.8, 0.8), axes=STRAIGHT, cropped=None):
    return CaseGeometry(shape, cropped or shape, spacing, plan, axes)


# The published rule with a true z spacing of 2.5 mm, and the slices that a plan of 2.5 mm makes of it.
GOLDEN = [
    (100, (0.75, 0.75, 2.5), (1, 1, 2.5), 100, 100),
    (149, (0.75, 0.75, 2.5), (1, 1, 2.5), 149, 149),
    (150, (0.75, 0.75, 0.5), (1, 1, 1.5), 30, 90),
    (300, (0.75, 0.75, 0.5), (1, 1, 1.5), 60, 180),
    (600, (0.75, 0.75, 0.5), (1, 1, 1.5), 120, 360),
    (601, (0.75, 0.75, 0.5 * 600 / 601), (1, 1, 1.5 * 600 / 601), 120, 360),
    (650, (0.75, 0.75, 0.461538), (1, 1, 1.384615), 120, 360),
    (750, (0.75, 0.75, 0.4), (1, 1, 1.2), 120, 360),
    (2000, (0.75, 0.75, 0.4), (1, 1, 1.2), 320, 960),
]


@pytest.mark.parametrize(("slices", "paper", "released", "paper_slices", "released_slices"), GOLDEN)
def test_forced_spacing_is_the_published_rule(slices, paper, released, paper_slices, released_slices):
    case = geometry(shape=(slices, 512, 512))
    for rule, declared, expected in ((PAPER, paper, paper_slices), (RELEASED, released, released_slices)):
        choice = rule.choose(case)
        assert choice.declared == pytest.approx(declared[::-1], abs=1e-6)
        assert choice.target == case.plan_spacing
        assert choice.resampled_shape(case.shape)[0] == expected


def test_a_rule_can_be_used_again():
    before = PAPER.choose(geometry())
    PAPER.choose(geometry(shape=(2000, 512, 512), spacing=(9, 1, 1)))
    assert PAPER.choose(geometry()) == before


def test_slices_are_counted_along_the_axial_axis_and_before_cropping():
    case = geometry(shape=(512, 700, 80), spacing=(0.7, 2.5, 0.8), axes=SIDEWAYS, cropped=(100, 100, 80))
    # x is array axis 0, z is array axis 1 (700 slices), y is array axis 2
    assert RELEASED.choose(case).declared == pytest.approx((1, 600 / 700 * 1.5, 1))
    few = geometry(shape=(512, 149, 700), spacing=(0.7, 2.5, 0.8), axes=SIDEWAYS)
    assert RELEASED.choose(few).declared == (1, 2.5, 1)


def test_in_2d_only_the_in_plane_values_act():
    case = geometry(plan=(None, 0.8, 0.8))
    choice = PAPER.choose(case)
    assert choice.declared == (2.5, 0.75, 0.75)
    assert choice.target == (None, 0.8, 0.8)
    assert choice.resampled_shape(case.shape) == (300, 480, 480)
    assert choice.stretch(case) == pytest.approx((1, 0.75 / 0.8, 0.75 / 0.7))
    choice = TargetSpacing(2, 2, 2).choose(case)
    assert choice.target == (None, 2, 2)
    assert choice.declared == case.spacing
    assert MaxVoxels(300 * 100 * 100).choose(case).resampled_shape(case.shape)[0] == 300


def test_stretch_of_forced_spacing_is_declared_by_true():
    # With 300 slices of 2.5 mm declared as 0.5 mm things look a fifth as high as in training.
    assert PAPER.choose(geometry()).stretch(geometry()) == pytest.approx((0.2, 0.75 / 0.8, 0.75 / 0.7))


def test_target_spacing_replaces_the_plans_value_where_it_is_given():
    case = geometry(axes=SIDEWAYS)
    choice = TargetSpacing(-1, 3, 4).choose(case)
    assert choice.declared == case.spacing
    assert choice.target == (2.5, 4, 3)
    assert choice.stretch(case) == pytest.approx((1, 0.2, 0.8 / 3))


def test_the_plans_spacing_changes_nothing():
    choice = PlansSpacing().choose(geometry())
    assert (choice.declared, choice.target) == ((2.5, 0.8, 0.7), (2.5, 0.8, 0.8))
    assert choice.stretch(geometry()) == (1, 1, 1)


def test_max_voxels_keeps_the_plans_spacing_where_it_fits():
    case = geometry()
    size = math.prod(PlansSpacing().choose(case).resampled_shape(case.shape))
    assert MaxVoxels(size).choose(case).target == case.plan_spacing
    smaller = MaxVoxels(size - 1).choose(case)
    assert smaller.target != case.plan_spacing
    assert math.prod(smaller.resampled_shape(case.shape)) < size


@pytest.mark.parametrize("voxels", [10, 999, 12_345, 1_000_000, 20_000_000])
def test_max_voxels_is_the_finest_that_fits_with_one_factor_for_all_axes(voxels):
    case = geometry(cropped=(200, 300, 400))
    choice = MaxVoxels(voxels).choose(case)
    assert math.prod(choice.resampled_shape(case.cropped_shape)) <= voxels
    factors = [to / plan for to, plan in zip(choice.target, case.plan_spacing, strict=True)]
    assert factors == pytest.approx([factors[0]] * 3)
    finer = type(choice)(choice.declared, tuple(to / (1 + 2e-6) for to in choice.target))
    assert math.prod(finer.resampled_shape(case.cropped_shape)) > voxels


def test_an_axis_of_fewer_than_two_voxels_is_refused():
    case = geometry(shape=(100, 100, 100), spacing=(1, 1, 1), plan=(1, 1, 1))
    rule = TargetSpacing(1, 1, 67)  # 100 mm / 67 mm is 1.49 voxels
    with pytest.raises(ValueError, match=r"leaves 1 voxel\(s\) along z \(100 mm resampled to 67 mm\).*below 50 mm"):
        check_shape(rule.choose(case), case, rule)
    rule = TargetSpacing(1, 1, 66)
    check_shape(rule.choose(case), case, rule)
    few = MaxVoxels(3)
    with pytest.raises(ValueError, match="--max_voxels 3 leaves .* or more voxels"):
        check_shape(few.choose(case), case, few)


def test_an_image_of_one_slice_is_not_the_spacings_fault():
    case = geometry(shape=(1, 100, 100), spacing=(1, 1, 1), plan=(1, 1, 1))
    rule = TargetSpacing(2, 2, 1.5)  # one voxel, as with the plans' spacing
    check_shape(rule.choose(case), case, rule)
    thin = geometry(shape=(2, 100, 100), spacing=(0.6, 1, 1), plan=(2, 1, 1))
    check_shape(TargetSpacing(2, 2, -1).choose(thin), thin, rule)
    for rule in (TargetSpacing(2, 2, 20), MaxVoxels(3)):
        with pytest.raises(ValueError, match=r"leaves [01] voxel\(s\) along"):
            check_shape(rule.choose(case), case, rule)


@pytest.mark.parametrize("bad", [0, -2, math.nan, math.inf, "a", None])
@pytest.mark.parametrize("kind", [ForcedSpacing, TargetSpacing])
def test_values_that_are_no_lengths_are_refused(kind, bad):
    name = kind.__name__.removesuffix("Spacing").lower()
    with pytest.raises(ValueError, match=f"{name} spacing must be 3 positive values in mm.*got 1 {bad} 1"):
        kind(1, bad, 1)


def test_minus_one_is_for_target_spacings_only():
    assert TargetSpacing(-1, -1, -1).choose(geometry()).target == geometry().plan_spacing
    with pytest.raises(ValueError, match=r"forced spacing must be .* got -1 1 1; pass e\.g\."):
        ForcedSpacing(-1, 1, 1)


@pytest.mark.parametrize("bad", [0, -5, 1.5, math.nan, math.inf])
def test_max_voxels_must_be_a_number_of_voxels(bad):
    with pytest.raises(ValueError, match="max voxels must be an integer of at least 1, got"):
        MaxVoxels(bad)


def test_rules_describe_themselves_as_a_user_writes_them():
    assert PAPER.describe() == "--forced_spacing 0.75 0.75 0.5"
    assert TargetSpacing(-1, 2, 2.5).describe() == "--target_spacing -1 2 2.5"
    assert MaxVoxels(100).describe() == "--max_voxels 100"
