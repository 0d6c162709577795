import pytest
from data.tiny_dataset import TinyDataset

from nnunet_ext.data.splits import hidden_cases, hidden_cases_of_fold, load_splits


def test_no_file_and_no_list_hide_nothing(tiny: TinyDataset):
    assert load_splits(tiny.preprocessed) == []
    assert hidden_cases(tiny.preprocessed) == []
    assert hidden_cases_of_fold(tiny.preprocessed, "all") == []
    tiny.write_splits({"train": ["a"], "val": ["b"]})
    assert hidden_cases(tiny.preprocessed) == []
    for fold in (0, 7, "all"):
        assert hidden_cases_of_fold(tiny.preprocessed, fold) == []


def test_third_list(tiny: TinyDataset):
    tiny.write_splits(
        {"train": ["a"], "val": ["b"], "unlabeled": ["d", "c"]},
        {"train": ["b"], "val": ["a"], "unlabeled": ["e", "c"]},
        {"train": ["a"], "val": ["b"]},
    )
    assert hidden_cases_of_fold(tiny.preprocessed, 0) == ["c", "d"]
    assert hidden_cases_of_fold(tiny.preprocessed, 1) == ["c", "e"]
    assert hidden_cases_of_fold(tiny.preprocessed, 2) == []
    assert hidden_cases(tiny.preprocessed) == ["c", "d", "e"]


@pytest.mark.parametrize(
    ("lists", "names"),
    [
        ({"train": ["a", "c"], "val": ["b"], "unlabeled": ["c"]}, r"\['c'\] is in 'train' and in 'unlabeled'"),
        ({"train": ["a"], "val": ["b", "c"], "unlabeled": ["c"]}, r"\['c'\] is in 'val' and in 'unlabeled'"),
        ({"train": ["a", "b"], "val": ["b"], "unlabeled": ["c"]}, r"\['b'\] is in 'train' and in 'val'"),
    ],
)
def test_lists_that_overlap(tiny: TinyDataset, lists, names):
    tiny.write_splits({"train": ["a"], "val": ["b"], "unlabeled": ["c"]}, lists)
    assert hidden_cases_of_fold(tiny.preprocessed, 0) == ["c"]
    with pytest.raises(ValueError, match=f"splits_final.json, fold 1: {names}; the three lists must be disjoint"):
        hidden_cases_of_fold(tiny.preprocessed, 1)


@pytest.mark.parametrize("fold", ["all", 2, 5])
def test_a_fold_without_a_split_of_its_own(tiny: TinyDataset, fold):
    tiny.write_splits({"train": ["a"], "val": ["b"], "unlabeled": ["c"]}, {"train": ["b"], "val": ["a"]})
    with pytest.raises(ValueError, match=rf"fold {fold} has no split of its own .* Choose a fold from 0 to 1"):
        hidden_cases_of_fold(tiny.preprocessed, fold)
