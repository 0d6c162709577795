"""Phantoms that look like an abdominal CT: closed-form shapes, a different patient for every seed.

Coordinates are millimetres: ``x`` runs to the patient's left, ``y`` to the back, ``z`` to the head, and the origin is
the middle of the body at the lower end of the scan. Arrays are ordered ``(z, y, x)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK

from nnunet_ext.demo.tissue import HU, sample_contrast

Array = npt.NDArray[Any]
Point = tuple[float, float, float]

LABELS: dict[str, int] = {
    "background": 0,
    "liver": 1,
    "spleen": 2,
    "kidneys": 3,
    "aorta": 4,
    "pancreas": 5,
    "gallbladder": 6,
}

AIR_HU = -1000
FLIP_PROBABILITY = 0.25  # cases stored with the direction (-1, -1, 1)


@dataclass(frozen=True)
class Phantom:
    """One patient.

    Attributes:
        hu: Hounsfield units, ``(z, y, x)`` int16.
        labels: Label map with the values of ``LABELS``, ``(z, y, x)`` uint8.
        spacing_mm: Voxel size in array order.
        origin_mm: Position of the first voxel in the order ``(x, y, z)``.
        direction: Sign of each axis in the order ``(x, y, z)``.
    """

    hu: Array
    labels: Array
    spacing_mm: Point
    origin_mm: Point
    direction: Point

    def to_images(self) -> tuple[SimpleITK.Image, SimpleITK.Image]:
        """Give the scan and its labels as images that share one geometry."""
        images = (SimpleITK.GetImageFromArray(self.hu), SimpleITK.GetImageFromArray(self.labels))
        for image in images:
            image.SetSpacing(self.spacing_mm[::-1])
            image.SetOrigin(self.origin_mm)
            image.SetDirection(np.diag(self.direction).ravel().tolist())
        return images


class _Body:
    """The scan being painted: what is placed first stays, later shapes fill only what is free."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.width_mm, self.depth_mm = rng.uniform(118, 142), rng.uniform(86, 106)  # half axes
        self.height_mm = rng.uniform(166, 190)
        in_plane_mm, slice_mm = rng.uniform(4.75, 5.45), rng.uniform(5.2, 6.4)
        self.spacing_mm: Point = (slice_mm, in_plane_mm, in_plane_mm)
        # 12 mm of air on each side
        extents_mm = (self.height_mm, 2 * self.depth_mm + 24, 2 * self.width_mm + 24)
        limits = ((26, 38), (38, 52), (48, 64))
        self.shape = tuple(
            int(np.clip(np.ceil(extent / step), low, high))
            for extent, step, (low, high) in zip(extents_mm, self.spacing_mm, limits, strict=True)
        )
        self.x, self.y, self.z = self._deformed_grid()
        self.hu = np.full(self.shape, AIR_HU, dtype=np.float32)
        self.labels = np.zeros(self.shape, dtype=np.uint8)
        self.free = np.ones(self.shape, dtype=bool)

    def _deformed_grid(self) -> tuple[Array, Array, Array]:
        nz, ny, nx = self.shape
        dz, dy, dx = self.spacing_mm
        z, y, x = np.meshgrid(
            np.arange(nz) * dz, (np.arange(ny) - (ny - 1) / 2) * dy, (np.arange(nx) - (nx - 1) / 2) * dx, indexing="ij"
        )
        shifts = [sum(self.wave(x, y, z, amplitude=2.6) for _ in range(4)) for _ in range(3)]
        return x + shifts[0], y + shifts[1], z + self.rng.uniform(-7, 7) + shifts[2]

    def wave(self, x: Array, y: Array, z: Array, amplitude: float, shortest_mm: float = 90) -> Array:
        """One plane wave of random direction, length and phase; a sum of them is a smooth random field."""
        direction = self.rng.normal(size=3)
        direction *= 2 * np.pi / (np.linalg.norm(direction) * self.rng.uniform(shortest_mm, 2.5 * shortest_mm))
        phase = self.rng.uniform(0, 2 * np.pi)
        return amplitude * np.sin(direction[0] * x + direction[1] * y + direction[2] * z + phase)

    def texture(self, amplitude: float) -> Array:
        """Inhomogeneity of a tissue in HU."""
        return sum(self.wave(self.x, self.y, self.z, amplitude, shortest_mm=25) for _ in range(3))  # type: ignore[return-value]

    def jitter(self, centre: Point, spread_mm: float) -> Point:
        """Move a point at random, up to ``spread_mm`` along each axis."""
        x, y, z = (value + self.rng.uniform(-spread_mm, spread_mm) for value in centre)
        return x, y, z

    def place(self, inside: Array, hu: Array | float, label: str = "background") -> Array:
        """Paint the free part of a shape and give what was painted."""
        painted = inside & self.free
        self.hu[painted] = hu[painted] if isinstance(hu, np.ndarray) else hu
        self.labels[painted] = LABELS[label]
        self.free[painted] = False
        return painted

    def ellipsoid(self, centre: Point, radii: Point, turn_deg: float = 0.0, tilt_deg: float = 0.0) -> Array:
        """Distance from ``centre`` in units of the ellipsoid's surface: inside is below 1.

        Args:
            centre: Centre in mm.
            radii: Half axes in mm.
            turn_deg: Rotation about the body's long axis.
            tilt_deg: Rotation about the front-back axis, after the turn.
        """
        x, y, z = self.x - centre[0], self.y - centre[1], self.z - centre[2]
        turn, tilt = np.deg2rad(turn_deg), np.deg2rad(tilt_deg)
        x, y = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
        x, z = np.cos(tilt) * x + np.sin(tilt) * z, np.cos(tilt) * z - np.sin(tilt) * x
        return np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2)

    def tube(self, points: Sequence[Point], radii: Sequence[float], flat: float = 1.0) -> Array:
        """Distance from a curve through ``points`` in units of its radius; ``flat`` below 1 squeezes it in depth."""
        steps = np.linspace(0, len(points) - 1, 8 * len(points))
        knots = np.arange(len(points))
        path = np.stack([np.interp(steps, knots, column) for column in np.transpose(points)], axis=1)
        thickness = np.interp(steps, knots, radii)
        nearest = np.full(self.shape, np.inf)
        for (x, y, z), radius in zip(path, thickness, strict=True):
            squared = (self.x - x) ** 2 + ((self.y - y) / flat) ** 2 + (self.z - z) ** 2
            np.minimum(nearest, squared / radius**2, out=nearest)
        return np.sqrt(nearest)


