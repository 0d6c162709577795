"""Speed of instructive feature enhancement: the scores, and a training step with it.

    python benchmarks/enhancement.py scores [--pairs 7] [--shapes 3d 2d]   against histc, histogram2d and a convolution
    python benchmarks/enhancement.py step [--pairs 30] [--bf16] [--small] [--classes 3]

Scores are compared with numpy's and torch's histograms before anything is timed. "Rank correlation" is Spearman's, of
the entropies of every second position with those of all, over channels of a trained-like feature map (filtered noise
of different scales); "same half" is the share of the upper half of the channels that both choose. A step is that
of contours.py with nnU-Net's loss on both sides. On a GPU the networks are compiled.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from _pairs import interleaved, machine, ratio
from contours import DEVICE, Step, stock_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from scipy.stats import spearmanr
from torch.nn import functional

from nnunet_ext.networks import curvature_scores, entropy_scores
from nnunet_ext.networks.feature_scores import _centre_and_neighbours
from nnunet_ext.networks.ife_unet import IFEPlainConvUNet
from nnunet_ext.training.criteria import deep_supervision_weights

SHAPES = {"3d": (2, 64, 56, 80, 64), "2d": (12, 64, 128, 128)}


def features(shape: tuple[int, ...]) -> torch.Tensor:
    """Channels of noise, smoothed over 1 to 8 voxels and passed through a leaky ReLU, as after an encoder stage."""
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(shape)
    for channel in range(shape[1]):
        coarse = [max(2, n // (1 + channel % 8)) for n in shape[2:]]
        noise = torch.randn((shape[0], 1, *coarse), generator=generator)
        mode = "trilinear" if len(coarse) == 3 else "bilinear"
        x[:, channel : channel + 1] = functional.interpolate(noise, shape[2:], mode=mode) * (0.5 + channel / shape[1])
    return functional.leaky_relu(x).to(DEVICE)


def neighbours(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The value and the mean of its neighbours, channel by channel."""
    means = [_centre_and_neighbours(one[None], range(1, x.ndim - 1), 1)[1] for one in x.flatten(0, 1)]
    return x, torch.cat(means).reshape(x.shape)


def with_histc(x: torch.Tensor) -> torch.Tensor:
    """The packed form with one torch.histc a channel, as one would write it."""
    centre, mean = neighbours(x)
    values = 100 * centre + mean
    low, high = values.aminmax()
    counts = [torch.histc(one, 256, float(low), float(high)) for one in values.flatten(0, 1)]
    shares = torch.stack(counts) / np.prod([n + 2 for n in x.shape[2:]])
    return -torch.xlogy(shares, shares).sum(1).reshape(x.shape[:2]) / np.log(2)


def with_histogram2d(x: torch.Tensor, bins: int = 64) -> np.ndarray:
    """The joint form with one numpy.histogram2d a channel."""
    centre, mean = (one.cpu().numpy() for one in neighbours(x))
    result = np.empty(x.shape[:2])
    for b in range(len(x)):
        limits = [[min(centre[b].min(), mean[b].min()), max(centre[b].max(), mean[b].max())]] * 2
        for c in range(x.shape[1]):
            shares = np.histogram2d(centre[b, c].ravel(), mean[b, c].ravel(), bins, limits)[0] / centre[b, c].size
            shares = shares[shares > 0]
            result[b, c] = -(shares * np.log2(shares)).sum()
    return result


def with_convolution(x: torch.Tensor) -> torch.Tensor:
    """One depthwise convolution of 3 voxels an axis, without what the score needs after it."""
    weight = torch.ones((x.shape[1], 1, *[3] * (x.ndim - 2)), device=x.device)
    return (functional.conv3d if x.ndim == 5 else functional.conv2d)(x, weight, groups=x.shape[1])


