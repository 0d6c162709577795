"""A preprocessed dataset, small enough to train on in a unit test, made without the planning commands."""

import json

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from reference.architecture import architecture

from nnunet_ext.data import unlabeled_store as store
from nnunet_ext.data.signature import digest, plans_signature

NAME = "Dataset997_Tiny"
PLANS = "TinyPlans"
# Settings of the parts with 2D networks that make these small; they take patches of multiples of 16.
NARROW = {
    "TransUNetPart": {
        "transunet_stem_channels": 8,
        "transunet_channels": (16, 16, 32),
        "transunet_blocks": (1, 1, 1),
        "transunet_groups": 4,
        "transunet_embed_dim": 16,
        "transunet_depth": 1,
        "transunet_num_heads": 2,
        "transunet_bridge_channels": 16,
        "transunet_decoder_channels": (8, 8, 8, 4),
    },
    "DeepLabV3PlusPart": {"deeplab_encoder": "tu-test_efficientnet", "deeplab_decoder_channels": 8},
    "PropagationPart": {
        "propagation_key_stages": (4, 4, 8),
        "propagation_key_blocks": (1, 1, 1),
        "propagation_value_stages": (4, 4, 8),
        "propagation_value_blocks": (1, 1, 1),
        "propagation_key_dim": 8,
        "propagation_value_dim": 16,
        "propagation_decoder_channels": (16, 8, 8),
    },
}


def narrow_trainers(**trainers):
    """Return a module that users could write: a subclass of one of ours with narrow networks by each name."""
    lines = ["from nnunet_ext.trainers import find_trainer"]
    for name, base in trainers.items():
        lines += ["", "", f'class {name}(find_trainer("{base}")):']
        settings = [item for part, values in NARROW.items() if part[:-4] in base for item in values.items()]
        lines += [f"    {setting} = {value!r}" for setting, value in settings]
    return "\n".join(lines) + "\n"


def _configuration(name, dim):
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    return {
        "data_identifier": f"{PLANS}_{name}",
        "preprocessor_name": "SemiSupervisedPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 12, 16][-dim:] if dim == 3 else [16, 16],
        "median_image_size_in_voxels": [16.0] * dim,
        "spacing": [1.0] * dim,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling,
        "architecture": architecture(dim, [4, 6, 8]),
        "batch_dice": dim == 2,
    }


def plans():
    return {
        "dataset_name": NAME,
        "plans_name": PLANS,
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [18, 16, 18],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "2d": _configuration("2d", 2),
            "3d_fullres": _configuration("3d_fullres", 3),
            "3d_lowres": _configuration("3d_lowres", 3) | {"next_stage": "3d_cascade_fullres"},
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
        "experiment_planner_used": "SemiSupervisedPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
    }


def dataset_json(kind="labels"):
    labels = {"background": 0, "left": 1, "right": 2}
    extra = {}
    if kind in ("regions", "regions_ignore"):
        labels = {"background": 0, "whole": [1, 2], "right": 2}
        extra = {"regions_class_order": [1, 2]}
    if kind.endswith("ignore"):
        labels["ignore"] = 3
    return {
        "channel_names": {"0": "MRI"},
        "labels": labels,
        "numTraining": 5,
        "file_ending": ".nii.gz",
        "unlabeled": {"private_name": {"images": ["/somewhere/patient.nii.gz"]}},
        **extra,
    }


def image_and_label(rng, shape=(18, 16, 18), ignore=False):
    """Two boxes that are brighter than the noise around them."""
    label = np.zeros((1, *shape), np.int16)
    for value, low in ((1, 2), (2, 10)):
        start = [low + int(rng.integers(0, 3)), 4 + int(rng.integers(0, 4)), 4 + int(rng.integers(0, 4))]
        label[(0, *(slice(s, s + 4) for s in start))] = value
    image = rng.normal(0, 0.3, (1, *shape)).astype(np.float32) + label
    if ignore:
        label[:, :, :3] = 3
    return image, label


def make(root, kind="labels", configurations=("3d_fullres", "2d", "3d_lowres"), unlabelled=3):
    """Write the preprocessed dataset under ``root`` and return its folder."""
    folder = root / "preprocessed" / NAME
    folder.mkdir(parents=True)
    (root / "raw" / NAME).mkdir(parents=True)
    (root / "results").mkdir()
    all_plans = plans()
    (folder / f"{PLANS}.json").write_text(json.dumps(all_plans))
    (folder / "dataset.json").write_text(json.dumps(dataset_json(kind)))
    (folder / "dataset_fingerprint.json").write_text("{}")
    manager = PlansManager(all_plans)
    labels = manager.get_label_manager(dataset_json(kind))
    wanted = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    wanted = [tuple(w) if isinstance(w, (list, tuple)) else w for w in wanted]
    if labels.has_ignore_label:
        wanted.append((-1, *labels.all_labels))
    rng = np.random.default_rng(0)
    for configuration in configurations:
        target = folder / f"{PLANS}_{configuration}"
        target.mkdir()
        for i in range(5):
            image, label = image_and_label(rng, ignore=labels.has_ignore_label)
            locations = {w: np.argwhere(np.isin(label, w)) for w in wanted}
            nnUNetDatasetBlosc2.save_case(
                image,
                label,
                {"class_locations": locations},
                str(target / f"case_{i}"),
                chunks=(1, 18, 16, 18),
                blocks=(1, 18, 16, 18),
            )
        made = manager.get_configuration(configuration)
        for i in range(unlabelled):
            image, _ = image_and_label(rng)
            save_unlabelled(store.unlabeled_folder(folder, f"{PLANS}_{configuration}"), f"u_{i}", image, manager, made)
    return folder


def save_unlabelled(folder, name, image, manager, configuration, valid=None):
    signature = plans_signature(manager, configuration)
    metadata = {"plans_digest": digest(signature), "hidden_label": False}
    valid = np.ones((1, *image.shape[1:]), np.uint8) if valid is None else valid
    store.save_case(folder, name, image, valid, metadata, tuple(configuration.patch_size))