def make_phantom(seed: int, index: int) -> Phantom:
    """Make one patient; the same two numbers always give the same one.

    Body size, voxel size, organ pose and size, contrast phase, bowel filling and noise all differ between patients, and
    a smooth random deformation bends everything.

    Args:
        seed: Seed of the data set.
        index: Number of the case in the data set.

    Returns:
        A patient in which every organ of ``LABELS`` is present.
    """
    rng = np.random.default_rng([seed, index])
    contrast = sample_contrast(rng)
    body = _Body(rng)
    _wall_and_bones(body)
    _vessels(body, contrast)
    _upper_organs(body, contrast)
    _distractors(body, contrast)
    hu = _scan(body)
    flip = rng.random() < FLIP_PROBABILITY
    return _stored(body, hu, flip)


def _wall_and_bones(body: _Body) -> None:
    """Skin, fat, muscle, ribs and spine; afterwards only the abdominal cavity is free, and it is filled with fat."""
    rng = body.rng
    depth = np.sqrt((body.x / body.width_mm) ** 2 + (body.y / body.depth_mm) ** 2)
    fat_layer = rng.uniform(0.05, 0.15)
    cavity = 1 - fat_layer - rng.uniform(0.07, 0.10)
    body.place(depth > 1, AIR_HU)
    body.place(depth > 0.975, HU["skin"])
    body.place(depth > 1 - fat_layer, HU["fat"])
    angle = np.arctan2(np.abs(body.x), body.y)  # 0 at the back, pi at the front
    rib = np.cos(2 * np.pi * (body.z + 14 * angle) / 30) > 0.45
    rib &= (np.abs(depth - cavity - 0.045) < 0.032) & (body.z + 30 * angle > 95) & (angle < 2.4)
    body.place(rib, HU["bone"])

    disc = np.cos(2 * np.pi * body.z / rng.uniform(28, 36) + rng.uniform(0, 6)) > 0.86
    vertebra = np.sqrt((body.x / 21) ** 2 + ((body.y - 0.60 * body.depth_mm) / 17) ** 2)
    canal_y = 0.60 * body.depth_mm + 22
    body.place(np.hypot(body.x, body.y - canal_y) < 7, HU["canal"])
    body.place((vertebra < 1) & disc, HU["disc"])
    body.place(vertebra < 0.8, HU["marrow"])
    body.place(vertebra < 1, HU["bone"])
    process = np.hypot(body.x / 30, (body.y - canal_y) / 7) < 1
    process |= (np.abs(body.x) < 4) & (body.y > canal_y) & (body.y < canal_y + 22)
    body.place(process & ~disc & (depth < 1 - fat_layer), HU["bone"])
    body.place(np.hypot(np.abs(body.x) - 24, body.y - canal_y - 8) < 15, HU["muscle"] + body.texture(4))
    body.place(depth > cavity, HU["muscle"] + body.texture(5))
    body.hu[body.free] = (HU["fat"] + body.texture(7))[body.free]


