"""Which networks are asked, and what is refused before any is loaded."""

import json
import os

import pytest
import torch
from pseudo_labels.panels import add_folds, add_network, copy_model, make_folds, read_checkpoint, write_checkpoint

from nnunet_ext.pseudo_labels.members import find_members, members_digest
from nnunet_ext.training.checkpoints import SECOND_NETWORK, TEACHING


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    return make_folds(tmp_path_factory.mktemp("folds"), 1, 2)


@pytest.fixture
def single(tmp_path):
    return make_folds(tmp_path)


def change(model, file, **content):
    path = model.folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | content))


def test_each_fold_is_one(folds):
    assert [member.fold for member in find_members([folds.folder])] == [0, 1, 2]
    assert [member.fold for member in find_members([folds.folder], [2, 0])] == [2, 0]


def test_the_folder_of_a_fold_stands_for_it(folds):
    named = [folds.folder / "fold_2", folds.folder / "fold_0"]
    assert [member.fold for member in find_members(named)] == [2, 0]
    assert [member.fold for member in find_members(named, [1])] == [2, 0]  # -f is for models that are named whole
    assert find_members(named)[0].model == folds.folder
    with pytest.raises(FileNotFoundError, match=r"has no fold_3/checkpoint_final\.pth"):
        find_members([folds.folder / "fold_3"])


@pytest.mark.parametrize(
    ("key", "names"), [(SECOND_NETWORK, ["1", "2"]), (TEACHING, ["teacher", "student"])], ids=["CPS", "mean teacher"]
)
def test_both_networks_of_a_checkpoint(single, key, names):
    members = find_members([add_network(single, key).folder])
    assert [member.network for member in members] == names
    content = read_checkpoint(single)
    second = content[key]["network_weights"] if key == SECOND_NETWORK else content[key]["student"]
    for member, expected in zip(members, (content["network_weights"], second), strict=True):
        assert all(torch.equal(value, expected[name]) for name, value in member.weights().items())
    assert members[0].sha256 == members[1].sha256


def test_one_network_cannot_agree(single):
    with pytest.raises(ValueError, match=r"two networks or more, got one \(.*model fold 0\): train another fold .*CPS"):
        find_members([single.folder])


def test_the_same_network_twice_is_refused(folds, tmp_path):
    copied = copy_model(folds, tmp_path / "copied")
    with pytest.raises(ValueError, match=r"copied fold 1 is the very same network as .*model fold 1"):
        find_members([folds.folder, copied.folder], [1])


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({"labels": {"background": 0, "one": 1, "two": 3, "three": 2}}, "differ in label 'two': 2 and 3"),
        ({"labels": {"background": 0, "one": 1, "two": 2, "four": 3}}, "differ in label 'three': 3 and 'missing'"),
        ({"channel_names": {"0": "MRI"}}, r"differ in channel_names: \['CT'\] and \['MRI'\]"),
        ({"file_ending": ".nrrd"}, "differ in file_ending: '.nii.gz' and '.nrrd'"),
    ],
)
def test_models_of_other_questions_are_refused(folds, tmp_path, content, error):
    other = copy_model(folds, tmp_path / "other")
    change(other, "dataset.json", **content)
    with pytest.raises(ValueError, match=f"{error}; networks can only agree"):
        find_members([folds.folder, other.folder])


def test_regions_in_another_order_are_other_channels(folds, tmp_path):
    regions = {"background": 0, "whole": [1, 2, 3], "core": [2, 3]}
    one, other = (copy_model(folds, tmp_path / name) for name in ("one", "other"))
    change(one, "dataset.json", labels=regions, regions_class_order=[1, 2])
    change(other, "dataset.json", labels=dict(sorted(regions.items())), regions_class_order=[1, 2])
    with pytest.raises(ValueError, match="differ in order of the regions: .*'whole', 'core'.* and .*'core', 'whole'"):
        find_members([one.folder, other.folder])


def test_an_ignored_label_makes_no_difference(folds, tmp_path):
    other = make_folds(tmp_path, 3, share=0.2)
    change(other, "dataset.json", labels={"background": 0, "one": 1, "two": 2, "three": 3, "ignore": 4})
    (other.folder / "fold_0" / "checkpoint_final.pth").unlink()  # the same as that of the first model
    assert [member.fold for member in find_members([folds.folder, other.folder])] == [0, 1, 2, 3]


def test_a_later_stage_of_a_cascade_is_refused(single):
    plans = json.loads((single.folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    (single.folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ValueError, match="is of 3d_fullres, which needs predictions of 3d_lowres"):
        find_members([single.folder])


def test_folds_of_several_configurations_are_refused(single):
    add_folds(single, 1)
    write_checkpoint(single, read_checkpoint(single) | {"init_args": {"configuration": "2d"}}, 1)
    with pytest.raises(ValueError, match=r"folds of several configurations \(2d, 3d_fullres\)"):
        find_members([single.folder])


class Code:
    def __reduce__(self):
        return os.system, ("true",)


def test_code_in_a_checkpoint_is_not_run(single):
    write_checkpoint(single, read_checkpoint(single) | {"more": Code()}, 1)
    with pytest.raises(ValueError, match="fold_1/checkpoint_final.pth cannot be loaded as a checkpoint of weights"):
        find_members([single.folder])
    assert len(find_members([single.folder], trusted=True)) == 2


def test_a_fold_that_is_missing_is_named(folds):
    with pytest.raises(FileNotFoundError, match=r"has no fold_7/checkpoint_final.pth; it has the folds \[0, 1, 2\]"):
        find_members([folds.folder], [0, 7])


def test_the_digest_is_that_of_the_networks(folds, tmp_path):
    members = find_members([folds.folder])
    copied = find_members([copy_model(folds, tmp_path / "elsewhere").folder])
    assert members_digest(members) == members_digest(copied) == members_digest(members[::-1])
    assert members_digest(members) != members_digest(members[:2])
    corrected = copy_model(folds, tmp_path / "corrected")
    change(corrected, "dataset.json", labels={"background": 0, "one": 1, "two": 3, "three": 2})
    assert members_digest(members) != members_digest(find_members([corrected.folder]))
