"""What a row of trials.parquet says: its members, prediction sets, place in the grid and provenance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lorae.combinations import COMBINATIONS, SOUPS
from lorae.metrics import Rule
from lorae.store.names import pool_folders, texts_folder

Row = dict[str, Any]  # one trial: columns of trials.parquet


def missing_text(sweep: str, missing: Sequence[str], command: str) -> str:
    """What a sweep lacks and how to fill it; the message of a refusal and of `--allow-missing`."""
    listed = "".join(f"\n  {what}" for what in missing)
    return f"sweep {sweep} lacks {len(missing)} trials:{listed}\nfill them with: {command}"


def fill_command(row: Row) -> str:
    """The command that made a row; repeating it trains what is missing."""
    return provenance(row).get("command") or f"lorae sweep {row['sweep']}"


def provenance(row: Row) -> dict[str, Any]:
    """Command, commit and versions that made a row."""
    return json.loads(row["provenance"] or "{}")


def rule(row: Row) -> Rule:
    """The rule that combines a row's logits."""
    return COMBINATIONS[row["combine"]].rule


def soup(row: Row) -> str | None:
    """Name of the combination that makes one model of a row's members, or None."""
    return row["combine"] if is_soup(row) else None


def together(row: Row) -> list[str]:
    """Folder of the texts of a row's members together; none where they write none."""
    return [texts_folder(row["member_ids"])] if row["decoding"] and row["members"] > 1 else []


def is_soup(row: Row) -> bool:
    """Whether a row predicts with one model made of its members."""
    return row["members"] > 1 and row["combine"] in SOUPS


def pool(row: Row) -> list[str]:
    """Folders of the draws that a row's ensemble is made of."""
    return pool_folders(row["member_ids"], row["reference_id"], soup(row))


def eval_sets(row: Row) -> dict[str, str]:
    """Prediction sets of a row: "test", "validation" and OOD tasks -> `<task>__<split>__<hash>`."""
    return json.loads(row["eval_sets"])


def ood_sets(row: Row) -> dict[str, str]:
    """`eval_sets` of the OOD tasks alone."""
    return {task: name for task, name in eval_sets(row).items() if task not in ("test", "validation")}


def describe(row: Row) -> str:
    """A row's place in the grid, short."""
    shown = ["task", "method", "regularizers", "members", "seed"]
    shown += [] if row["draws"] == "none" else ["draws"]
    return " ".join(f"{factor}={row[factor]}" for factor in shown)
