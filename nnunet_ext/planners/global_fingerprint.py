"""The fingerprint extractor that also looks at unlabelled images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.paths import nnUNet_preprocessed
from tqdm import tqdm

from nnunet_ext.data.dataset_json import check_raw_dataset
from nnunet_ext.data.failures import LABELLED, UNLABELLED, record
from nnunet_ext.data.parts import Part
from nnunet_ext.data.unlabeled_only import labelled_cases
from nnunet_ext.fingerprints import cases as cases_of
from nnunet_ext.fingerprints.cases import CaseTable, Provenance
from nnunet_ext.fingerprints.outliers import find_outliers, format_outliers


class GlobalIntensityFingerprintExtractor(DatasetFingerprintExtractor):
    """Adds the intensities of all voxels of labelled and unlabelled images to nnU-Net's fingerprint.

    3D-CPS normalises CT by statistics over all voxels instead of foreground ones. nnU-Net's own keys stay as nnU-Net
    computes them; where the dataset has no label, they hold the global values. A fingerprint that is there already is
    completed. What was found of each case is kept in ``fingerprint_cases/``: only new and changed scans are read.
    """

    def __init__(self, dataset_name_or_id: str | int, num_processes: int = 8, verbose: bool = False) -> None:
        check_raw_dataset(dataset_name_or_id)
        super().__init__(dataset_name_or_id, num_processes, verbose)
        self.labelled = labelled_cases(self.dataset)

    def run(self, overwrite_existing: bool = False) -> dict[str, Any]:
        """Write ``dataset_fingerprint.json`` and return it.

        Args:
            overwrite_existing: Start over (``--clean``) instead of completing what is there.

        Raises:
            BusyError: If another process makes it.
            DiskFullError: If there is no room; what was found is kept.
            FileNotFoundError: If the dataset has no case at all.
            ValueError: If cases contradict each other, or no image can be opened.
            RuntimeError: If no case could be read.
        """
        preprocessed = Path(str(nnUNet_preprocessed)) / self.dataset_name
        preprocessed.mkdir(parents=True, exist_ok=True)
        table = cases_of.case_table(self.dataset_name, self.dataset)
        with table.alone():
            return self._extract(table, preprocessed / cases_of.FILE, overwrite_existing)

    def keep_cases(self, part: Part) -> tuple[CaseTable, int]:
        """Look at the new and changed cases of a part, and keep what a fingerprint needs to know of them.

        The fingerprint itself is not touched; :meth:`run` makes it of what was kept.

        Args:
            part: Which cases; parts may be done at the same time, by machines that share the folder.

        Returns:
            The table of the cases, with the failures of this part, and how many cases were read.

        Raises:
            BusyError: If another process reads the same part, or makes the fingerprint.
            DiskFullError: If there is no room; what was found is kept.
            FileNotFoundError: If the dataset has no case at all.
            ValueError: If cases contradict each other, or no image can be opened.
        """
        table = cases_of.case_table(self.dataset_name, self.dataset)
        with table.alone(part):
            earlier = cases_of.read_fingerprint(table.folder.parent / cases_of.FILE)
            samples = self._samples(table, Provenance(table.folder), earlier)
            return table, cases_of.read_cases(table, self.num_processes, samples, self.show_progress_bar, part)

    def _samples(self, table: CaseTable, provenance: Provenance, earlier: dict[str, Any]) -> int | None:
        """Return how many voxels nnU-Net's own keys draw from a case, None where they need not be made."""
        if not table.labelled or provenance.fits(table, earlier):
            return None
        return self._samples_per_case()

    def _samples_per_case(self) -> int:
        return int(self.num_foreground_voxels_for_intensitystats // max(1, len(self.labelled)))

    def _extract(self, table: CaseTable, target: Path, overwrite_existing: bool) -> dict[str, Any]:
        if overwrite_existing:
            # The fingerprint too: continued after a kill, it would pass for one of the present files.
            shutil.rmtree(table.folder, ignore_errors=True)
            target.unlink(missing_ok=True)
        earlier = cases_of.read_fingerprint(target)
        provenance = Provenance(table.folder)
        samples = self._samples(table, provenance, earlier)
        number_read = cases_of.read_cases(table, self.num_processes, samples, self.show_progress_bar)
        if samples is None and table.labelled and not provenance.fits(table, earlier):
            # A labelled case that could not be read last time can be read now.
            samples = self._samples_per_case()
            number_read += cases_of.read_cases(table, self.num_processes, samples, self.show_progress_bar)
        if samples is not None and earlier:
            tqdm.write("nnU-Net's foreground statistics were missing or of other labelled cases: computed anew.")
        record(table.failures)
        fingerprint = dict(earlier)
        if samples is not None:
            fingerprint |= cases_of.stock_properties(table, samples)
        fingerprint |= cases_of.global_properties(table)
        cases_of.write_fingerprint(fingerprint, target)
        provenance.note(table)
        cases_of.remove_samples(table)
        self._print_summary(table, number_read)
        return fingerprint

    def _print_summary(self, table: CaseTable, number_read: int) -> None:
        labelled, unlabelled = table.found[LABELLED], table.found[UNLABELLED]
        tqdm.write(
            f"Global intensity statistics over {len(labelled)} labelled and {len(unlabelled)} unlabelled cases; "
            f"{number_read} read now, {len(table.failures)} failed."
        )
        warnings = format_outliers(find_outliers(labelled, unlabelled, self.dataset_json))
        if warnings:
            tqdm.write(warnings)
