"""Tables and figures of a sweep as artifacts of its run in MLflow, computed from the storage."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from jobs.mlflow_runs import Experiment
from jobs.tracking import storage_id, with_experiment
from lorae.store.store import Store
from lorae.uris import shown

LOG = logging.getLogger("lorae")
PLACE = "report"  # folder of the artifacts
FILES = "artifacts"  # tag of a run that has them
NUM_REQUESTS = 50  # sets the deadline: as long as for recording this many trials, see `with_experiment`


def record_files(store: Store, sweep: str, tracking_uri: str) -> bool:
    """Keep the comparison table, the figures and the reliability diagrams with a sweep's run, once.

    Returns:
        Whether they were written now.
    Raises:
        TrackingError: MLflow cannot be reached or written.
    """
    place = {"storage_id": storage_id(store.storage), "sweep": sweep}

    def find(experiment: Experiment) -> list[str]:
        found = [run for run in experiment.runs(place) if "digest" in run.data.tags]
        parents = [run for run in found if "trial_id" not in run.data.tags and FILES not in run.data.tags]
        return [run.info.run_id for run in parents]

    parents = with_experiment(store, tracking_uri, 0, find)
    with tempfile.TemporaryDirectory() as folder:
        if not parents or not _write(store, sweep, Path(folder)):
            return False

        def log(experiment: Experiment) -> None:
            for run_id in parents:
                experiment.log_files(run_id, folder, PLACE)
                experiment.tag(run_id, {FILES: PLACE})

        with_experiment(store, tracking_uri, NUM_REQUESTS, log)
    return True


def _write(store: Store, sweep: str, folder: Path) -> bool:
    """Write what can be computed; whether there are any files. Failed trials and missing seeds have none."""
    from analysis.data import load_trials  # late: matplotlib takes seconds
    from analysis.figures import standard_figures
    from analysis.plotting import save
    from analysis.render import save_table
    from analysis.table import comparison

    try:
        trials = load_trials(store.storage.uri, sweep, allow_missing=True)
        save_table(comparison(trials), folder)
        for plot in standard_figures(trials.of_classes):
            save(plot, folder)
    except ValueError as error:
        LOG.info("MLflow has not all tables and figures of sweep %s: %s", sweep, shown(str(error)))
    return any(folder.iterdir())
