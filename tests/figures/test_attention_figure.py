"""Attention coefficients of a case."""

import json

import pytest
import torch
from inference.tiny_model import make_nested_model, make_pair_model

from nnunet_ext.figures.attention import gate_maps, load_network
from nnunet_ext.training.checkpoints import SECOND_NETWORK


def test_gates_are_left_as_they_were_when_the_network_fails(tmp_path, monkeypatch):
    model = make_nested_model(tmp_path)
    plans, dataset_json = (json.loads((model.folder / f"{n}.json").read_text()) for n in ("plans", "dataset"))
    file = model.folder / "fold_0" / "checkpoint_final.pth"
    network, case_model = load_network(model.folder, plans, dataset_json, file)
    monkeypatch.setattr(type(network), "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gate_maps(network, case_model, (str(model.images / "a_0000.nii.gz"),), torch.device("cpu"))
    assert not any(gate._forward_hooks for gate in network.decoder.gates.values())


def test_of_a_pair_the_nested_network_is_drawn_whichever_it_is(tmp_path):
    model = make_pair_model(tmp_path)
    model.add("a", 1)
    plans, dataset_json = (json.loads((model.folder / f"{n}.json").read_text()) for n in ("plans", "dataset"))
    file = model.folder / "fold_0" / "checkpoint_final.pth"
    network, case_model = load_network(model.folder, plans, dataset_json, file)
    second = torch.load(file, weights_only=False)[SECOND_NETWORK]["network_weights"]
    assert all(torch.equal(value, second[name]) for name, value in network.state_dict().items())
    _, maps = gate_maps(network, case_model, (str(model.images / "a_0000.nii.gz"),), torch.device("cpu"))
    assert len(maps) == 1
