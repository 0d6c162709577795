"""The consensus of several networks as plainly as nnU-Net's own functions allow: everything at full size, in memory."""

from __future__ import annotations

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor


def full_size_probabilities(member, images):
    """Return probabilities ``(K, *S)`` of a network at the size of the scan, its label map, and its label manager.

    Args:
        member: The network.
        images: Files of the scan.
    """
    predictor = nnUNetPredictor(
        device=torch.device("cpu"), allow_tqdm=False, perform_everything_on_device=False, tile_step_size=1.0
    )
    predictor.initialize_from_trained_model_folder(str(member.model), (member.fold,), member.checkpoint)
    predictor.list_of_parameters = [member.weights()]
    plans, configuration, labels = predictor.plans_manager, predictor.configuration_manager, predictor.label_manager
    preprocessor = configuration.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case(list(images), None, plans, configuration, predictor.dataset_json)
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data).float())
    label_map = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, plans, configuration, labels, properties
    )
    spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
    shape = properties["shape_after_cropping_and_before_resampling"]
    current = configuration.spacing if len(configuration.spacing) == 3 else [spacing[0], *configuration.spacing]
    resampled = configuration.resampling_fn_probabilities(logits, shape, current, spacing)
    full = labels.apply_inference_nonlin(np.asarray(resampled)).numpy()
    outside = np.zeros((len(full), *properties["shape_before_cropping"]), np.float32)
    if not labels.has_regions:
        outside[0] = 1
    full = insert_crop_into_image(outside, full, properties["bbox_used_for_cropping"])
    return full.transpose(0, *(1 + axis for axis in plans.transpose_backward)), label_map, labels


def naive_consensus(members, images):
    """Return mean probabilities, label map of the consensus, and those of the members."""
    found = [full_size_probabilities(member, images) for member in members]
    mean = np.mean([probabilities for probabilities, _, _ in found], axis=0)
    labels = np.asarray(found[0][2].convert_probabilities_to_segmentation(mean))
    return mean, labels, [label_map for _, label_map, _ in found]