@torch.no_grad()
def bench_scores(a: argparse.Namespace) -> None:
    """Compare, then time, the scores."""
    for name in a.shapes:
        x = features(SHAPES[name])
        full, half = entropy_scores(x), entropy_scores(x, step=2)
        joint = float(np.abs(full.cpu().numpy() - with_histogram2d(x)).max())
        packed = float((entropy_scores(x, packed=True) - with_histc(x)).abs().max())
        print(f"{name} {SHAPES[name]}: joint equals numpy's to {joint:.1e}, packed equals histc's to {packed:.1e}")
        # values at the border of a bin may fall into the next one
        if max(joint, packed) > 0.02:
            raise SystemExit("the scores are not those of the histograms; nothing was timed")
        correlations = [spearmanr(f, h).statistic for f, h in zip(full.cpu(), half.cpu(), strict=True)]
        chosen = [o.sort(dim=1, descending=True, stable=True).indices[:, : x.shape[1] // 2] for o in (full, half)]
        same = np.mean([len({*f.tolist()} & {*h.tolist()}) / len(f) for f, h in zip(*chosen, strict=True)])
        print(f"  every second position: rank correlation {np.mean(correlations):.3f}, same half {same:.3f}")
        seconds = interleaved(
            {
                "packed": lambda x=x: entropy_scores(x, packed=True),
                "histc": lambda x=x: with_histc(x),
                "joint": lambda x=x: entropy_scores(x),
                "every second": lambda x=x: entropy_scores(x, step=2),
                "curvature": lambda x=x: curvature_scores(x),
                "convolution": lambda x=x: with_convolution(x),
                "histogram2d": lambda x=x: with_histogram2d(x),
            },
            a.pairs,
            1,
        )
        for slow, fast in (
            ("histc", "packed"),
            ("histogram2d", "joint"),
            ("histogram2d", "every second"),
            ("histc", "joint"),
            ("convolution", "curvature"),
        ):
            print(f"  {slow} / {fast}: {ratio(seconds[slow], seconds[fast])}", flush=True)


def bench_step(a: argparse.Namespace) -> None:
    """Time steps of the plain and the enhanced networks."""
    loss = DeepSupervisionWrapper(stock_loss(), deep_supervision_weights(3))
    for classes in a.classes:
        sides = {"plain": Step(classes, loss, a.small, a.bf16)}
        for score, ratios, step in (
            ("curvature", (0.75, 0.5), 1),
            ("entropy", (0.5, 0.5), 1),
            ("entropy", (0.5, 0.5), 2),
        ):
            side = Step(classes, loss, a.small, a.bf16)
            side.use(enhanced(a.small, classes, score, ratios, step))
            sides[f"{score}, step {step}"] = side
        seconds = interleaved(sides, a.pairs)
        for name in list(sides)[1:]:
            print(f"{classes} classes: {name} / plain {ratio(seconds[name], seconds['plain'])}", flush=True)


def enhanced(small: bool, classes: int, score: str, ratios: tuple[float, ...], step: int) -> torch.nn.Module:
    """The network of step.py with enhanced skips."""
    features_per_stage = [8, 16, 32, 64] if small else [32, 64, 128, 256]
    network = IFEPlainConvUNet(
        1,
        4,
        features_per_stage,
        torch.nn.Conv3d,
        3,
        [1, 2, 2, 2],
        2,
        classes,
        2,
        True,
        torch.nn.InstanceNorm3d,
        {"eps": 1e-5, "affine": True},
        None,
        None,
        torch.nn.LeakyReLU,
        {"inplace": True},
        deep_supervision=True,
        ife_score=score,
        ife_ratios=ratios,
        ife_step=step,
    )
    return network.to(DEVICE)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["scores", "step"])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--classes", type=int, nargs="+", default=[3])
    parser.add_argument("--pairs", type=int, default=None, help="default: 7 for scores, 30 for steps")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast on the CPU, both sides")
    parser.add_argument("--small", action="store_true", help="features 8 to 64 instead of 32 to 256")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    a.pairs = a.pairs or (7 if a.what == "scores" else 30)
    torch.set_num_threads(a.threads)
    print(machine())
    {"scores": bench_scores, "step": bench_step}[a.what](a)


if __name__ == "__main__":
    main()
