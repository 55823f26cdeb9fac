"""`lorae table`: every analysis as a command, even if the user has a folder called `analysis`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from lorae.near import did_you_mean

ANALYSES = (
    *("archive", "bayesian", "cifar100", "demo", "digits", "distill", "e2e", "e2e_small", "efficiency"),
    *(
        "encoders",
        "esc50",
        "extrapolation",
        "generation",
        "generation_demo",
        "ham10000",
        "initialization",
        "instruct",
    ),
    *("members", "ood", "published", "randomness", "rank", "regularization"),
    *("search", "squad", "sst2", "strength", "study", "weights"),
)  # modules of analysis with a `main`
USAGE = f"""usage: lorae table STORAGE [--sweep NAME] [--out DIR] [--allow-missing] [--margin METRIC=X]
                   [--metric acc,ensemble_nll] [--columns model,acc,ensemble_nll] [--rows ensemble,single]
       lorae table ANALYSIS STORAGE ...

Prints the comparison of a sweep's rows and writes it and the standard figures as files; a storage with one
sweep needs no --sweep. With the name of an analysis the same as `python -m analysis.ANALYSIS`:
{", ".join(ANALYSES)}.
"""


def run_table(words: Sequence[str]) -> int:
    """Run an analysis, or the standard one; returns the exit code.

    Raises:
        ValueError: there is no storage, or it has several sweeps and none is named.
    """
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if words else 2
    if words[0] in ANALYSES:
        return importlib.import_module(f"analysis.{words[0]}").main(words[1:])
    from analysis.script import run
    from analysis.standard import content

    if not words[0].startswith("-") and "://" not in words[0] and not Path(words[0]).expanduser().exists():
        near = did_you_mean(words[0], ANALYSES)
        raise ValueError(f"{words[0]} is neither a storage nor an analysis; {near}write lorae table STORAGE")

    return run(_only_sweep(words), content, words)


def _only_sweep(words: Sequence[str]) -> str:
    """The only sweep of the storage, if `--sweep` is not given."""
    from analysis.archive import opened
    from lorae.lookup import only_sweep
    from lorae.store.store import Store

    if any(word.partition("=")[0] == "--sweep" for word in words):
        return "table"
    with opened(words[0]) as storage:
        return only_sweep(Store(storage))
