"""The picture of a propagation: which slices are shown, how they are marked, and the curve below them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from inference.tiny_propagation import carried_unchanged
from matplotlib.figure import Figure

from nnunet_ext.figures.propagation import Strip, chosen_places, draw_propagation, strip_of
from nnunet_ext.inference.propagated import GivenSlices
from nnunet_ext.inference.sparse_case import SparseCase
from nnunet_ext.propagation.sparse import SliceNumbers


@pytest.fixture
def strip() -> Strip:
    labels = np.zeros((12, 20, 24), np.int16)
    labels[1:11, 5:12, 6:15], labels[3:8, 14:18, 4:8] = 1, 2
    directions = np.ones((12, 2), bool)
    directions[:2, 0], directions[9:, 1], directions[[2, 8]] = False, False, False
    agreement = np.linspace(0.2, 0.9, 12)
    agreement[[2, 8]] = np.nan
    maps = {"forward": labels, "backward": labels, "result": labels}
    image = np.random.default_rng(0).normal(0, 1, labels.shape)
    return Strip("case", image, 1.5, maps, directions, agreement, ~directions.any(1), (5,), np.arange(1, 13))


def test_references_and_suggestions_are_shown_and_others_far_from_them(strip):
    assert chosen_places(strip, 3) == [2, 5, 8]
    assert chosen_places(strip, 4) == [2, 5, 8, 10]
    assert len(set(chosen_places(strip, 5))) == 5
    every = replace(strip, references=np.ones(12, bool), suggested=())
    assert chosen_places(every, 3) == [0, 5, 11]
    nothing = replace(
        strip,
        references=np.zeros(12, bool),
        suggested=(),
        labels=dict.fromkeys(strip.labels, 0 * strip.labels["result"]),
    )
    assert len(chosen_places(nothing, 4)) == 4
    assert len(chosen_places(strip, 30)) == 10  # as many as have labels


def test_what_is_drawn(strip, tmp_path, monkeypatch):
    drawn: list[Figure] = []
    monkeypatch.setattr("nnunet_ext.figures.propagation.save_figure", lambda figure, path: drawn.append(figure))
    draw_propagation(tmp_path / "a.png", strip, {1: "liver"})
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["liver", "label 2"]
    *slices, curve = drawn[0].axes
    places = chosen_places(strip)
    assert len(slices) == 3 * len(places)
    assert [axes.get_title() for axes in slices[: len(places)]] == [f"slice {place + 1}" for place in places]
    by_place = dict(zip(places, slices, strict=False))  # of the forward pass
    assert [text.get_text() for text in by_place[2].texts] == ["reference"]
    assert [text.get_text() for text in by_place[1].texts] == ["no pass"]
    assert not by_place[5].texts
    assert by_place[1].texts[0].get_bbox_patch().get_alpha() > 0.5  # legible on bright images, too
    frames = {place: by_place[place].spines["left"].get_edgecolor() for place in (2, 5, 10)}
    assert len(set(frames.values())) == 3
    assert len(by_place[5].collections) == 2  # an outline a label
    assert not by_place[2].collections
    both, one = (curve.lines[number].get_ydata() for number in (0, 1))
    np.testing.assert_array_equal(np.isfinite(both), strip.directions.all(1))
    np.testing.assert_array_equal(np.isfinite(one), strip.directions.any(1) & ~strip.directions.all(1))
    assert drawn[0].get_suptitle() == "case"
    assert 0 < curve.get_xlim()[0] < 1


def test_it_is_written_whatever_there_is(strip, tmp_path):
    empty = dict.fromkeys(strip.labels, np.zeros_like(strip.labels["result"]))
    alone = replace(
        strip,
        image=strip.image[:1],
        labels={name: labels[:1] for name, labels in empty.items()},
        directions=np.zeros((1, 2), bool),
        agreement=np.array([np.nan]),
        references=np.ones(1, bool),
        suggested=(),
        numbers=np.array([1]),
    )
    for number, one in enumerate((strip, replace(strip, labels=empty, suggested=()), alone)):
        draw_propagation(tmp_path / f"{number}.png", one)
        assert (tmp_path / f"{number}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("backwards", [False, True])
def test_slices_are_in_the_order_of_the_file(backwards):
    image = np.arange(6.0)[None, :, None, None] * np.ones((1, 6, 4, 5))
    labels = np.zeros((1, 4, 5), np.int16)
    labels[:, 1:3] = 1
    result = carried_unchanged([], image, {1: labels[0]}, torch.device("cpu"))
    result.directions[0, 0], result.directions[2:, 1] = False, False
    case = SparseCase(
        data=image,
        properties={"bbox_used_for_cropping": [[2, 8], [0, 4], [0, 5]]},
        true_spacing=None,
        target=[2.0, 1.0],
        case="case",
        file="case.nii.gz",
        given=GivenSlices(0, (3,), labels),
        voxels=None,
        numbers=SliceNumbers(9, 2, backwards),
    )
    strip = strip_of(case, image, result, number=1)
    assert strip.numbers.tolist() == ([2, 3, 4, 5, 6, 7] if backwards else [3, 4, 5, 6, 7, 8])
    reference = 4 if backwards else 1
    assert np.flatnonzero(strip.references).tolist() == [reference]
    assert strip.suggested == ((5,) if backwards else (0,))
    assert strip.image[reference, 0, 0] == 1
    assert strip.directions[:, 0].tolist() == [index > reference for index in range(6)]  # towards the last of the file
    assert strip.aspect == 2
    assert strip.title == "case: 1 annotated slice(s) of 9"


@pytest.mark.parametrize(
    ("direction", "rows", "columns"), [(np.eye(3), 1, 1), (np.diag([-1, 1, 1]), 1, -1), (np.diag([1, -1, 1]), -1, 1)]
)
def test_slices_are_looked_at_as_radiologists_do(direction, rows, columns):
    """ITK counts towards left and back, as a picture does that has right at its left and the front at its top."""
    image = np.arange(20.0).reshape(1, 1, 4, 5) * np.ones((1, 3, 1, 1))
    labels = np.zeros((1, 4, 5), np.int16)
    labels[:, 0, 0] = 1
    result = carried_unchanged([], image, {1: labels[0]}, torch.device("cpu"))
    properties = {"bbox_used_for_cropping": [[0, 3], [0, 4], [0, 5]]}
    properties["sitk_stuff"] = {"direction": direction.ravel().tolist()}
    about = {"true_spacing": None, "target": [1.0, 1.0], "case": "case", "file": "case.nii.gz", "voxels": None}
    given, numbers = GivenSlices(0, (1,), labels), SliceNumbers(3, 2)
    case = SparseCase(data=image, properties=properties, given=given, numbers=numbers, **about)
    strip = strip_of(case, image, result, number=1)
    np.testing.assert_array_equal(strip.image[0], image[0, 0, ::rows, ::columns])
    assert all(values[1, ::rows, ::columns][0, 0] == 1 for values in strip.labels.values())
    transposed = strip_of(case, image, result, (0, 2, 1), 1)
    np.testing.assert_array_equal(transposed.image[0], image[0, 0, ::columns, ::rows])
