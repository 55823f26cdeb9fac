"""The report of a sweep: one HTML page, and its tables and figures as files for a paper.

    lorae report lorae-results --sweep demo --out report/

Everything is computed from the storage: trials.parquet, and the stored logits of the members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import lorae
from analysis.columns import all_metrics
from analysis.data import Trials, load_trials
from analysis.differences import (
    against_rivals,
    ensembling,
    regularising,
    same_compute,
    same_parameters,
    same_predictions,
    souping,
)
from analysis.example_texts import tasks_of
from analysis.examples import example_tables
from analysis.figures import MEMBERS_METRICS, metric_against_members, reliability_diagram
from analysis.figures_scores import score_figures
from analysis.figures_setting import metric_against_setting, numeric_settings
from analysis.figures_sweep import diversity_against_gain, heat_maps, quality_against_cost
from analysis.gain import correlations, with_gains
from analysis.generation import content, writes_texts
from analysis.page import Section, page
from analysis.plotting import panels, save
from analysis.published import beside
from analysis.render import save_table
from analysis.rows import fill_command, missing_text, provenance
from analysis.summary import summary
from analysis.table import comparison
from analysis.weights import MAX_REPORT_ENTRIES, weight_table, with_updates
from lorae.results import COST
from lorae.store.names import member_folder
from lorae.tasks.base import Task
from lorae.untrusted import text_if_any

SHOWN = ("lorae", "torch", "transformers", "device", "date")  # provenance of members' training that is shown
SUMMARISED = ("ensembling", "regularising", "rivals")  # differences
MAX_PANELS = 8  # with figures; the tables are always complete


def write_report(
    storage: str,
    sweep: str,
    out: Path,
    warnings: Sequence[str] = (),
    allow_missing: bool = False,
    margins: Mapping[str, float] = MappingProxyType({}),
    tasks: Sequence[Task] = (),
    data_root: Path | None = None,
) -> Path:
    """Write `index.html` and the tables and figures beside it into `out`; returns the page's path.

    Args:
        storage: path or URI of the storage.
        warnings: shown on top, such as what an audit found.
        allow_missing: report an incomplete sweep, with what it lacks among the warnings.
        margins: the largest differences that do not matter, by metric, in place of `columns.MARGINS`.
        tasks: of the user, whose texts are shown if they are the sweep's.
        data_root: folder with copies of datasets, whose texts are shown too.
    Raises:
        ValueError: as `load_trials`.
    """
    trials = load_trials(storage, sweep, allow_missing, margins).with_stored_ood()
    if trials.missing:
        lacking = missing_text(sweep, trials.missing, fill_command(trials.rows[0]))
        warnings = [*warnings, lacking]
    sections = report_sections(trials, [*tasks, *tasks_of(trials, data_root)])
    out.mkdir(parents=True, exist_ok=True)
    for section in sections:
        for table in section.tables:
            save_table(table, out)
        for plot in section.plots:
            save(plot, out)
    target = out / "index.html"
    told = facts(trials, storage)
    content = page(f"Sweep {sweep}", told, warnings, sections, report_summary(sections))
    target.write_text(content, encoding="utf-8")
    return target


def report_summary(sections: Sequence[Section]) -> list[str]:
    """Three sentences from the report's first table and its differences."""
    tables = [table for section in sections for table in section.tables]
    changes = [table for table in tables if table.name in SUMMARISED and table.blocks]
    return summary(tables[0], changes) if tables else []


def report_sections(trials: Trials, tasks: Sequence[Task] = ()) -> list[Section]:
    """What the report says, in order; sections without content are left out."""
    if writes_texts(trials):
        found = content(trials)
        return [
            *(Section(table.title, tables=[table]) for table in found.tables),
            Section("Figures", plots=found.plots),
        ]
    comparisons = (
        against_rivals, ensembling, souping, regularising, same_parameters, same_compute, same_predictions,
    )  # fmt: skip
    changes = [table for make in comparisons if (table := make(trials)).blocks]
    drawn = panels(trials)
    size, calibration, scores = [], [], []
    for panel in drawn[:MAX_PANELS]:
        size += [metric_against_members(trials, panel, metric) for metric in MEMBERS_METRICS]
    classes = trials.of_classes
    for panel in panels(classes)[:MAX_PANELS]:
        calibration += [reliability_diagram(classes, panel, line) for line in panel.lines]
        scores += score_figures(classes, panel)
    settings = [
        plot
        for setting in numeric_settings(trials)
        for metric in MEMBERS_METRICS
        for plot in metric_against_setting(trials, setting, metric)
    ]
    first = f"Drawn are the first {MAX_PANELS} of {len(drawn)} settings." if len(drawn) > MAX_PANELS else ""
    diversity, gains = [], []
    if classes.rows:
        measured, notes = with_updates(with_gains(classes), max_entries=MAX_REPORT_ENTRIES)
        diversity = [t for t in (weight_table(measured, notes), correlations(measured)) if t.blocks]
        gains = diversity_against_gain(measured)
    whole = comparison(trials, all_metrics(trials), tuple(COST), name="all-metrics")
    sections = [
        Section("Comparison", tables=[comparison(trials)]),
        *(Section(table.title, tables=[table]) for table in changes),
        Section("Ensemble size", first, plots=size),
        Section("Calibration", first, plots=calibration),
        Section("Selective prediction and OOD detection", first, plots=scores),
        Section("Examples worth looking at", tables=example_tables(trials, tasks)),
        Section("Diversity and gain", tables=diversity, plots=gains),
        Section("Quality and cost", plots=quality_against_cost(trials)),
        Section("Settings", plots=settings),
        Section("Two factors", plots=heat_maps(trials)),
        *(Section(table.title, tables=[table]) for table in beside(trials)),
        Section("Every metric", tables=[whole], folded=True),
    ]
    return [section for section in sections if section.tables or section.plots]


def facts(trials: Trials, storage: str) -> dict[str, str]:
    """Where the numbers come from: command, commit, date and versions, each distinct value once."""
    records = [provenance(row) for row in trials.rows]
    found = {"storage": storage, "rows": str(len(trials.rows))}
    for name in ("command", "commit"):
        found[name] = ", ".join(dict.fromkeys(str(r[name]) for r in records if name in r)) or "unknown"
    versions = _member_provenance(trials)
    for name in SHOWN:
        found[f"training: {name}"] = ", ".join(dict.fromkeys(filter(None, (v.get(name) for v in versions))))
    return {name: value for name, value in found.items() if value} | {
        "analysed with lorae": lorae.__version__
    }


def _member_provenance(trials: Trials) -> list[dict[str, str]]:
    """What each row's first member recorded about its training."""
    members = dict.fromkeys(row["member_ids"][0] for row in trials.rows if row["member_ids"])
    found = []
    for member in members:
        try:
            record = trials.store.record(
                member_folder(member), {"provenance": dict.fromkeys(SHOWN, text_if_any)}
            )
        except ValueError:  # a copy without members still has its tables
            continue
        found.append(record["provenance"])
    return found
