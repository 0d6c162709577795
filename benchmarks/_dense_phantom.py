"""Phantoms for dense.py: a body with 13 organs in closed form, rendered at any resolution."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

SLAB = 20  # slices rendered at a time
AIR, LUNG, FAT, MUSCLE, BONE = -1000, -830, -100, 60, 480
NOISE_HU, BLUR_MM = 17, 0.6
COLON = [(-98, 6, 150), (-98, 0, 235), (-60, -56, 250), (0, -62, 245), (60, -56, 252), (98, 0, 262), (100, 8, 140)]
# Organs in the order of their labels: HU, half axes, and the curves that the centre of that ellipsoid runs along. All
# in mm and in the order x (to the patient's left), y (to the back), z (to the head). What is placed first stays.
ORGANS = {
    "gallbladder": (20, (12, 12, 20), [[(-45, -52, 292)]]),
    "adrenals": (50, (5, 5, 5), [[(-42, 34, 316), (-54, 46, 336)], [(42, 34, 316), (54, 46, 336)]]),
    "aorta": (320, (11, 11, 11), [[(12, 34, 150), (10, 34, 300), (14, 32, 450)]]),
    "vena_cava": (235, (11, 11, 11), [[(-20, 34, 150), (-18, 34, 300), (-14, 20, 390)]]),
    "kidneys": (195, (25, 25, 50), [[(-66, 42, 258)], [(66, 42, 264)]]),
    "pancreas": (75, (11, 11, 11), [[(-28, -14, 298), (8, -8, 312), (52, 6, 326)]]),
    "heart": (275, (50, 44, 52), [[(22, -26, 448)]]),
    "spleen": (155, (24, 40, 44), [[(98, 22, 345)]]),
    "stomach": (40, (27, 27, 27), [[(58, -32, 372), (56, -42, 330), (16, -50, 300)]]),
    "colon": (365, (18, 18, 18), [COLON]),
    "bladder": (0, (42, 36, 34), [[(0, -32, 84)]]),
    "prostate": (95, (21, 18, 18), [[(0, -26, 40)]]),
    "liver": (120, (80, 72, 64), [[(-56, -6, 345), (-20, -14, 355)]]),
}
# bones of the spine and the pelvis displace the wall of the body, organs displace the lungs
SURROUNDINGS = [(LUNG, (58, 76, 110), (x, 0, 485)) for x in (-72, 72)] + [(BONE, (18, 18, 400), (0, 70, 300))]
SURROUNDINGS += [(BONE, (24, 42, 52), (x, 18, 84)) for x in (-88, 88)]


class Patient:
    """One patient in closed form; the same seed gives the same one on any grid, except for the noise."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = np.random.default_rng([920, seed])
        self.half_axes = rng.uniform(146, 160), rng.uniform(99, 109)
        # each coordinate is shifted by waves along the other two
        self.waves = rng.uniform((-0.04, -0.04, 0, 1), (0.04, 0.04, 2 * np.pi, 3), (3, 3, 4))
        self.tissue = rng.uniform((0.05, 0.05, 0.05, 0, 0, 0), (0.2, 0.2, 0.2, 7, 7, 7), (4, 6))
        size = rng.uniform(0.95, 1.05)
        self.balls: list[tuple[int, float, np.ndarray, np.ndarray]] = []
        for label, (hu, radii, curves) in enumerate(ORGANS.values(), 1):
            shift, hu = rng.normal(0, 3, 3), hu + rng.normal(0, 4)
            radii = np.array(radii) * size * rng.uniform(0.9, 1.1)
            for curve in curves:
                for centre in along(np.array(curve, float), radii.min() / 3):
                    self.balls.append((label, hu, centre + shift, radii))

    def slab(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return Hounsfield units without noise, and labels, at the given coordinates."""
        moved_z, moved_y = z[:, None, None] + self.shift(0, y, x), y[:, None] + self.shift(1, z, x)[:, None]
        moved = x + self.shift(2, z, y)[..., None], moved_y, moved_z
        depth = (moved[0] / self.half_axes[0]) ** 2 + (moved[1] / self.half_axes[1]) ** 2
        hu = np.select([depth < 0.72, depth < 0.86, depth < 1], [FAT, MUSCLE, FAT], AIR).astype(np.float32)
        hu += np.where(depth < 1, self.texture(z, y, x), np.float32(0))
        labels, free = np.zeros(hu.shape, np.uint8), depth < 0.72
        for value, radii, centre in SURROUNDINGS:
            box, inside = ball(moved, (z, y, x), np.array(centre), np.array(radii))
            hu[box][inside & (free[box] | (value == BONE))] = value
            free[box] &= ~inside | (value == LUNG)
        for label, value, centre, radii in self.balls:
            box, inside = ball(moved, (z, y, x), centre, radii)
            inside &= free[box]
            labels[box][inside] = label
            hu[box][inside] = value + self.texture(z[box[0]], y[box[1]], x[box[2]])[inside]
            free[box] &= ~inside
        return hu, labels

    def shift(self, axis: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the deformation along one axis, in mm."""
        waves = (a * np.sin(u * first[:, None] + v * second[None] + phase) for u, v, phase, a in self.waves[axis])
        return sum(waves).astype(np.float32)

    def texture(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the inhomogeneity of the tissue, in HU."""
        total = np.zeros((len(z), len(y), len(x)), np.float32)
        for a, b, c, i, j, k in self.tissue.astype(np.float32):
            total += 4 * np.sin(a * z + i)[:, None, None] * (np.sin(b * y + j)[:, None] * np.sin(c * x + k))
        return total


def along(curve: np.ndarray, step: float) -> np.ndarray:
    """Return points of a polyline at most ``step`` apart."""
    lengths = np.r_[0, np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))]
    where = np.linspace(0, lengths[-1], 1 + int(np.ceil(lengths[-1] / step)))
    return np.stack([np.interp(where, lengths, column) for column in curve.T], 1)


def ball(moved: tuple, axes: tuple, centre: np.ndarray, radii: np.ndarray) -> tuple[tuple, np.ndarray]:
    """Return the box of an ellipsoid in the slab, and which voxels of the box lie inside."""
    ends = zip(axes, centre[::-1] - radii[::-1] - 9, centre[::-1] + radii[::-1] + 9, strict=True)  # moved by 9 mm
    box = tuple(slice(*np.searchsorted(coordinates, (low, high))) for coordinates, low, high in ends)
    return box, sum(((moved[n][box] - np.float32(centre[n])) / np.float32(radii[n])) ** 2 for n in range(3)) < 1


def render(seed: int, grid: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Return a scan, int16, and its labels, uint8; made slab by slab."""
    shape, spacing = grid
    z = ((np.arange(shape[0]) + 0.5) * spacing[0]).astype(np.float32)
    y, x = (((np.arange(n) - (n - 1) / 2) * s).astype(np.float32) for n, s in zip(shape[1:], spacing[1:], strict=True))
    patient = Patient(seed)
    scan, labels = np.empty(shape, np.int16), np.empty(shape, np.uint8)
    for start in range(0, shape[0], SLAB):
        part = slice(start, start + SLAB)
        hu, labels[part] = patient.slab(z[part], y, x)
        hu = gaussian_filter(hu, (0, BLUR_MM / spacing[1], BLUR_MM / spacing[2]), truncate=3)
        hu += NOISE_HU * patient.rng.standard_normal(hu.shape, np.float32)
        scan[part] = np.rint(hu).clip(-1024, 3071)
    return scan, labels
