"""Deep supervision weights and the CPS criterion over scales."""

from types import SimpleNamespace

import pytest
import torch

from nnunet_ext.losses import cross_pseudo_loss
from nnunet_ext.training import criteria
from nnunet_ext.training.criteria import CrossPseudoCriterion, deep_supervision_weights, resize_mask


def test_weights_are_nnunets():
    assert deep_supervision_weights(4) == pytest.approx((4 / 7, 2 / 7, 1 / 7, 0))
    assert deep_supervision_weights(1) == (1.0,)
    assert deep_supervision_weights(3, lowest=1e-6)[-1] == pytest.approx(1e-6 / (1.5 + 1e-6))


def test_weighted_sum_over_scales_with_resized_mask():
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(1, 3, s, s, generator=generator) for s in (8, 4, 2)]
    labels = [torch.randint(0, 3, (1, 1, s, s), generator=generator) for s in (8, 4, 2)]
    mask = torch.ones(1, 1, 8, 8)
    mask[..., :4, :] = 0
    criterion = CrossPseudoCriterion((2 / 3, 1 / 3, 0.0), regions=False, batch_dice=False, ddp=False)
    small = torch.ones(1, 1, 4, 4)
    small[..., :2, :] = 0
    expected = 2 / 3 * cross_pseudo_loss(outputs[0], labels[0], mask)
    expected = expected + 1 / 3 * cross_pseudo_loss(outputs[1], labels[1], small)
    torch.testing.assert_close(criterion(outputs, labels, mask), expected)


def test_mask_is_resized_like_nnunets_targets():
    from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform

    mask = (torch.rand(1, 1, 10, 7, 6, generator=torch.Generator().manual_seed(0)) > 0.5).to(torch.uint8)
    stock = DownsampleSegForDSTransform([[0.5, 0.5, 0.5]])._apply_to_segmentation(mask[0])[0]
    assert torch.equal(resize_mask(mask, stock.shape[1:])[0].to(torch.uint8), stock)
    assert resize_mask(None, (1, 1)) is None


def test_all_weights_zero_is_an_error():
    criterion = CrossPseudoCriterion((0.0,), regions=False, batch_dice=False, ddp=False)
    with pytest.raises(ValueError, match="at least one deep supervision weight"):
        criterion([torch.zeros(1, 2, 2, 2)], [torch.zeros(1, 1, 2, 2)], None)


@pytest.mark.parametrize(
    ("ddp", "compiles", "least", "compiles_losses"),
    [(False, False, 0.0, False), (False, True, 0.0, True), (True, False, 1e-6, False), (True, True, 0.0, False)],
)
def test_ddp_and_compilation_are_decided_in_one_place(ddp, compiles, least, compiles_losses):
    trainer = SimpleNamespace(is_ddp=ddp, _do_i_compile=lambda: compiles)
    assert criteria.least_weight(trainer) == least
    assert criteria.compiles_losses(trainer) is compiles_losses
    loss = torch.nn.MSELoss()
    assert criteria.compiled(trainer, loss) is loss
    assert (loss._compiled_call_impl is not None) is compiles_losses
    assert (criteria.sum_over_processes(ddp) is not None) is ddp
