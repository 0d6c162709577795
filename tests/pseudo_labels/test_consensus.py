"""The consensus of networks against everything at full size in memory, for plans of all kinds."""

import copy

import numpy as np
import pytest
import torch
from inference.tiny_model import REGIONS
from pseudo_labels.panels import CPU, make_folds
from reference.naive_consensus import naive_consensus

from nnunet_ext.pseudo_labels.consensus import MemberFailedError, features_of, find_consensus
from nnunet_ext.pseudo_labels.members import find_members
from nnunet_ext.pseudo_labels.panel import Panel, prepare_for_all

pytestmark = pytest.mark.usefixtures("one_thread")

CUBIC = {"resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}}
TURNED = {"transpose_forward": [1, 2, 0], "transpose_backward": [2, 0, 1]}
KINDS = {
    "classes": [{}],
    "regions": [{"labels": REGIONS}],
    "2d": [{"configuration": "2d"}],
    "turned": [TURNED],
    "turned, thick slices": [TURNED],
    "cubic": [{"change": CUBIC}],
    "two plans": [{}, {"change": {"spacing": [2.5, 1.2, 1.6]}} | TURNED],
    "two plans, regions": [{"labels": REGIONS}, {"labels": REGIONS, "configuration": "2d"}],
    "two plans, one cubic": [{}, {"change": CUBIC | {"spacing": [2.5, 1.2, 1.6]}}],
}


def panel_of(root, kind, share=0.1):
    models = [
        make_folds(root / str(number), 1, share=share, **copy.deepcopy(arguments))
        for number, arguments in enumerate(KINDS[kind])
    ]
    members = find_members([model.folder for model in models])
    # thicker than three times the pixels: nnU-Net then takes the nearest slice
    spacing = (5.0, 1.0, 1.0) if "thick" in kind else (3.0, 1.0, 1.0)
    scan = models[0].add("a", 1, spacing, shape=(12, 18, 20))
    return Panel(members, CPU), (str(scan),)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_naive_version(tmp_path, kind):
    panel, images = panel_of(tmp_path, kind)
    assert len(panel.groups) == len(KINDS[kind])
    found = find_consensus(panel, prepare_for_all(images, panel.models), tmp_path, 0.6)
    mean, labels, maps = naive_consensus(panel.members, images)
    assert len(np.unique(labels)) > 2
    assert (found.labels != labels).mean() < 5e-4  # ties
    surest = np.maximum(mean, 1 - mean).min(0) if panel.labels.has_regions else mean.max(0)
    uncertain = surest < 0.6
    for one in maps:
        uncertain |= one != labels
    assert 0.01 < uncertain.mean() < 0.9
    assert (found.uncertain != uncertain).mean() < 1e-3
    for name, score in found.agreement.class_scores().items():
        region = np.atleast_1d(panel.classes.regions[name])
        dice = [
            2
            * np.sum(np.isin(one, region) & np.isin(labels, region))
            / (np.isin(one, region).sum() + np.isin(labels, region).sum())
            for one in maps
        ]
        assert score == pytest.approx(np.mean(dice), abs=1e-3)
    differs = sum((one != found.labels).sum((1, 2)) for one in maps)
    assert differs[found.worst.index] >= 0.9 * differs.max()
    np.testing.assert_array_equal(found.worst.consensus, found.labels[found.worst.index])
    assert found.worst.members.shape == (len(maps), *labels.shape[1:])
    assert list(tmp_path.glob("tmp*")) == []  # intermediate files have no names


@pytest.mark.parametrize("kind", ["classes", "regions"])
def test_networks_that_are_alike_agree_about_every_voxel(tmp_path, kind):
    panel, images = panel_of(tmp_path, kind, share=0.0)
    found = find_consensus(panel, prepare_for_all(images, panel.models), tmp_path)
    assert set(found.agreement.class_scores().values()) == {1.0}
    assert not found.uncertain.any()


def test_a_network_that_fails_is_named(tmp_path, monkeypatch):
    panel, images = panel_of(tmp_path, "classes")
    prepared = prepare_for_all(images, panel.models)
    second = panel.groups[0].seats[1]
    monkeypatch.setitem(second.weights, "decoder.seg_layers.0.bias", torch.zeros(9))
    with pytest.raises(MemberFailedError, match=r"(?s)model fold 1 cannot predict it: .*size mismatch"):
        find_consensus(panel, prepared, tmp_path)


def test_features_are_of_the_scan_and_not_of_the_grid(tmp_path):
    panel, images = panel_of(tmp_path, "turned")
    features = features_of(prepare_for_all(images, panel.models)[0], panel.groups[0].model)
    assert features["spacing_mm"] == pytest.approx([3.0, 1.0, 1.0])
    assert features["size_mm"] == pytest.approx([36.0, 18.0, 20.0])
    assert np.all(np.diff(features["percentiles"]) > 0)
