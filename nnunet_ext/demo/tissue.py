"""Hounsfield units of the phantoms' tissues, and how they change with the contrast agent."""

import numpy as np

HU: dict[str, float] = {
    "skin": 20,
    "fat": -100,
    "muscle": 55,
    "bone": 420,
    "marrow": 190,
    "disc": 95,
    "canal": 30,
    "lung": -820,
    "gas": -880,
}

# Rounded values of abdominal CT: without contrast, arterial, portal venous and delayed phase.
_PHASES: dict[str, tuple[float, float, float, float]] = {
    "aorta": (45, 310, 165, 125),
    "cava": (40, 70, 150, 125),
    "cortex": (35, 180, 195, 160),
    "medulla": (30, 75, 160, 155),
    "pelvis": (15, 30, 70, 240),
    "liver": (58, 72, 110, 92),
    "spleen": (48, 112, 120, 97),
    "pancreas": (42, 98, 92, 74),
    "wall": (40, 75, 75, 65),
    "gallbladder": (10, 10, 10, 12),
}
EARLIEST_PHASE, LATEST_PHASE = 0.4, 2.6  # earlier, the aorta does not stand out; later, the renal pelvis outshines it


def sample_contrast(rng: np.random.Generator) -> dict[str, float]:
    """Draw the enhancement of one patient.

    Args:
        rng: Generator of random numbers of the patient.

    Returns:
        HU of each tissue that takes up contrast agent: interpolated between the phases, with a few HU of its own.
    """
    phase = rng.uniform(EARLIEST_PHASE, LATEST_PHASE)
    steatosis = rng.uniform(0, 25) if rng.random() < 0.2 else 0.0  # a fatty liver is darker
    values = {
        tissue: float(np.interp(phase, range(4), levels)) * rng.uniform(0.93, 1.07) + rng.uniform(-4, 4)
        for tissue, levels in _PHASES.items()
    }
    values["liver"] -= steatosis
    return values
