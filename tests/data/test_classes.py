"""Which classes, or regions, are told apart."""

from data.tiny_dataset import make_plans

from nnunet_ext.data.classes import Classes, classes_of


def test_classes_are_nnunets():
    labels = {"background": 0, "liver": 1, "spleen": 2, "ignore": 3}
    assert classes_of(make_plans(), {"labels": labels}) == Classes({"liver": 1, "spleen": 2}, 3)
    regions = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    found = classes_of(make_plans(), {"labels": regions, "regions_class_order": [1, 2]})
    assert found == Classes({"whole": (1, 2), "core": 2}, 3)
