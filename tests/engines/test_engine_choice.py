import importlib.util

import pytest
import torch

from nnunet_ext.engines import choice
from nnunet_ext.engines.choice import available, break_even, check, choose
from nnunet_ext.engines.engine import EngineChoice

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A CPU with bfloat16 units, a GPU, and OpenVINO; whatever this machine has."""
    monkeypatch.setattr(choice, "cpu_has_bf16_units", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(choice.platform, "machine", lambda: "x86_64")


@pytest.fixture
def without_openvino(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def without_units(monkeypatch):
    monkeypatch.setattr(choice, "cpu_has_bf16_units", lambda: False)


@pytest.mark.parametrize("engine", ["torch", "compile", "openvino"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_asked_for_is_chosen(engine, precision):
    assert choose(engine, precision, CPU, 1) == EngineChoice(engine, precision, "as asked for")


@pytest.mark.parametrize(("device", "precision"), [(CPU, "float32"), (CUDA, "float16"), (MPS, "float32")])
@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_the_precision_is_that_of_nnunet_unless_asked_for(device, precision, engine):
    assert choose(engine, None, device, 10**6).precision == precision


@pytest.mark.parametrize(("device", "faster"), [(CPU, "openvino"), (CUDA, "compile")])
def test_auto_takes_the_faster_engine_from_its_break_even_on(device, faster):
    few = break_even(faster) - 1
    assert choose("auto", None, device, few).engine == "torch"
    assert str(few) in choose("auto", None, device, few).reason
    assert choose("auto", None, device, few + 1).engine == faster


def test_slow_windows_pay_the_start_earlier():
    # 8 s and 4 windows of start, 0.4 of each second saved
    assert break_even("openvino", 1.0) == (8 + 4) / 0.4 + 1
    assert choose("auto", None, CPU, 31, 1.0).engine == "openvino"
    assert choose("auto", None, CPU, 31, 0.1).engine == "torch"
    assert break_even("openvino", 1000.0) == 4 / 0.4 + 1  # however slow, it is run a few times before it is used
    assert break_even("openvino", 0.0) > 10**6


@pytest.mark.usefixtures("without_openvino")
def test_auto_without_openvino_is_torch_and_says_how_to_install_it():
    found = choose("auto", None, CPU, 10**6)
    assert found.engine == "torch"
    assert "pip install nnunetv2-ext[openvino]" in found.reason


@pytest.mark.parametrize(("machine_name", "capability"), [("arm64", "DEFAULT"), ("x86_64", "DEFAULT")])
def test_auto_is_torch_on_cpus_that_were_not_measured(monkeypatch, machine_name, capability):
    monkeypatch.setattr(choice.platform, "machine", lambda: machine_name)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert choose("auto", None, CPU, 10**6).engine == "torch"
    assert choose("openvino", None, CPU, 10**6).engine == "openvino"


def test_auto_is_torch_on_other_devices():
    assert choose("auto", None, MPS, 10**6).describe() == "torch, float32"


def test_an_engine_that_is_not_installed_is_refused_with_the_line_that_installs_it(without_openvino):
    assert not available("openvino")
    with pytest.raises(ValueError, match=r"OpenVINO, which is not installed; pip install nnunetv2-ext\[openvino\]"):
        check("openvino", None, CPU)
    check("torch", None, CPU)


@pytest.mark.parametrize(
    ("engine", "precision", "device", "message"),
    [
        ("tensorrt", None, CPU, "engine must be one of auto, torch, compile, openvino, got 'tensorrt'"),
        ("auto", "int8", CPU, "precision must be one of float32, bfloat16, float16, got 'int8'"),
        ("openvino", None, CUDA, "engine openvino runs on CPUs, and the device is cuda"),
        ("compile", None, MPS, "engine compile runs on CPUs and CUDA devices, not on mps"),
        ("auto", "float16", CPU, "this CPU has no units for float16 .*; it has float32, bfloat16$"),
        ("torch", "float16", MPS, "the device mps has no units for float16 .*; it has float32$"),
    ],
)
def test_what_cannot_be_had_is_refused(engine, precision, device, message):
    with pytest.raises(ValueError, match=message):
        choose(engine, precision, device, 1)


@pytest.mark.parametrize("engine", ["auto", "torch", "openvino"])
@pytest.mark.usefixtures("without_units")
def test_a_cpu_without_units_for_bfloat16_refuses_it(engine):
    with pytest.raises(ValueError, match="this CPU has no units for bfloat16 .*; it has float32$"):
        check(engine, "bfloat16", CPU)


def test_a_gpu_without_units_for_bfloat16_refuses_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(ValueError, match="this GPU has no units for bfloat16 .*; it has float32, float16$"):
        check("torch", "bfloat16", CUDA)
