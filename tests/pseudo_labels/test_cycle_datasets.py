"""Names of the datasets of cycles: kept, chosen, and reserved by others."""

import json

import pytest
from data.tiny_dataset import set_environment

from nnunet_ext.pseudo_labels.cycle_datasets import choose_names, reserved_elsewhere
from nnunet_ext.pseudo_labels.dataset import Roots

NAME = "Dataset777_Tiny"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    return set_environment(monkeypatch, tmp_path)


def choose(tiny, number, first=None, before=(), reserved=()):
    others = dict.fromkeys(reserved, tiny.root / "other")
    return choose_names(NAME, number, first, before, others, Roots(tiny.root / "raw", tiny.root / "preprocessed"))


def add(tiny, name):
    (tiny.root / "raw" / name).mkdir()


def names(*numbers):
    return tuple(f"Dataset{number}_Tiny_pseudo" for number in numbers)


def test_the_first_free_ones(tiny):
    add(tiny, "Dataset779_Other")
    assert choose(tiny, 3, reserved={780}) == names(778, 781, 782)


def test_a_number_of_the_users(tiny):
    add(tiny, "Dataset915_Other")
    assert choose(tiny, 2, 914) == names(914, 916)
    with pytest.raises(FileExistsError, match="number 915"):
        choose(tiny, 2, 915)
    with pytest.raises(FileExistsError, match=r"914 is reserved by the self-training in .*other; name another with -o"):
        choose(tiny, 1, 914, reserved={914})


def test_names_of_before_stay(tiny):
    before = names(850, 851)
    for name in before:
        add(tiny, name)
    assert choose(tiny, 1, None, before) == before  # for the day on which more cycles are wanted again
    assert choose(tiny, 2, 850, before) == before
    add(tiny, "Dataset852_Other")
    assert choose(tiny, 3, None, before) == names(850, 851, 853)
    with pytest.raises(ValueError, match="-o is 900, but cycle 1 of this self-training is Dataset850"):
        choose(tiny, 2, 900, before)


def test_before_anything_is_made_the_user_may_choose_anew(tiny):
    assert choose(tiny, 2, 900, names(850, 851)) == names(900, 901)


def test_a_number_that_somebody_took_meanwhile_is_given_up(tiny):
    add(tiny, "Dataset850_Tiny_pseudo")
    add(tiny, "Dataset851_Other")
    assert choose(tiny, 2, None, names(850, 851)) == names(850, 852)


def test_no_numbers_are_left(tiny):
    with pytest.raises(ValueError, match="no free dataset number up to 999"):
        choose(tiny, 3, 998)


def test_reservations_of_others(tiny):
    own = tiny.results / NAME / "self_train"
    for folder, datasets in ((own, names(778)), (own.with_name("other"), names(779)), (tiny.results / "x", names(9))):
        folder.mkdir(parents=True)
        (folder / "self_train.json").write_text(json.dumps({"datasets": datasets}))
    broken = tiny.results / "Dataset001_A" / "self_train"
    broken.mkdir(parents=True)
    (broken / "self_train.json").write_text("{")
    assert reserved_elsewhere(tiny.results, own) == {779: own.with_name("other")}
