"""Naive versions, written with loops over voxels and classes, to compare with."""

import math

import torch


def cross_pseudo_loss(logits, labels, valid_mask=None, batch_dice=False, smooth=1e-5):
    b, k = logits.shape[:2]
    probs = torch.softmax(logits.double(), 1).reshape(b, k, -1)
    labels = labels.reshape(b, -1)
    valid = torch.ones_like(labels) if valid_mask is None else (valid_mask.reshape(b, -1) > 0).long()
    ce, count = 0.0, 0
    sums = torch.zeros(b, k, 3, dtype=torch.float64)
    for i in range(b):
        for v in range(labels.shape[1]):
            if not valid[i, v]:
                continue
            ce -= math.log(probs[i, labels[i, v], v])
            count += 1
            for c in range(k):
                hit = float(labels[i, v] == c)
                sums[i, c] += torch.tensor([probs[i, c, v] * hit, probs[i, c, v], hit])
    if batch_dice:
        sums = sums.sum(0, keepdim=True)
    dice = (2 * sums[..., 0] + smooth) / (sums[..., 1] + sums[..., 2] + smooth)
    return ce / max(count, 1) - dice[:, 1:].mean().item()


def region_loss(logits, labels, valid_mask=None, batch_dice=False, smooth=1e-5):
    b, k = logits.shape[:2]
    probs = torch.sigmoid(logits.double()).reshape(b, k, -1)
    labels = labels.double().reshape(b, k, -1)
    valid = torch.ones(b, probs.shape[2]) if valid_mask is None else (valid_mask.reshape(b, -1) > 0).double()
    ce, count = 0.0, 0
    sums = torch.zeros(b, k, 3, dtype=torch.float64)
    for i in range(b):
        for v in range(probs.shape[2]):
            if not valid[i, v]:
                continue
            for c in range(k):
                p, t = probs[i, c, v].item(), labels[i, c, v].item()
                ce -= t * math.log(p) + (1 - t) * math.log(1 - p)
                count += 1
                sums[i, c] += torch.tensor([p * t, p, t])
    if batch_dice:
        sums = sums.sum(0, keepdim=True)
    dice = (2 * sums[..., 0] + smooth) / (sums[..., 1] + sums[..., 2] + smooth)
    return ce / max(count, 1) - dice.mean().item()
