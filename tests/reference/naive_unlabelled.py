"""Naive losses of unlabelled and of mixed patches, with loops over voxels and classes, to compare with."""

import math

import torch


def _probs(logits, regions):
    return (torch.sigmoid if regions else lambda x: torch.softmax(x, 1))(logits.double()).flatten(2)


def _entropy(probs, labels, regions, i, k, v):
    if regions:
        return -math.log(probs[i, k, v] if labels[i, k, v] else 1 - probs[i, k, v])
    return -math.log(probs[i, labels[i, 0, v], v])


def unlabelled_loss(logits, labels, kept, valid, weights=None, batch_dice=True, regions=False, smooth=1e-5):
    probs, labels, kept = _probs(logits, regions), labels.flatten(2).long(), kept.flatten(2) > 0
    valid = torch.ones(len(labels), 1, labels.shape[2]) if valid is None else valid.flatten(2)
    channels = kept.shape[1]
    total, sums = 0.0, {}
    for i in range(len(labels)):
        for v in range(labels.shape[2]):
            for c in range(channels):
                if not (kept[i, c, v] and valid[i, 0, v]):
                    continue
                y = labels[i, c, v].item()
                weight = 1.0 if weights is None else float(weights[y, c] if regions else weights[y])
                total += weight * _entropy(probs, labels, regions, i, c, v)
                for k in [c] if regions else range(1, probs.shape[1]):
                    p, hit = probs[i, k, v].item(), float(y if regions else y == k)
                    one = sums.setdefault((0 if batch_dice else i, k), [0.0, 0.0, 0.0])
                    one[0] += p * hit
                    one[1] += p
                    one[2] += hit
    dice = [(2 * both + smooth) / (p + t + smooth) for both, p, t in sums.values() if t > 0]
    return total / max(1.0, channels * (valid > 0).sum().item()) - sum(dice) / max(len(dice), 1)


def bcp_loss(logits, labels, kept, labelled, valid, weights, pseudo_weight, regions):
    total = 0.0
    for i in range(len(logits)):
        one = [tensor[i : i + 1] for tensor in (logits, labels, kept)]
        there = torch.ones_like(labelled[i : i + 1]) if valid is None else valid[i : i + 1] > 0
        inside = labelled[i : i + 1] > 0
        first = unlabelled_loss(*one, there & inside, None, regions=regions)
        second = unlabelled_loss(*one, there & ~inside, weights, regions=regions)
        total += (first + pseudo_weight * second) / (1 + pseudo_weight)
    return total / len(logits)
