"""Pretrained weights for enhanced networks."""

from pathlib import Path

import pytest
import torch
from data.tiny_dataset import make_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.trainers.ife import IFECurvaturePart
from nnunet_ext.training.architecture import build
from nnunet_ext.training.enhancement import enhanced_architecture, widened_weights


class RunsCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_pretrained_weights_with_code_are_refused_and_not_run(tmp_path):
    settings = type("Settings", (IFECurvaturePart,), {"ife_stages": (0,), "ife_ratios": (0.5,)})
    configuration = PlansManager(make_plans()).get_configuration("3d_fullres")
    plain = build(configuration.configuration["architecture"], 1, 2, False).state_dict()
    network = build(enhanced_architecture(settings, configuration), 1, 2, False)
    torch.save({"network_weights": plain, "logging": RunsCode(tmp_path / "ran")}, tmp_path / "w.pth")
    message = r"w\.pth cannot be loaded .* if you trust whoever made it, set nnUNet_ext_trust_weights=1$"
    with pytest.raises(ValueError, match=message), widened_weights([network], str(tmp_path / "w.pth")):
        pass
    assert not (tmp_path / "ran").exists()
    torch.save({"network_weights": plain}, tmp_path / "w.pth")
    with widened_weights([network], str(tmp_path / "w.pth")) as (file, names):
        assert names
        assert torch.load(file, weights_only=True)["network_weights"].keys() == network.state_dict().keys()
