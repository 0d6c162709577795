"""Dice of mask propagation in 2D: what it makes of a coarse prediction, and of a few true slices; narrow networks.

    python benchmarks/propagation.py run [--only NAME ...] [--jobs 2]
        train and evaluate what is not done yet, in this order; resumable
    python benchmarks/propagation.py report
        tables of what is done, differences, and what is owed

Tasks, plans and 2D models are those of reference_2d.py (whose runs of CPS are trained first where they are not yet),
3D models those of unlabelled.py. A propagation network is trained on the few labelled scans; then, on test cases that
nothing was chosen with,

refine    2D CPS alone on all slices; the same on every fifth slice, the largest of each class propagated; and with all
          of these slices as references; beside them the record of the 3D model of the same labels
annotate  1, 2, 3, 5, 10 and 20 % of the slices given as they truly are, the others by propagation, by the nearest
          slice, and by shapes interpolated between slices (signed distance), all of the same slices
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import accuracy
import numpy as np
import reference_2d
from _sparse_baselines import interpolated_shapes, nearest_slice
from _unlabelled_runs import TASKS
from unlabelled import done_file, epoch_seconds, one, run_all

from nnunet_ext.files import write_json
