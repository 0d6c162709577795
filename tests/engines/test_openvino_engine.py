import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "networks"))

import contract

from nnunet_ext.engines import converted
from nnunet_ext.engines.choice import available
from nnunet_ext.engines.engine import ConversionError, EngineChoice
from nnunet_ext.engines.make import make_engine
from nnunet_ext.engines.openvino_engine import OpenVinoEngine, _Queue
from nnunet_ext.model_sharing.both_networks import average_of

if not available("openvino"):
    pytest.skip("needs OpenVINO", allow_module_level=True)

CPU = torch.device("cpu")
WINDOW = (2, 16, 16)
STOCK = {
    "n_stages": 3,
    "features_per_stage": [4, 6, 8],
    "kernel_sizes": 3,
    "strides": [1, 2, 2],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "nonlin": nn.LeakyReLU,
    "nonlin_kwargs": {"inplace": True},
    "num_classes": 3,
}


@pytest.fixture(autouse=True)
def trials(monkeypatch, tmp_path):
    """Trials end well at once, and the user's cache is of this test."""
    monkeypatch.setattr(converted, "try_out", lambda *call: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.Conv2d(4, 3, 1)).eval()


def stock(kind, dimensions, seed=0):
    from dynamic_network_architectures.architectures import unet

    torch.manual_seed(seed)
    convolution, norm = (getattr(nn, f"{name}{dimensions}d") for name in ("Conv", "InstanceNorm"))
    blocks = "n_blocks_per_stage" if kind == "ResidualEncoderUNet" else "n_conv_per_stage"
    return getattr(unet, kind)(2, conv_op=convolution, norm_op=norm, **STOCK | {blocks: [1, 1, 1]}).eval()


def batches(*counts, window=WINDOW):
    made = torch.Generator().manual_seed(1)
    return [torch.randn(count, *window, generator=made) for count in counts]


def expected(one, windows):
    with torch.no_grad():
        return [one(window) for window in windows]


def near(found, wanted, precision="float32"):
    error = (found.float() - wanted).norm() / wanted.norm()
    return error < (1e-4 if precision == "float32" else 0.06)


