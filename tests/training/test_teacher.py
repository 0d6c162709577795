"""The running mean of a network."""

import copy
import math

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_ext.training.teacher import Teacher, decay_for_length, ema_decay


def scalar(value, dtype=torch.float32):
    network = nn.Linear(1, 1, bias=False, dtype=dtype)
    with torch.no_grad():
        network.weight.fill_(value)
    return network


def unet(deep_supervision=True):
    torch.manual_seed(0)
    return PlainConvUNet(
        1, 2, (4, 8), nn.Conv2d, 3, (1, 2), 1, 3, 1, True, nn.InstanceNorm2d, {"affine": True}, None, None,
        nn.LeakyReLU, None, deep_supervision,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("step", "decay"), [(0, 0), (1, 0.5), (2, 0.666667), (9, 0.9), (98, 0.989899), (99, 0.99), (1000, 0.99)]
)
def test_golden_decay(step, decay):
    assert ema_decay(step, 0.99) == pytest.approx(decay, abs=1e-6)


@pytest.mark.parametrize(
    ("steps", "decay"),
    [
        (1, 0.99),
        (1000, 0.99),
        (1500, 0.99),
        (5000, 0.99),
        (10000, 0.995),
        (25000, 0.998),
        (50000, 0.999),
        (250000, 0.9995),
    ],
)
def test_golden_decay_of_lengths(steps, decay):
    assert decay_for_length(steps) == pytest.approx(decay)


@pytest.mark.parametrize(("decay", "steps"), [(0.99, 68.97), (0.996, 172.94), (0.999, 692.80), (0.9995, 1385.95)])
def test_golden_half_lives(decay, steps):
    assert math.log(0.5) / math.log(decay) == pytest.approx(steps, abs=0.01)


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize(
    ("decay", "values"), [(0.99, [1, 1.5, 2, 2.5]), (0.75, [1, 1.5, 2, 2.5, 3.125, 3.84375, 4.632812])]
)
def test_golden_running_mean(monkeypatch, foreach, decay, values):
    if not foreach:
        monkeypatch.delattr(torch, "_foreach_lerp_")
    teacher = Teacher(scalar(5, torch.float64), decay)
    found = []
    for value in range(1, len(values) + 1):
        teacher.update(scalar(value, torch.float64))
        found.append(teacher.network.weight.item())
    assert found == pytest.approx(values, abs=1e-6)
    assert teacher.t == len(values)


def test_without_decay_it_is_the_student():
    teacher = Teacher(scalar(5), 0.0)
    for value in (0.1, 0.7, -3.3):
        student = scalar(value)
        teacher.update(student)
        assert torch.equal(teacher.network.weight, student.weight)


def test_buffers():
    """Those of batch norm: means with the same decay, the counter is copied."""
    student = nn.BatchNorm1d(2)
    teacher = Teacher(student, 0.99)
    for number, value in enumerate((4.0, 8.0), 1):
        student.running_mean.fill_(value)
        student.num_batches_tracked.fill_(number)
        teacher.update(student)
    assert teacher.network.running_mean.tolist() == [6, 6]
    assert teacher.network.num_batches_tracked == 2
    assert student.running_mean.tolist() == [8, 8]


def test_tensors_stay_where_they_are():
    student = unet()
    teacher = Teacher(student, 0.9)
    places = [tensor.data_ptr() for tensor in teacher.network.state_dict().values()]
    teacher.update(student)
    teacher.load_state_dict(copy.deepcopy(teacher.state_dict()))
    assert [tensor.data_ptr() for tensor in teacher.network.state_dict().values()] == places
    assert not set(places) & {tensor.data_ptr() for tensor in student.state_dict().values()}


def test_teacher_is_for_inference_and_student_stays_as_it_is():
    student = unet().train()
    teacher = Teacher(student, 0.9)
    data = torch.rand(1, 1, 8, 8)
    assert isinstance(student(data), list)
    output = teacher(data.requires_grad_())
    assert output.shape == (1, 3, 8, 8)
    assert not output.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert not any(part.training for part in teacher.network.modules())
    assert student.decoder.deep_supervision
    assert not teacher.network.decoder.deep_supervision
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())
    torch.testing.assert_close(output, student.eval()(data)[0].detach())


def test_masks_of_the_output_may_take_part_in_a_backward_pass():
    """Tensors of inference mode may not."""
    student = unet()
    kept = Teacher(student, 0.9)(torch.rand(1, 1, 8, 8)).sigmoid()
    (student(torch.rand(1, 1, 8, 8))[0] * kept).sum().backward()


def test_gradients_are_not_copied():
    student = unet()
    student(torch.rand(1, 1, 8, 8))[0].sum().backward()
    assert all(parameter.grad is None for parameter in Teacher(student, 0.9).network.parameters())
    assert any(parameter.grad is not None for parameter in student.parameters())


def test_of_a_compiled_student_the_plain_network_is_copied():
    student = torch.compile(unet(), backend="eager")
    teacher = Teacher(student, 0.9)
    assert teacher.state_dict()["network_weights"].keys() == unet().state_dict().keys()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    teacher.update(student)
    torch.testing.assert_close(teacher.state_dict()["network_weights"], dict(student._orig_mod.state_dict()))


def test_a_compiled_teacher_stays_valid():
    student, data = unet(), torch.rand(1, 1, 8, 8)
    teacher = Teacher(student, 0.0)
    teacher.network.compile(backend="eager")
    before = teacher(data)
    with torch.no_grad():
        student.decoder.seg_layers[-1].bias.add_(1)
    teacher.update(student)
    torch.testing.assert_close(teacher(data), before + 1)
    assert teacher.state_dict()["network_weights"].keys() == student.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_increments(dtype):
    """In bfloat16 a step of 1 / 2000 towards 2 would leave 1 where it is."""
    teacher = Teacher(scalar(1, dtype), 0.9995)
    teacher.t = 100_000
    teacher.update(scalar(2, dtype))
    assert teacher.network.weight.dtype == torch.float32
    assert teacher.network.weight.item() == pytest.approx(1.0005)


def test_a_checkpoint_continues():
    teacher = Teacher(scalar(5), 0.99)
    teacher.update(scalar(1))
    state = copy.deepcopy(teacher.state_dict())
    other = Teacher(scalar(7), 0.99)
    other.load_state_dict(state)
    other.update(scalar(2))
    assert other.network.weight.item() == 1.5
    assert other.t == 2
    other.restart()
    other.update(scalar(9))
    assert other.network.weight.item() == 9
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        other.load_state_dict(Teacher(nn.Linear(2, 1, bias=False), 0.9).state_dict())


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_decay_out_of_range(decay):
    with pytest.raises(ValueError, match=f"decay of a teacher must be 0 or more and below 1, got {decay}"):
        Teacher(scalar(1), decay)
