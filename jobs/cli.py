"""lorae: LoRA ensembles, trained exactly, once, and compared fairly.

    lorae check pipelines/demo.py                  all that is wrong with it, its data and its models' files
    lorae sweep pipelines/demo.py --dry-run        what would be trained, and what is stored already
    lorae sweep pipelines/demo.py                  train it; the same again resumes, and trains nothing twice
    lorae sweep pipelines/demo.py --set members=6  with other values of an axis
    lorae predict lorae-results --text "..."       what the best stored ensemble says of your own texts
    lorae predict lorae-results --task ArcEasy     add predictions on a task to the stored members
    lorae plan FILE --simulate --gpus 64           time, cost and idle share on GPUs that are not there
    lorae doctor                                   versions, devices, Ray, storage, model and data access
    lorae audit lorae-results                      are the stored numbers what they claim to be?
    lorae size lorae-results --sweep members       how many members are worth training?
    lorae table lorae-results                      the comparison of its rows; lorae table NAME: an analysis
    lorae report lorae-results --out report        tables and figures as one HTML page, and as files
    lorae mlflow-rebuild lorae-results             recreate the MLflow runs from Parquet
    lorae export lorae-results TRIAL DIR           an ensemble as PEFT adapters with a model card
    lorae serve lorae-results                      an HTTP endpoint on 127.0.0.1; lorae verify URL checks it
    lorae bench all                                speed and memory here, beside PEFT and the machine's limit
    lorae bench analysis                           the same of metrics, tables and bootstrap
    lorae bench verdicts                           how often verdicts are wrong, by simulation

Exit codes: 0 all done, 1 some members or checks failed (the rest is kept), 2 wrong usage, 130 stopped by
Ctrl-C or SIGTERM (what ran is saved; once more exits at once).
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import handlers
from jobs.parser import Parser, Version, coloured, option

DEFAULT_STORAGE = "lorae-results"
BENCHES = {
    "train": "a stack against PEFT one by one, and against the machine's limit",
    "predict": "predictions of five members against PEFT's, and against the machine's limit",
    "generate": "texts of five members against PEFT's, and against bare runs of the backbone",
    "sweep": "the demo against a naive Ray Tune + PEFT sweep; what a sweep costs beyond training",
    "memory": "peak memory of ten members and of one",
    "growth": "time of a member's step by members and by length, and where it goes",
    "all": "all of these, and their ratios beside what they should be; up to 30 minutes",
    "vera": "time and memory of LoRA and VeRA at equal rank",
}


def command() -> None:
    """Entry point of the `lorae` command: `main`, and out."""
    code = main()
    gc.freeze()  # else the interpreter looks for cycles in all that Ray and MLflow leave, for a second or two
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """What the words of a command line ask for; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if words[:1] == ["table"]:  # its own words are an analysis's
        arguments = argparse.Namespace(run=handlers.table, words=words[1:])
    else:
        arguments = parser.read(words)
    if "run" not in arguments:
        parser.print_help()
        return 0
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lorae").setLevel(logging.INFO)
    try:
        return arguments.run(arguments)
    except ValueError as error:
        from lorae.uris import shown

        print(f"{coloured('lorae:', 'red')} {shown(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:  # the storage refused for minutes
        from lorae.uris import shown

        print(f"{coloured('lorae:', 'red')} {shown(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nlorae: interrupted; repeat the command to resume, nothing that was stored is lost",
            file=sys.stderr,
        )
        return 130


class _Options:
    """What several commands take."""

    def __init__(self) -> None:
        self.axes = option(
            "--set", action="append", default=[], metavar="AXIS=V1,V2", help="replace or add an axis"
        )
        self.storage = option(
            "--storage", default=DEFAULT_STORAGE, metavar="URI", help="where results are kept"
        )
        self.single_driver = option(
            "--single-driver",
            action="store_true",
            help="no other sweep runs on this storage: for mounts that cannot lock files",
        )
        self.as_json = option("--json", action="store_true", help="print it as JSON")
        self.data_root = option(
            "--data-root",
            type=lambda folder: str(Path(folder).expanduser()),
            default=os.environ.get("LORAE_DATA_ROOT") or None,
            metavar="DIR",
            help="local copies of datasets; or LORAE_DATA_ROOT",
        )


def _parser() -> Parser:
    parser = Parser(prog="lorae", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action=Version, help="print the version and its commit")
    commands, options = parser.add_subparsers(metavar="COMMAND"), _Options()
    _add_sweep(commands, options)
    _add_plans(commands, options)
    _add_results(commands, options)
    _add_ensembles(commands, options)
    _add_bench(commands, options)
    return parser


def _add_sweep(commands: Any, options: _Options) -> None:
    """What trains."""
    sweep = commands.add_parser(
        "sweep",
        parents=[options.axes, options.storage, options.data_root, options.as_json, options.single_driver],
        help="run a sweep file, or resume it",
    )
    sweep.add_argument("file", help="a Python file with a SWEEP")
    sweep.add_argument(
        "--smoke", action="store_true", help="the file's small variant, on a model from the package index"
    )
    sweep.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    sweep.add_argument("--local", action="store_true", help="without Ray, in this process")
    sweep.add_argument("--address", help='Ray cluster; "auto" refuses to start one on this machine')
    sweep.add_argument("--recompute", action="store_true", help="keep fewer activations; 1.4 times the time")
    sweep.add_argument(
        "--zero", type=int, metavar="K", help="backbones in parts on K workers (DeepSpeed ZeRO-3)"
    )
    sweep.add_argument("--offload", action="store_true", help="with --zero: keep the parts in CPU memory")
    sweep.add_argument("--hpz", type=int, metavar="N", help="with --zero: a second copy on every N workers")
    sweep.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow tracking server; default a database in the storage"
    )
    sweep.set_defaults(run=handlers.sweep)


