"""What each command of `lorae` does with its arguments; returns its exit code."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorae.engine.ensembles import Ensemble


def sweep(arguments: argparse.Namespace) -> int:
    """Plan a sweep, or run it."""
    from jobs.driver import run_sweep
    from jobs.request import read_request
    from jobs.zero import Zero
    from lorae.uris import remember

    if arguments.zero is None and (arguments.offload or arguments.hpz):
        raise ValueError("--offload and --hpz say how --zero K spreads a backbone; add --zero K")
    if arguments.zero is not None and arguments.local:
        raise ValueError("--zero needs several workers, --local is one process; leave one of them out")
    zero = None if arguments.zero is None else Zero(arguments.zero, arguments.offload, arguments.hpz)
    where = ["--local"] if arguments.local else []
    where += ["--address", arguments.address] if arguments.address else []
    where += ["--tracking-uri", arguments.tracking_uri] if arguments.tracking_uri else []
    where += ["--single-driver"] if arguments.single_driver else []
    remember(arguments.tracking_uri or "")
    if sys.stderr.isatty() and not arguments.json:  # a plan takes seconds: data and models are looked at
        print(f"lorae: reading {arguments.file}, its data and its models", file=sys.stderr, flush=True)
    request = read_request(
        arguments.file,
        arguments.set,
        arguments.storage,
        arguments.data_root,
        smoke=arguments.smoke,
        recompute=arguments.recompute,
        zero=zero,
        where=where,
    )
    return run_sweep(
        request,
        dry_run=arguments.dry_run,
        as_json=arguments.json,
        local=arguments.local,
        address=arguments.address,
        tracking_uri=arguments.tracking_uri,
        single_driver=arguments.single_driver,
    )


def check(arguments: argparse.Namespace) -> int:
    """All faults of a sweep file, its data and its models."""
    from jobs.check import run_check

    return run_check(arguments.file, arguments.set, arguments.data_root, arguments.smoke)


def predict(arguments: argparse.Namespace) -> int:
    """Answers to given texts; or predictions of stored members on one more task, or their removal."""
    if arguments.task or arguments.remove:
        for name in ("trial", "out", "classes", "column", "json", "stop"):
            if getattr(arguments, name):
                raise ValueError(f"--{name} belongs to --text and --file; leave it out")
    if arguments.remove:
        from jobs.predict import remove_predictions

        for name, num in remove_predictions(arguments.storage, arguments.remove).items():
            print(f"{name}: removed from {num} entries")
        return 0
    if arguments.task:
        return _predict_task(arguments)
    from jobs.answers import read_inputs, run_answers

    inputs = arguments.text or read_inputs(arguments.file, arguments.column)
    ensemble = _ensemble(arguments, backbone=arguments.backbone)
    run_answers(ensemble, inputs, arguments.out, arguments.coverage, arguments.json, arguments.stop)
    return 0


def _predict_task(arguments: argparse.Namespace) -> int:
    from jobs.predict import read_task, run_predict

    num = run_predict(
        arguments.storage,
        arguments.task,
        arguments.sweep,
        arguments.data_root,
        arguments.backbone,
        arguments.single_driver,
    )
    print(
        f"{num} members predicted; see `lorae report {arguments.storage}`: OOD detection; to undo it: "
        f"lorae predict {arguments.storage} --remove {read_task(arguments.task).name}"
    )
    return 0


def plan(arguments: argparse.Namespace) -> int:
    """What a sweep would take on devices that are not there."""
    from jobs.devices import local_devices
    from jobs.plan_text import show_plan
    from jobs.request import read_request
    from jobs.search import search_text
    from jobs.simulate import simulated_devices
    from lorae.planning.plan import make_plan
    from lorae.store.store import Store

    if not arguments.simulate and (arguments.gpus is not None or arguments.gpu):
        raise ValueError("--gpus and --gpu say which GPUs to simulate; add --simulate")
    request = read_request(arguments.file, arguments.set, arguments.storage, arguments.data_root)
    simulated = simulated_devices(arguments.gpus, arguments.gpu) if arguments.simulate else None
    plan = make_plan(request.sweep, Store(request.storage), simulated or local_devices())
    show_plan(plan, arguments.json, search_text(request.sweep, plan), simulated)
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """Whether this machine, storage and access are fit."""
    from jobs.doctor import run_doctor

    return run_doctor(arguments.storage, arguments.data_root)


def rebuild(arguments: argparse.Namespace) -> int:
    """The MLflow runs once more, from Parquet."""
    from jobs import tracking
    from jobs.tracking_files import record_files
    from lorae.store.store import Store

    store = Store(arguments.storage)
    uri = arguments.tracking_uri or tracking.default_uri(store)
    for sweep, counts in tracking.rebuild(store, uri).items():
        record_files(store, sweep, uri)
        print(f"{sweep}: {counts.written} runs")
    return 0


def audit(arguments: argparse.Namespace) -> int:
    """Whether stored numbers are what they claim to be."""
    from analysis.archive import opened
    from analysis.audit import audit, text

    with opened(arguments.storage) as storage:
        findings = audit(storage, arguments.sweep)
    print(text(findings))
    return 1 if any(f.status == "failed" for f in findings) else 0


def report(arguments: argparse.Namespace) -> int:
    """One HTML page of a sweep."""
    from analysis.archive import opened
    from analysis.audit import audit
    from analysis.columns import margins
    from analysis.report import write_report
    from jobs.predict import read_task
    from lorae.lookup import only_sweep
    from lorae.store.store import Store

    chosen = margins(arguments.margin)
    data_root = Path(arguments.data_root) if arguments.data_root else None
    with opened(arguments.storage) as storage:
        sweep = arguments.sweep or only_sweep(Store(storage))
        failed = [f for f in audit(storage, sweep) if f.status == "failed"]
        warnings = [f"{f.check}: {f.where}: {f.what}" for f in failed]
        target = write_report(
            storage,
            sweep,
            Path(arguments.out),
            warnings,
            arguments.allow_missing,
            chosen,
            tasks=[read_task(text).located(data_root) for text in arguments.task],
            data_root=data_root,
        )
    print(target)
    return 0


def table(arguments: argparse.Namespace) -> int:
    """Tables and figures of a sweep, or an analysis by name."""
    from jobs.tables import run_table

    return run_table(arguments.words)


def size(arguments: argparse.Namespace) -> int:
    """How many members are worth training."""
    from analysis.archive import opened
    from analysis.size import check_margin, write_sizes
    from lorae.lookup import only_sweep
    from lorae.store.store import Store

    check_margin(arguments.margin)
    with opened(arguments.storage) as storage:
        sweep = arguments.sweep or only_sweep(Store(storage))
        print(write_sizes(storage, sweep, arguments.margin, arguments.out, arguments.allow_missing))
    return 0


def landscape(arguments: argparse.Namespace) -> int:
    """The loss between the members of a stored ensemble."""
    from jobs.landscape import run_landscape

    found = run_landscape(
        arguments.storage,
        arguments.task,
        trial=arguments.trial,
        sweep=arguments.sweep,
        data_root=arguments.data_root,
        backbone=arguments.backbone,
        num_line=arguments.points,
        num_side=arguments.side,
        out=arguments.out,
    )
    print("\n".join(found))
    return 0


def export(arguments: argparse.Namespace) -> int:
    """An ensemble as a folder of PEFT adapters; or one member."""
    from jobs.export import export_member
    from lorae.lookup import trials_of
    from lorae.store.store import Store

    words = [arguments.storage, *arguments.words] if arguments.storage else arguments.words
    if len(words) != 3:
        raise ValueError("export takes a storage, an id and a folder; write lorae export STORAGE ID DIR")
    storage, what, folder = words
    store = Store(storage)
    if any(name.startswith(what) for name in trials_of(store)):
        from jobs.export_ensemble import export_ensemble
        from lorae.lookup import find_trial

        path = export_ensemble(store, find_trial(store, what), folder)
        print(f"lorae: wrote {path}; README.md there says how to load")
        return 0
    print(f"lorae: wrote {export_member(storage, what, folder)}")
    return 0


def serve(arguments: argparse.Namespace) -> int:
    """An ensemble as an HTTP endpoint."""
    from jobs.serve import run_server

    run_server(_classifier(arguments), arguments.host, arguments.port)
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Whether an endpoint serves the stored members."""
    from jobs.answers import read_inputs
    from jobs.served import verify

    inputs = arguments.text or read_inputs(arguments.file, None)
    found = verify(arguments.url, _classifier(arguments), inputs, arguments.tolerance)
    print("\n".join(map(str, found)))
    return 1 if any(finding.is_off for finding in found) else 0