def _vessels(body: _Body, contrast: dict[str, float]) -> None:
    """The aorta before the spine, the unlabelled vena cava beside it, and the lungs, down to the diaphragm's dome."""
    rng = body.rng
    front = 0.60 * body.depth_mm - 17
    radius = rng.uniform(9.5, 13.0)
    heights = (-20.0, 60.0, 120.0, 220.0)
    aorta = [(rng.uniform(4, 13), front - radius - rng.uniform(0, 5), z) for z in heights]
    body.place(body.tube(aorta, [radius, radius, 1.1 * radius, 1.15 * radius]) < 1, contrast["aorta"], "aorta")
    cava = [(rng.uniform(-24, -17), front - 10 - rng.uniform(0, 6) - 0.05 * z, z) for z in heights]
    body.place(body.tube(cava, [11.0, 12.0, 12.0, 13.0], flat=rng.uniform(0.6, 0.95)) < 1, contrast["cava"])
    depth = np.hypot(body.x / body.width_mm, body.y / body.depth_mm)
    dome = 0.98 * body.height_mm + rng.uniform(-6, 6) - 50 * depth**2 - 9 * (body.x > 0)
    body.place(body.z > dome, HU["lung"] + body.texture(25))


def _upper_organs(body: _Body, contrast: dict[str, float]) -> None:
    """The labelled organs, the small ones first: the large ones give way to them."""
    rng = body.rng

    def size(*radii: float) -> Point:
        x, y, z = (radius * rng.uniform(0.87, 1.15) for radius in radii)
        return x, y, z

    gallbladder = body.ellipsoid(body.jitter((-48, -40, 82), 8), size(13, 15, 21), rng.uniform(-30, 30), 20)
    body.place(gallbladder < 1, contrast["gallbladder"] + body.texture(2), "gallbladder")

    head, neck, middle, tail = ((-24, -4, 74), (-2, -16, 88), (26, -6, 100), (62, 20, 112))
    path = [body.jitter(point, 6) for point in (head, neck, middle, tail)]
    pancreas = body.tube(path, [rng.uniform(14, 17), rng.uniform(9, 11), 11, rng.uniform(8, 11)])
    lobulated = pancreas + body.texture(0.05)
    body.place(lobulated < 1, contrast["pancreas"] + body.texture(5), "pancreas")

    for side in (-1, 1):
        _kidney(body, contrast, side, size)

    spleen_centre = body.jitter((0.66 * body.width_mm, 26, 118), 8)
    spleen = body.ellipsoid(spleen_centre, size(29, 45, 46), rng.uniform(-30, 5), rng.uniform(-15, 15))
    hollow = body.ellipsoid((spleen_centre[0] - 38, spleen_centre[1] - 14, spleen_centre[2]), (26, 36, 60))
    body.place((spleen < 1) & (hollow > 1), contrast["spleen"] + body.texture(4), "spleen")

    right = body.ellipsoid(body.jitter((-0.48 * body.width_mm, -6, 122), 8), size(53, 60, 55), rng.uniform(-20, 20))
    left = body.ellipsoid(body.jitter((4, -46, 126), 9), size(54, 27, 30), rng.uniform(-10, 15), rng.uniform(-5, 20))
    _liver(body, contrast, np.minimum(right, left))


def _kidney(body: _Body, contrast: dict[str, float], side: int, size: Any) -> None:
    rng = body.rng
    centre = body.jitter((side * 0.44 * body.width_mm, 0.46 * body.depth_mm, 74 + 5 * side), 7)
    radii = size(24, 22, 46)
    turn, tilt = side * rng.uniform(15, 50), side * rng.uniform(4, 18)
    shell = body.ellipsoid(centre, radii, turn, tilt)
    hilum = body.ellipsoid((centre[0] - side * 0.85 * radii[0], centre[1] - 5, centre[2]), (13, 11, 18))
    pelvis = body.ellipsoid((centre[0] - side * 5, centre[1] - 2, centre[2]), (11, 9, 20))
    body.place((shell < 1.25) & (hilum < 1), HU["fat"])
    body.place((shell < 1) & (pelvis < 1), contrast["pelvis"], "kidneys")
    rays = np.cos(body.z / 3.2 + 2 * np.arctan2(body.y - centre[1], body.x - centre[0]))
    medulla = (shell < 0.74) & (rays > -0.2)
    body.place(medulla, contrast["medulla"], "kidneys")
    body.place(shell < 1, contrast["cortex"] + body.texture(4), "kidneys")


