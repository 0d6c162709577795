import copy

import pytest
import torch
from torch import nn

from nnunet_ext.engines import torch_engine
from nnunet_ext.engines.engine import ConversionError, EngineChoice
from nnunet_ext.engines.make import make_engine
from nnunet_ext.engines.torch_engine import TorchEngine
from nnunet_ext.networks import ReferenceInput

CPU = torch.device("cpu")
WINDOW = (1, 8, 8)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.InstanceNorm2d(2), nn.Conv2d(2, 3, 1)).eval()


def batches(*counts):
    made = torch.Generator().manual_seed(1)
    return [torch.randn(count, *WINDOW, generator=made) for count in counts]


@pytest.fixture
def compiler(monkeypatch):
    """Stands for torch's compiler; the shapes, types and layouts that it was called with."""
    seen = []

    def compile_it(network, dynamic):
        def call(windows):
            seen.append(windows)
            return network(windows)

        return call

    monkeypatch.setattr(torch, "compile", compile_it)
    return seen


def test_float32_on_a_cpu_is_the_network_bit_for_bit():
    one, windows = network(), batches(1, 3, 2)
    found = list(make_engine(EngineChoice("torch", "float32"), one, WINDOW, CPU).run(windows))
    with torch.no_grad():
        assert all(torch.equal(own, one(window)) for own, window in zip(found, windows, strict=True))
    assert not found[0].requires_grad
    found[0] += 1  # may be changed in place


def test_bfloat16_on_a_cpu_is_autocast():
    one, (window,) = network(), batches(2)
    (found,) = TorchEngine(one, CPU, "bfloat16").run([window])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found, one(window))
    assert found.dtype == torch.bfloat16


def test_nothing_is_switched_on_around_whoever_takes_the_results():
    for _ in TorchEngine(network(), CPU, "bfloat16").run(batches(1, 1)):
        assert torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")


def test_a_network_is_not_copied_unless_it_is_compiled(compiler):
    one, (window,) = network(), batches(1)
    engine, compiled = TorchEngine(one, CPU, "float32"), TorchEngine(one, CPU, "float32", compiled=True)
    before = one(window).detach()
    one.load_state_dict(network(seed=1).state_dict())
    assert torch.equal(*engine.run([window]), one(window))
    assert torch.equal(*compiled.run([window]), before)
    compiled.load(one.state_dict())
    assert torch.equal(*compiled.run([window]), one(window))


def test_new_weights_go_into_the_compiled_network_and_not_into_the_given_one(compiler):
    one, (window,) = network(), batches(1)
    before = copy.deepcopy(one.state_dict())
    engine = TorchEngine(one, CPU, "float32", compiled=True)
    engine.load(network(seed=1).state_dict())
    assert torch.equal(*engine.run([window]), network(seed=1)(window))
    assert all(torch.equal(value, before[key]) for key, value in one.state_dict().items())


def test_fewer_windows_than_a_network_is_compiled_for_are_filled_up(compiler):
    one, windows = network(), batches(4, 3, 1, 5, 5, 4)
    found = list(TorchEngine(one, CPU, "float32", compiled=True).run(windows))
    assert [len(call) for call in compiler] == [4, 4, 4, 5, 5, 4]
    assert [len(own) for own in found] == [4, 3, 1, 5, 5, 4]
    assert all(torch.allclose(own, one(window), atol=1e-6) for own, window in zip(found, windows, strict=True))


def test_inference_mode_makes_no_other_code(compiler):
    one = network()
    with torch.inference_mode():
        engine = TorchEngine(one, CPU, "float32", compiled=True)
        (found,) = engine.run(batches(2))
        found += 1
    assert not any(parameter.is_inference() for parameter in engine.network.parameters())
    assert not compiler[0].is_inference()
    assert all(parameter.requires_grad for parameter in one.parameters())


def test_a_compiler_that_fails_is_said(monkeypatch):
    def fail(windows):
        raise RuntimeError("\n  no g++ here\nmore of it")

    monkeypatch.setattr(torch, "compile", lambda network, dynamic: fail)
    with pytest.raises(ConversionError, match=r"^torch cannot compile the network .no g\+\+ here.$"):
        make_engine(EngineChoice("compile", "float32"), network(), WINDOW, CPU)


def test_memory_that_runs_out_is_no_fault_of_the_compiler(monkeypatch):
    def fail(windows):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", lambda network, dynamic: fail)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        make_engine(EngineChoice("compile", "float32"), network(), WINDOW, CPU)


def test_a_network_that_is_compiled_already_is_compiled_anew(compiler):
    one = network()
    engine = TorchEngine(torch._dynamo.OptimizedModule(one, torch._dynamo.optimize("eager")), CPU, "float32", True)
    assert type(engine.network) is nn.Sequential
    assert engine.network is not one


def test_hounsfield_units_are_kept_in_float32():
    assert torch_engine._needs_float32_input(nn.Sequential(ReferenceInput(1, [(-150, 250)], [0])))
    assert not torch_engine._needs_float32_input(network())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_torch_compiles_on_a_cpu(precision):
    one, windows = network(), batches(2, 1)
    engine = make_engine(EngineChoice("compile", precision), one, WINDOW, CPU, batch=2)
    for found, window in zip(engine.run(windows), windows, strict=True):
        assert torch.allclose(found.float(), one(window), atol=1e-5 if precision == "float32" else 0.1)


@pytest.mark.gpu
class TestOnAGpu:
    device = torch.device("cuda")

    def test_float16_is_what_nnunet_does(self):
        one, window = network().to(self.device), batches(2)[0].to(self.device)
        (found,) = TorchEngine(one, self.device, "float16").run([window])
        with torch.no_grad(), torch.autocast("cuda"):
            assert torch.equal(found, one(window))

    def test_float32_is_float32_within_autocast_of_others(self):
        one, window = network().to(self.device), batches(2)[0].to(self.device)
        with torch.autocast("cuda"):
            (found,) = TorchEngine(one, self.device, "float32").run([window])
        assert found.dtype == torch.float32

    @pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
    def test_a_compiled_network_is_near_the_network(self, precision):
        one, window = network().to(self.device), batches(2)[0].to(self.device)
        engine = make_engine(EngineChoice("compile", precision), one, WINDOW, self.device, batch=2)
        with torch.no_grad(), torch.autocast("cuda"):
            (found,) = engine.run([window])
        assert torch.allclose(found.float(), one(window), atol=0.05)
        assert next(one.parameters()).dtype == torch.float32
        engine.load(network(seed=1).state_dict())
        (found,) = engine.run([window])
        assert torch.allclose(found.float(), network(seed=1).to(self.device)(window), atol=0.05)