def _ensemble(arguments: argparse.Namespace, **where: Any) -> Ensemble:
    """The ensemble that a command line names."""
    from lorae.engine.ensembles import Ensemble

    classes = arguments.classes.split(",") if arguments.classes else None
    return Ensemble.load(arguments.storage, arguments.trial, sweep=arguments.sweep, classes=classes, **where)


def _classifier(arguments: argparse.Namespace) -> Ensemble:
    """The same, refused if its members write texts."""
    ensemble = _ensemble(arguments)
    ensemble.check_writes(False)
    return ensemble


def bench_analysis(arguments: argparse.Namespace) -> int:
    """Speed and memory of metrics and tables."""
    import json

    from jobs.bench.analysis import measure, text

    found = measure(arguments.examples)
    print(json.dumps(found, indent=1) if arguments.json else text(found))
    return 0


def bench_verdicts(arguments: argparse.Namespace) -> int:
    """Error rates of verdicts, by simulation."""
    import json

    from jobs.bench.verdicts import measure, text

    found = measure(arguments.test_sets)
    print(json.dumps(found, indent=1) if arguments.json else text(found))
    return 0


def bench(arguments: argparse.Namespace) -> int:
    """Speed and memory of training and prediction."""
    import importlib
    import json

    from jobs.bench.setting import setting

    name = "everything" if arguments.part == "all" else arguments.part
    part = importlib.import_module(f"jobs.bench.{name}")
    # Libraries that are imported on the way print to stdout, which is the document's
    chosen = setting(arguments.device, arguments.data_root, arguments.size)
    with chosen as where, contextlib.redirect_stdout(sys.stderr):
        found = part.measure(where)
    print(json.dumps(found, indent=1) if arguments.json else part.text(found))
    return 0
