"""Classes that plans name."""

import json
import sys

import pytest
from data.tiny_dataset import architecture

from nnunet_ext.training.architecture import ENHANCED, NESTED, build
from nnunet_ext.training.trusted_classes import check_classes, trusting


@pytest.mark.parametrize("network", [*ENHANCED, NESTED, "dynamic_network_architectures.moved.PlainConvUNet"])
def test_networks_and_layers_of_nnunet_and_ours_are_fine(network):
    check_classes(architecture(3, 2) | {"network_class_name": network})


def test_functions_of_torch_are_layers_too():
    content = architecture(3, 2)
    content["arch_kwargs"]["nonlin"] = "torch.nn.functional.leaky_relu"
    check_classes(content)


@pytest.mark.parametrize("key", ["network_class_name", "conv_op", "norm_op", "dropout_op", "nonlin"])
@pytest.mark.parametrize(
    "name",
    [
        "subprocess.Popen",
        "os.system",
        "torch.nn",
        "torch.nnx.ReLU",
        "torch.hub.load",
        "torch.load",
        "torch.nn.functional.importlib.import_module",  # what a module of torch imports
        "torch.nn.functional.warnings.sys",
        "torch.nn.Parameter",
        "torch.nn.nothing",
        "dynamic_network_architectures.building_blocks.residual.np.save",
        7,
    ],
)
def test_anything_else_is_refused_by_name(key, name):
    content = architecture(3, 2)
    (content if key == "network_class_name" else content["arch_kwargs"])[key] = name
    with pytest.raises(ValueError, match=rf"the plans name .* as {key}, expected a network or a layer of torch\.nn, "):
        check_classes(content)


def test_nothing_is_imported_of_what_is_refused(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Act: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    content = architecture(3, 2)
    content["arch_kwargs"]["nonlin"] = "evil_module.Act"
    with pytest.raises(ValueError, match=r"'evil_module\.Act' as nonlin.* set nnUNet_ext_trust_weights=1"):
        build(content, 1, 2, False)
    assert not (tmp_path / "ran").exists()
    assert "evil_module" not in sys.modules


def test_whoever_is_trusted_may_name_anything(monkeypatch):
    content = architecture(3, 2)
    content["arch_kwargs"]["nonlin"] = "collections.OrderedDict"
    with trusting():
        check_classes(content)
    with trusting(False), pytest.raises(ValueError, match="as nonlin"):
        check_classes(content)
    monkeypatch.setenv("nnUNet_ext_trust_weights", "1")
    check_classes(json.loads(json.dumps(content)))
