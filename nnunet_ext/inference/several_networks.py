"""nnU-Net's predictor with a choice of networks: which ones of a checkpoint predict, and whether they are compared."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch._dynamo import OptimizedModule

from nnunet_ext.inference.case import Model, Prepared
from nnunet_ext.inference.case_agreement import FAILED, NetworksOfCase, agreement_line, summary
from nnunet_ext.inference.checks import TWO_NETWORKS, BadInputError, check_model, check_networks
from nnunet_ext.inference.comparison import why_not_compared
from nnunet_ext.inference.engine_predictor import EnginePredictor
from nnunet_ext.model_sharing.both_networks import average_of, members_of, second_network
from nnunet_ext.model_sharing.choice_of_network import FIRST, NETWORKS, SECOND, joined, weights_of_folds
from nnunet_ext.model_sharing.folders import as_folds, folds_that_predict
from nnunet_ext.model_sharing.pruning import Pruned, load_pruned
from nnunet_ext.training.architecture import check_fit
from nnunet_ext.training.checkpoints import plain_module
from nnunet_ext.training.safe_load import load_checkpoint
from nnunet_ext.training.trusted_classes import trusted_by_environment, trusting


class SeveralNetworks(EnginePredictor):
    """A predictor that chooses networks, and finds out what they agree about while they predict as ever.

    Args:
        arguments: Positional arguments of EnginePredictor, which are those of nnUNetPredictor.
        network: Which networks of each checkpoint predict: ``"1"``, the one that nnU-Net loads; ``"2"``, the second of
            CPS or the student of a mean teacher; ``"both"``, whose probabilities are averaged in each window, before
            folds are averaged as ever.
        agreement: Whether what the networks agree about is recorded of each case.
        min_agreement: Score, 0 to 1, below which cases are listed at the end; implies ``agreement``.
        prune_depth: Depth at which the nested network of a trainer with ANUNet in its name is cut.
        trust_model: With an option: load the model as nnU-Net does, with whatever code is in its checkpoints and plans.
        keywords: Keyword arguments of EnginePredictor: ``engine``, ``precision``, ``skip_background`` and those of
            nnUNetPredictor.

    Attributes:
        agreements: Case -> record of its agreement, of all cases that were predicted.

    Raises:
        ValueError: If there is no such network, or the score is out of range.
    """

    network: Any
    label_manager: Any

    def __init__(
        self,
        *arguments: Any,
        network: str = FIRST,
        agreement: bool = False,
        min_agreement: float | None = None,
        prune_depth: int | None = None,
        trust_model: bool = False,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        if network not in NETWORKS:
            raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {network!r}")
        if min_agreement is not None and not 0 <= min_agreement <= 1:
            raise ValueError(f"min_agreement must lie between 0 and 1, got {min_agreement}")
        self.chosen_network, self.min_agreement, self.prune_depth = network, min_agreement, prune_depth
        self.trust_model = trust_model or trusted_by_environment()
        self.agreement = agreement or min_agreement is not None
        self.agreements: dict[str, dict[str, Any]] = {}
        self._network_names: list[str] = []
        self._case: NetworksOfCase | None = None

    @property
    def has_options(self) -> bool:
        """Whether anything differs from nnU-Net's predictor."""
        return self.agreement or self.prune_depth is not None or self.chosen_network != FIRST or self.runs_windows

    @property
    def network_names(self) -> list[str]:
        """What each network that predicts is called."""
        number = len(self.list_of_parameters or ()) * len(members_of(self.network))
        return self._network_names if len(self._network_names) == number else [f"{n}" for n in range(1, number + 1)]

    def initialize_from_trained_model_folder(  # noqa: D102 - documented by nnU-Net
        self,
        model_training_output_dir: str,
        use_folds: tuple[int | str, ...] | None,
        checkpoint_name: str = "checkpoint_final.pth",
    ) -> None:
        call = (model_training_output_dir, use_folds, checkpoint_name)
        if not self.has_options:
            super().initialize_from_trained_model_folder(*call)
            return
        self.model_folder = model = Path(model_training_output_dir)
        folds = (use_folds,) if isinstance(use_folds, str) else use_folds
        try:
            self._network_names = check_networks(
                model, as_folds(folds), checkpoint_name, self.chosen_network, self.agreement, self.trust_model
            )
            if self.prune_depth is None:
                check_model(model, as_folds(folds), checkpoint_name, self.trust_model)
                with trusting(self.trust_model):
                    super().initialize_from_trained_model_folder(*call)
                self._take_networks(model, as_folds(folds), checkpoint_name)
            else:
                self._take_pruned(
                    load_pruned(model, folds, checkpoint_name, self.prune_depth, self.trust_model, self.chosen_network)
                )
        except (ValueError, FileNotFoundError, RuntimeError) as error:
            raise BadInputError(str(error)) from error

    def _take_networks(self, model: Path, folds: Sequence[int | str] | None, checkpoint: str) -> None:
        """Let the chosen networks of a model that nnU-Net has loaded predict."""
        if self.chosen_network == FIRST:
            return
        found = folds_that_predict(model, folds, checkpoint)
        compiled, first = isinstance(self.network, OptimizedModule), plain_module(self.network)
        content = load_checkpoint(model / f"fold_{found[0]}" / checkpoint, True, trusted=self.trust_model or None)
        configuration = content["init_args"]["configuration"]
        with trusting(self.trust_model):
            second = second_network(self.plans_manager.plans, configuration, self.dataset_json, first)
        networks = [second] if self.chosen_network == SECOND else [first, second]
        weights = weights_of_folds(model, found, checkpoint, self.chosen_network, self.trust_model or None)
        for fold, of_fold in zip(found, weights, strict=True):
            for network, own in zip(networks, of_fold, strict=True):
                check_fit(network, own, model / f"fold_{fold}" / checkpoint)
        self.network = average_of(networks, self.label_manager.has_regions)
        self.list_of_parameters = [joined(of_fold) for of_fold in weights]
        self.network.load_state_dict(self.list_of_parameters[0])
        if compiled:
            self.network = torch.compile(self.network)

    def _take_pruned(self, pruned: Pruned) -> None:
        manager = PlansManager(pruned.plans)
        self.manual_initialization(
            pruned.network,
            manager,
            manager.get_configuration(pruned.configuration),
            pruned.parameters,
            pruned.dataset_json,
            pruned.trainer,
            pruned.mirroring_axes,
        )

    def check_agreement(self) -> None:
        """Check that there is something to compare, for models that were set otherwise than from a folder.

        Raises:
            BadInputError: If not.
        """
        if not self.agreement:
            return
        names = self.network_names
        if len(names) < 2:
            raise BadInputError(f"agreement needs two networks or more, got {len(names)}; {TWO_NETWORKS}")
        reason = why_not_compared(self.label_manager)
        if reason is not None:
            raise BadInputError(f"agreement is not defined for this model: {reason}; predict without agreement")

    def predict_sliding_window_return_logits(self, input_image: torch.Tensor) -> torch.Tensor:
        """Predict with the network as it is now, as nnU-Net does; what it says is kept where it is to be compared."""
        if self._case is None:
            plain: torch.Tensor = super().predict_sliding_window_return_logits(input_image)
            return plain
        members = members_of(self.network)
        if len(members) == 1:
            return self._case.keep(super().predict_sliding_window_return_logits(input_image))
        average: Any = plain_module(self.network)
        labels = self.label_manager
        channels = int(labels.num_segmentation_heads)
        # the average and what each network says itself go through the windows at once, as channels of one output
        self.label_manager, average.apart = SimpleNamespace(num_segmentation_heads=channels * (1 + len(members))), True
        try:
            logits: torch.Tensor = super().predict_sliding_window_return_logits(input_image)
        finally:
            self.label_manager, average.apart = labels, False
        mean, *own = logits.split(channels)
        for one in own:
            self._case.keep(one)
        return mean.clone()  # which does not hold the memory of all

    @contextlib.contextmanager
    def comparing(self, prepared: Prepared, model: Model, folder: Path | None, device: torch.device) -> Iterator[None]:
        """Keep what each network says of a case within the block, then compare them, and complete its record.

        Args:
            prepared: The case.
            model: Plans by which it was prepared.
            folder: On whose disk logits lie meanwhile; None takes that of temporary files.
            device: Device to compare on.

        Raises:
            DiskFullError: If there is no room for the logits.
        """
        if not self.agreement:
            yield
            return
        folder = Path(tempfile.gettempdir()) if folder is None else folder
        with NetworksOfCase(prepared, model, folder) as self._case:
            case = self._case
            try:
                yield
            finally:
                self._case = None
            start, seconds = time.perf_counter(), prepared.record["seconds"]
            try:
                prepared.record["agreement"] = case.agreement(self.network_names, device)
            except Exception as error:  # the prediction is there, and is worth more than its score
                prepared.record[FAILED] = str(error).strip() or type(error).__name__
            seconds["network"] -= case.seconds
            seconds["agreement"] = case.seconds + time.perf_counter() - start

    def say_agreement(self, name: str, record: Mapping[str, Any]) -> None:
        """Print what the networks agree about in a case, and remember it."""
        if self.agreement:
            if "agreement" in record:
                self.agreements[name] = record["agreement"]
            print(agreement_line(name, record))

    def say_least_agreement(self, records: Mapping[str, Any], earlier: Sequence[str], asked: Sequence[str]) -> None:
        """Print which cases the networks agree too little about.

        Args:
            records: Records of cases that are done.
            earlier: Cases that were done before.
            asked: Cases that this run was asked for, those among them.
        """
        if self.agreement:
            own = {case: records[case] for case in asked if case in records}
            lines = summary(own, earlier, self.network_names, self.min_agreement)
            print("\n".join(["", *lines]) if lines else "", end="\n" if lines else "")
