"""Enhanced stages of a case."""

import json

import pytest
import torch
from inference.tiny_model import make_enhanced_model

from nnunet_ext.figures.enhancement import enhanced_stages, load_network


def test_enhancements_are_left_as_they_were_when_the_network_fails(tmp_path, monkeypatch):
    model = make_enhanced_model(tmp_path)
    plans, dataset_json = (json.loads((model.folder / f"{n}.json").read_text()) for n in ("plans", "dataset"))
    file = model.folder / "fold_0" / "checkpoint_final.pth"
    network, case_model = load_network(model.folder, plans, dataset_json, file)
    monkeypatch.setattr(type(network), "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        enhanced_stages(network, case_model, (str(model.images / "case_0000.nii.gz"),), torch.device("cpu"))
    assert not any(module._forward_hooks for module in network.enhancements.values())