KINDS = {
    "plain 2d": lambda: stock("PlainConvUNet", 2),
    "plain 3d": lambda: stock("PlainConvUNet", 3),
    "residual 2d": lambda: stock("ResidualEncoderUNet", 2),
    "residual 3d": lambda: stock("ResidualEncoderUNet", 3),
    "average of two kinds": lambda: average_of([stock("PlainConvUNet", 2), stock("ResidualEncoderUNet", 2)], False),
    "average of regions": lambda: average_of([stock("PlainConvUNet", 2), stock("PlainConvUNet", 2, seed=1)], True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_stock_networks_and_averages_give_what_torch_gives(kind):
    one = KINDS[kind]()
    window = (2, *[16] * (3 if "3d" in kind else 2))
    windows = batches(1, window=window)
    for precision in ("float32", "bfloat16"):
        (found,) = OpenVinoEngine(one, window, precision).run(windows)
        assert near(found, *expected(one, windows), precision)


@pytest.mark.parametrize(
    ("name", "dimensions", "more"),
    [
        ("nested", 3, {}),
        ("nested", 2, {"depth": 1}),  # as pruning leaves it
        ("enhanced plain", 3, {"ife_score": "curvature"}),
        ("enhanced residual", 2, {"ife_score": "curvature"}),
        ("reference", 2, {}),
        ("reference", 3, {}),
        ("deeplab", 2, {}),
    ],
)
def test_our_networks_give_what_torch_gives(name, dimensions, more):
    one = contract.build(name, dimensions, False, **more).eval()
    window = tuple(contract.image(name, dimensions, 1).shape[1:])
    windows = batches(1, window=window)
    (found,) = OpenVinoEngine(one, window, "float32").run(windows)
    assert near(found, *expected(one, windows))


def test_networks_apart_from_their_average_are_another_network():
    one = average_of([network(), network(seed=1)], False)
    windows = batches(1)
    for apart, channels in ((False, 3), (True, 9), (False, 3)):
        one.apart = apart
        (found,) = OpenVinoEngine(one, WINDOW, "float32").run(windows)
        assert found.shape[1] == channels
        assert near(found, *expected(one, windows))


def test_a_network_whose_operators_openvino_does_not_know_is_refused_by_their_names():
    one = contract.build("enhanced plain", 2, False, ife_score="entropy").eval()
    window = tuple(contract.image("enhanced plain", 2, 1).shape[1:])
    with pytest.raises(ConversionError, match="OpenVINO cannot convert the network: it knows no aten::"):
        make_engine(EngineChoice("openvino", "float32"), one, window, CPU)


@pytest.mark.parametrize("threads", [1, 2])
def test_batches_come_in_order_each_in_its_own_memory(threads):
    one, windows = network(), batches(1, 5, 1, 1, 2, 9, 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = list(make_engine(EngineChoice("openvino", "float32"), one, WINDOW, CPU).run(iter(windows)))
    finally:
        torch.set_num_threads(before)
    assert [len(own) for own in found] == [1, 5, 1, 1, 2, 9, 1]
    assert all(near(own, wanted) for own, wanted in zip(found, expected(one, windows), strict=True))
    assert len({own.data_ptr() for own in found}) == len(found)
    found[0] += 1  # may be changed in place


def test_no_more_than_the_next_batch_is_taken_ahead():
    taken = []

    def source():
        for number, window in enumerate(batches(1, 1, 1, 1)):
            taken.append(number)
            yield window

    for number, _ in enumerate(OpenVinoEngine(network(), WINDOW, "float32").run(source())):
        assert len(taken) == min(number + 2, 4)
    assert list(OpenVinoEngine(network(), WINDOW, "float32").run([])) == []


def test_windows_that_lie_otherwise_in_memory_are_the_same_to_it():
    one, (window,) = network(), batches(2)
    turned = window.transpose(2, 3).contiguous().transpose(2, 3)
    (found,) = OpenVinoEngine(one, WINDOW, "float32").run([turned])
    assert near(found, *expected(one, [window]))
    (found,) = OpenVinoEngine(one, WINDOW, "float32").run([window.double()])
    assert near(found, *expected(one, [window]))


def test_windows_that_nobody_holds_are_kept_while_they_are_read():
    one, sizes = network(), [3, 1, 2, 4, 1, 3, 2, 1] * 4
    kept = batches(*sizes)

    def source():
        for window in kept:
            yield window.clone()
            for size in sizes[:4]:  # takes the memory of what was freed
                torch.full((size, *WINDOW), 1e3)

    found = list(OpenVinoEngine(one, WINDOW, "float32").run(source()))
    assert all(near(own, wanted) for own, wanted in zip(found, expected(one, kept), strict=True))


def test_nothing_is_under_way_any_more_after_a_window_that_fails():
    ended = []

    class Request:
        def wait(self):
            ended.append(self)
            if len(ended) == 1:
                raise RuntimeError("out of memory")

    queue = _Queue(SimpleNamespace(output=lambda number: SimpleNamespace(shape=(1, 3, 16, 16))), 3)
    queue.under_way.extend((Request(), torch.zeros(1), torch.zeros(1)) for _ in range(3))
    queue.close()
    assert len(ended) == 3
    assert not queue.under_way


def test_a_run_that_is_given_up_leaves_the_engine_usable():
    one, windows = network(), batches(3, 3, 3)
    engine = OpenVinoEngine(one, WINDOW, "float32")
    run = engine.run(windows)
    next(run)
    run.close()
    assert all(near(own, wanted) for own, wanted in zip(engine.run(windows), expected(one, windows), strict=True))


def test_a_window_of_another_shape_is_refused():
    engine = OpenVinoEngine(network(), WINDOW, "float32")
    with pytest.raises(ValueError, match=r"windows must be \[2, 16, 16\] .C, \*P., got \[2, 16, 8\]"):
        list(engine.run([torch.zeros(1, 2, 16, 8)]))


def test_folds_take_turns(monkeypatch):
    folds, windows = [network(seed) for seed in range(3)], batches(1)
    states = [fold.state_dict() for fold in folds]
    before = network(seed=9)
    engine = OpenVinoEngine(before, WINDOW, "float32")
    models, model = [], engine.converted.model
    monkeypatch.setattr(engine.converted, "model", lambda *call: (models.append(call), model(*call))[1])
    assert near(*engine.run(windows), *expected(before, windows))
    for number in (0, 1, 2, 0, 1, 1, 2):
        engine.load(states[number])
        assert near(*engine.run(windows), *expected(folds[number], windows))
    assert len(models) == 3  # each fold once
    for _ in range(3):  # the same weights in an object of their own
        engine.load(folds[2].state_dict())
    assert near(*engine.run(windows), *expected(folds[2], windows))
    assert len(models) == 3


def test_the_network_stays_as_it_is():
    one = network().train()
    key = {name: value.clone() for name, value in one.state_dict().items()}
    with torch.inference_mode():
        engine = OpenVinoEngine(one, WINDOW, "float32")
        (found,) = engine.run(batches(1))
        found += 1
    assert one.training
    assert all(parameter.requires_grad for parameter in one.parameters())
    assert all(torch.equal(value, key[name]) for name, value in one.state_dict().items())
