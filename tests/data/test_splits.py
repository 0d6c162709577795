import pytest
from data.tiny_dataset import TinyDataset

from nnunet_ext.data.splits import check_splits, hidden_cases, hidden_cases_of_fold, load_splits


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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[{", r"splits_final.json is no JSON \(line 1, column 3: .*\); write it as"),
        ('{"train": []}', r"splits_final.json holds \{'train': \[\]\}, expected a list"),
        ("[5]", "splits_final.json, fold 0: got 5, expected an object with lists; write it as"),
        ('[{"train": "a", "val": []}]', "fold 0: 'train' is 'a', expected a list of names"),
        ('[{"train": ["a"], "val": [3]}]', r"fold 0: 'val' is \[3\], expected a list of names"),
    ],
)
def test_a_file_that_is_no_list_of_splits(tiny: TinyDataset, text, reason):
    (tiny.preprocessed / "splits_final.json").write_text(text)
    for use in (load_splits, hidden_cases, lambda folder: check_splits(folder, 0, ["a"])):
        with pytest.raises(ValueError, match=reason):
            use(tiny.preprocessed)


@pytest.mark.parametrize(
    ("split", "reason"),
    [
        ({"train": [], "val": ["b"]}, "fold 1: the list 'train' is empty, so there is no case to train on; add"),
        ({"val": ["b"]}, "fold 1: the list 'train' is missing, so there is no case to train on; add"),
        ({"train": ["a"], "val": []}, "fold 1: the list 'val' is empty, so there is no case to validate with; add"),
        ({"train": ["a", "x"], "val": ["b"]}, "fold 1: 'train' names x, not among the 2 preprocessed .*; correct"),
        ({"train": ["a"], "val": list("tuvwxyz")}, "'val' names t, u, v, w, x and 2 more, not among the 2"),
    ],
)
def test_a_split_that_cannot_be_trained_with(tiny: TinyDataset, split, reason):
    tiny.write_splits({"train": ["a"], "val": ["b"]}, split)
    check_splits(tiny.preprocessed, 0, ["a", "b"])
    with pytest.raises(ValueError, match=f"splits_final.json.*{reason}"):
        check_splits(tiny.preprocessed, 1, ["a", "b"])


def test_folds_for_which_nnunet_draws_are_not_checked(tiny: TinyDataset):
    check_splits(tiny.preprocessed, 0, ["a", "b"])
    tiny.write_splits({"train": [], "val": []})
    for fold in ("all", 1):
        check_splits(tiny.preprocessed, fold, ["a", "b"])