def _add_plans(commands: Any, options: _Options) -> None:
    """What looks before a sweep, and at machines."""
    check = commands.add_parser(
        "check",
        parents=[options.axes, options.data_root],
        help="list all that is wrong with a sweep file, its data and its models' files",
    )
    check.add_argument("file", help="a Python file with a SWEEP")
    check.add_argument("--smoke", action="store_true", help="the file's small variant")
    check.set_defaults(run=handlers.check)

    plan = commands.add_parser(
        "plan",
        parents=[options.axes, options.storage, options.data_root, options.as_json],
        help="what a sweep would take, on this machine or on others",
    )
    plan.add_argument("file", help="a Python file with a SWEEP")
    plan.add_argument("--simulate", action="store_true", help="time, cost and idle share on other GPUs")
    plan.add_argument("--gpus", type=int, metavar="N", help="how many, 8 to a node; default 8")
    plan.add_argument("--gpu", metavar="KIND", help="a100-40, h100, ...; default a100-80")
    plan.set_defaults(run=handlers.plan)

    doctor = commands.add_parser(
        "doctor", parents=[options.storage, options.data_root], help="check this machine"
    )
    doctor.set_defaults(run=handlers.doctor)

    rebuild = commands.add_parser("mlflow-rebuild", help="recreate the MLflow runs from Parquet")
    rebuild.add_argument("storage", metavar="STORAGE")
    rebuild.add_argument("--tracking-uri", metavar="URI")
    rebuild.set_defaults(run=handlers.rebuild)


def _add_results(commands: Any, options: _Options) -> None:
    """What reads a storage."""
    audit = commands.add_parser("audit", help="check a storage against the mistakes of published work")
    audit.add_argument("storage", metavar="STORAGE")
    audit.add_argument("--sweep", metavar="NAME", help="only this sweep and the members of its trials")
    audit.set_defaults(run=handlers.audit)

    what = "tables and figures of a sweep as one HTML page and as files"
    report = commands.add_parser("report", parents=[options.data_root], help=what)
    report.add_argument("storage", metavar="STORAGE")
    report.add_argument("--sweep", metavar="NAME", help="default: the only one")
    report.add_argument("--out", required=True, metavar="DIR")
    report.add_argument("--allow-missing", action="store_true", help="leave failed trials out and name them")
    report.add_argument(
        "--margin", action="append", default=[], metavar="METRIC=X", help="largest difference that is none"
    )
    what = "your own task, whose texts are shown beside lorae's: my_tasks.py:Colours; may be repeated"
    report.add_argument("--task", action="append", default=[], metavar="FILE:NAME", help=what)
    report.set_defaults(run=handlers.report)

    table = commands.add_parser("table", help="tables and figures of a sweep, or an analysis", add_help=False)
    table.add_argument("words", nargs=argparse.REMAINDER, metavar="[ANALYSIS] STORAGE ...")
    table.set_defaults(run=handlers.table)

    size = commands.add_parser("size", help="how many members are worth training?")
    size.add_argument("storage", metavar="STORAGE")
    size.add_argument("--sweep", metavar="NAME", help="default: the only one")
    size.add_argument(
        "--margin", type=float, default=0.001, metavar="NATS", help="a member that gains less is not worth it"
    )
    size.add_argument("--out", type=Path, metavar="DIR", help="write the tables and figures there, too")
    size.add_argument("--allow-missing", action="store_true", help="leave failed trials out and name them")
    size.set_defaults(run=handlers.size)


def _add_choice(command: argparse.ArgumentParser) -> None:
    """Which of a storage's ensembles."""
    command.add_argument("--sweep", metavar="NAME", help="only the trials of this sweep")
    command.add_argument("--trial", metavar="ID", help="which ensemble; default: by validation NLL")
    command.add_argument("--classes", metavar="A,B", help="names of the classes, where no record has them")


