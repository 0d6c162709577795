"""Phantoms: reproducible, complete, with plausible sizes and intensities."""

import numpy as np
import pytest

from nnunet_ext.demo.phantom import LABELS, Phantom, make_phantom
from nnunet_ext.demo.tissue import sample_contrast

ORGANS = [name for name in LABELS if name != "background"]
# millilitres: from a small patient to a large one
VOLUMES_ML = {
    "liver": (450, 1100),
    "spleen": (30, 250),
    "kidneys": (100, 330),
    "aorta": (35, 130),
    "pancreas": (30, 90),
    "gallbladder": (8, 35),
}


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom(seed=0, index=index) for index in range(6)]


def _mean_hu(phantom: Phantom, organ: str) -> float:
    return float(phantom.hu[phantom.labels == LABELS[organ]].mean())


def test_case_depends_on_its_two_numbers_alone(phantoms: list[Phantom]) -> None:
    again = make_phantom(seed=0, index=4)
    np.testing.assert_array_equal(again.hu, phantoms[4].hu)
    np.testing.assert_array_equal(again.labels, phantoms[4].labels)
    assert (again.spacing_mm, again.origin_mm, again.direction) == (
        phantoms[4].spacing_mm,
        phantoms[4].origin_mm,
        phantoms[4].direction,
    )


@pytest.mark.parametrize("other", [(0, 5), (1, 4)])
def test_another_number_is_another_patient(phantoms: list[Phantom], other: tuple[int, int]) -> None:
    patient = make_phantom(*other)
    assert patient.hu.shape != phantoms[4].hu.shape or (patient.hu != phantoms[4].hu).any()


@pytest.mark.parametrize("organ", ORGANS)
def test_every_organ_has_a_plausible_volume(phantoms: list[Phantom], organ: str) -> None:
    low, high = VOLUMES_ML[organ]
    for phantom in phantoms:
        volume = (phantom.labels == LABELS[organ]).sum() * np.prod(phantom.spacing_mm) / 1000
        assert low < volume < high


def test_arrays_are_small_and_of_the_stored_types(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        assert phantom.hu.dtype == np.int16
        assert phantom.labels.dtype == np.uint8
        assert phantom.hu.shape == phantom.labels.shape
        assert all(24 <= size <= 64 for size in phantom.hu.shape)
        assert phantom.hu.min() < -900  # air
        assert phantom.hu.max() > 300  # bone


def test_order_of_intensities_is_that_of_a_scan_with_contrast_agent(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        hu = {organ: _mean_hu(phantom, organ) for organ in ORGANS}
        assert -20 < hu["gallbladder"] < hu["pancreas"] < hu["aorta"]
        assert hu["liver"] < hu["kidneys"]
        assert abs(hu["liver"] - hu["spleen"]) < 60
        assert 20 < hu["liver"] < 130


def test_contrast_phase_varies_between_patients() -> None:
    aorta = [sample_contrast(np.random.default_rng(seed))["aorta"] for seed in range(40)]
    assert max(aorta) - min(aorta) > 100


def test_liver_lies_on_the_patients_right_and_the_spleen_on_the_left(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        _, labels = phantom.to_images()
        centres = {}
        for organ in ("liver", "spleen", "aorta"):
            z, y, x = (float(axis.mean()) for axis in np.nonzero(phantom.labels == LABELS[organ]))
            centres[organ] = labels.TransformContinuousIndexToPhysicalPoint((x, y, z))
        assert centres["liver"][0] < centres["aorta"][0] < centres["spleen"][0]  # x runs to the left
        assert centres["liver"][1] < centres["aorta"][1]  # y runs to the back


def test_some_cases_are_stored_with_flipped_axes(phantoms: list[Phantom]) -> None:
    assert {phantom.direction for phantom in phantoms} == {(1.0, 1.0, 1.0), (-1.0, -1.0, 1.0)}


def test_images_share_one_geometry_centred_on_the_body(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        image, labels = phantom.to_images()
        assert image.GetSize() == labels.GetSize() == phantom.hu.shape[::-1]
        assert image.GetSpacing() == labels.GetSpacing() == phantom.spacing_mm[::-1]
        assert image.GetOrigin() == labels.GetOrigin()
        assert image.GetDirection() == labels.GetDirection()
        middle = image.TransformContinuousIndexToPhysicalPoint([(size - 1) / 2 for size in image.GetSize()])
        assert middle[:2] == pytest.approx((0, -60), abs=0.01)  # the same place flipped or not