def _liver(body: _Body, contrast: dict[str, float], shape: Array) -> None:
    """The liver with vessels and, in some patients, dark lesions: all of it carries the liver's label."""
    rng = body.rng
    inside = (shape < 1) & body.free
    body.place(inside, contrast["liver"] + body.texture(4), "liver")
    porta: Point = (-22.0, -14.0, 108.0)
    for _ in range(5):
        end = body.jitter((-70, -10, 122), 42)
        vessel = body.tube([porta, end], [6.0, 2.5]) < 1
        body.hu[inside & vessel] = contrast["cava"]
    for _ in range(rng.integers(0, 4)):
        radius = rng.uniform(6, 13)
        lesion = body.ellipsoid(body.jitter((-62, -5, 118), 38), (radius, radius, radius)) < 1
        body.hu[inside & lesion] = contrast["liver"] - rng.uniform(25, 60)


def _distractors(body: _Body, contrast: dict[str, float]) -> None:
    """What surrounds the organs and is not labelled: stomach, duodenum, psoas and bowel, with gas and oral contrast."""
    rng = body.rng
    stomach_centre = body.jitter((44, -38, 124), 8)
    stomach = body.ellipsoid(stomach_centre, (40, 31, 42), rng.uniform(-30, 30), rng.uniform(0, 40))
    _hollow(body, stomach, stomach_centre[1] - rng.uniform(-5, 22), rng.uniform(15, 60), contrast["wall"])
    duodenum = body.tube([(-30, -18, 96), (-46, 2, 84), (-38, 8, 58), (0, 16, 54)], [10, 11, 11, 10])
    _hollow(body, duodenum, -200, rng.uniform(20, 70), contrast["wall"])
    for side in (-1, 1):
        psoas = body.tube([(side * 30, 0.55 * body.depth_mm, 90), (side * 40, 0.45 * body.depth_mm, -30)], [9, 21])
        body.place(psoas < 1, HU["muscle"] + body.texture(4))
    for _ in range(rng.integers(16, 26)):
        start = body.jitter((0, -18, 40), 46)
        start = (1.7 * start[0], start[1], start[2])
        loop = [start, body.jitter(start, 30), body.jitter(start, 30)]
        filling = rng.uniform(120, 260) if rng.random() < 0.15 else rng.uniform(0, 60)
        gas_level = start[1] - 5 if rng.random() < 0.4 else -200.0
        _hollow(body, body.tube(loop, [rng.uniform(9, 14)] * 3), gas_level, filling, contrast["wall"])


def _hollow(body: _Body, shape: Array, gas_level_mm: float, filling_hu: float, wall_hu: float) -> None:
    """A filled organ with a wall; gas collects in front of ``gas_level_mm``, for the patient lies on the back."""
    lumen = shape < 0.8
    body.place(lumen & (body.y < gas_level_mm), HU["gas"])
    body.place(lumen, filling_hu + body.texture(6))
    body.place(shape < 1, wall_hu)


def _scan(body: _Body) -> Array:
    """Blur of the scanner, then noise of the patient's dose, as int16."""
    rng = body.rng
    blurred = _blur(body.hu, rng.uniform(0.45, 0.65))
    noise = _blur(rng.normal(size=body.shape), 0.5)
    noise *= rng.uniform(11, 22) / noise.std()
    return np.clip(np.rint(blurred + noise), -1024, 3071).astype(np.int16)


def _blur(volume: Array, sigma_vox: float) -> Array:
    image = SimpleITK.GetImageFromArray(volume.astype(np.float32))
    return SimpleITK.GetArrayFromImage(
        SimpleITK.DiscreteGaussian(image, variance=[sigma_vox**2] * 3, maximumKernelWidth=9)
    )


def _stored(body: _Body, hu: Array, flip: bool) -> Phantom:
    """Give the arrays the orientation they are stored in; the patient does not move."""
    _, ny, nx = body.shape
    spacing = tuple(round(step, 3) for step in body.spacing_mm)
    table = body.rng.uniform(-250, 250)
    origin = (-(nx - 1) / 2 * spacing[2], -(ny - 1) / 2 * spacing[1] - 60, table)
    labels = body.labels
    if flip:
        hu, labels = hu[:, ::-1, ::-1], labels[:, ::-1, ::-1]
        origin = (origin[0] + (nx - 1) * spacing[2], origin[1] + (ny - 1) * spacing[1], table)
    return Phantom(
        hu=np.ascontiguousarray(hu),
        labels=np.ascontiguousarray(labels),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        origin_mm=(round(origin[0], 3), round(origin[1], 3), round(origin[2], 3)),
        direction=(-1.0, -1.0, 1.0) if flip else (1.0, 1.0, 1.0),
    )