def _add_ensembles(commands: Any, options: _Options) -> None:
    """What uses stored members."""
    predict = commands.add_parser(
        "predict",
        parents=[options.data_root, options.single_driver, options.as_json],
        help="what a stored ensemble says of your texts; or add predictions on a task",
    )
    predict.add_argument("storage", metavar="STORAGE")
    what = predict.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", action="append", metavar="TEXT", help="one input; may be repeated")
    what.add_argument(
        "--file",
        metavar="FILE",
        help="JSON Lines, CSV or Parquet with a column question, text or sentence; an image, or their folder",
    )
    what.add_argument(
        "--task",
        help="ArcEasy, \"MMLU('stem')\", or my_tasks.py:Colours: stored with each member, a column of tables",
    )
    what.add_argument("--remove", metavar="TASK", help="undo --task: remove a set that no sweep asked for")
    predict.add_argument("--out", metavar="FILE", help="write .parquet, .csv or .jsonl instead of printing")
    predict.add_argument("--column", metavar="NAME", help="of --file: where the text is")
    _add_choice(predict)
    predict.add_argument(
        "--coverage", type=float, default=0.9, metavar="P", help="of the conformal sets; default 0.9"
    )
    predict.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="a text before which a written answer ends",
    )
    predict.add_argument("--backbone", metavar="DIR", help="where the members' backbone is now, if it moved")
    predict.set_defaults(run=handlers.predict)

    export = commands.add_parser("export", help="write an ensemble, or a member, as PEFT adapters")
    what = "the storage; the id of a trial or member, or its beginning; a folder, new or empty"
    export.add_argument("words", nargs="+", metavar="STORAGE ID DIR", help=what)
    export.add_argument("--storage", help=argparse.SUPPRESS)  # as it was: ID DIR --storage STORAGE
    export.set_defaults(run=handlers.export)

    landscape = commands.add_parser("landscape", help="barriers between the members of a stored ensemble")
    landscape.add_argument("storage", metavar="STORAGE")
    landscape.add_argument("--task", required=True, help="with labels, as for predict: TREC")
    landscape.add_argument("--trial", help="its trial_id, or a beginning of it (default: the best ensemble)")
    landscape.add_argument("--sweep", help="where to look for it (default: all sweeps)")
    landscape.add_argument("--data-root", metavar="DIR", help="local copies of datasets")
    landscape.add_argument(
        "--backbone", metavar="DIR", help="where the members' backbone is now, if it moved"
    )
    landscape.add_argument("--points", type=int, default=11, metavar="N", help="of a line (default: 11)")
    landscape.add_argument("--side", type=int, default=9, metavar="N", help="of the plane (default: 9)")
    landscape.add_argument("--out", type=Path, default=Path("landscape"), help="folder for the files")
    landscape.set_defaults(run=handlers.landscape)

    serve = commands.add_parser("serve", help="a stored ensemble as an HTTP endpoint of this machine")
    serve.add_argument("storage", metavar="STORAGE")
    _add_choice(serve)
    serve.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1, which nobody else reaches")
    serve.add_argument("--port", type=int, default=8000, help="default 8000")
    serve.set_defaults(run=handlers.serve)

    verify = commands.add_parser("verify", help="are served probabilities those of the stored members?")
    verify.add_argument("url", metavar="URL", help="of `lorae serve`")
    verify.add_argument("storage", metavar="STORAGE")
    texts = verify.add_mutually_exclusive_group(required=True)
    texts.add_argument("--text", action="append", metavar="TEXT", help="one input; may be repeated")
    texts.add_argument("--file", metavar="FILE", help="JSON Lines, CSV or Parquet, as for predict")
    _add_choice(verify)
    verify.add_argument(
        "--tolerance", type=float, metavar="P", help="of a probability; default 0.005 in fp32"
    )
    verify.set_defaults(run=handlers.verify)


def _add_bench(commands: Any, options: _Options) -> None:
    """What measures."""
    bench = commands.add_parser("bench", help="measure speed and memory on this machine")
    parts = bench.add_subparsers(required=True, metavar="PART")
    analysis = parts.add_parser(
        "analysis", parents=[options.as_json], help="metrics, tables and bootstrap of stored logits"
    )
    analysis.add_argument(
        "--examples", type=int, default=1000, metavar="N", help="test examples (default: 1000)"
    )
    analysis.set_defaults(run=handlers.bench_analysis)
    verdicts = parts.add_parser(
        "verdicts",
        parents=[options.as_json],
        help="how often equal rows are told apart, and true gains found",
    )
    verdicts.add_argument(
        "--test-sets", type=int, default=1, metavar="N", help="in each setting; 3 minutes each (default: 1)"
    )
    verdicts.set_defaults(run=handlers.bench_verdicts)
    for name, what in BENCHES.items():
        part = parts.add_parser(name, parents=[options.data_root, options.as_json], help=what)
        part.add_argument("--device", default="cpu", help="cpu or cuda; default cpu")
        part.add_argument("--size", help="of the random backbone on cuda: 1b or 7b; default 1b")
        part.set_defaults(run=handlers.bench, part=name)


if __name__ == "__main__":
    command()
