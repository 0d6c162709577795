"""What probabilities come to, and which labels no consensus is defined for."""

import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ext.inference.comparison import decide, why_not_compared


def test_decisions_of_classes_and_regions():
    classes = torch.tensor([[0.5, 0.2, 0.9], [0.5, 0.8, 0.1]])
    assert decide(classes, regions=False).tolist() == [0, 1, 0]
    assert decide(classes, False, 0.85).tolist() == [-1, -2, 0]
    regions = torch.tensor([[0.9, 0.51, 0.2], [0.1, 0.95, 0.6]])
    assert decide(regions, regions=True).tolist() == [1, 3, 2]
    assert decide(regions, True, 0.7).tolist() == [1, -4, -3]


class Own(LabelManager):
    """A label manager of somebody else."""


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (LabelManager({"background": 0, "a": 1}, None), None),
        (Own({"background": 0, "a": 1}, None), "the plans have a label manager of their own (Own)"),
        (
            LabelManager({"background": 0, **{str(n): [n, n + 1] for n in range(1, 64)}}, list(range(1, 64))),
            "there are 63 regions, expected 62 at most",
        ),
    ],
    ids=["classes", "somebody else's", "many regions"],
)
def test_labels_without_a_consensus(labels, reason):
    assert why_not_compared(labels) == reason
