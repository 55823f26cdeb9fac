"""A stored ensemble as a folder that `peft` opens: its members, how they are averaged, and a model card."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.numpy

from analysis.data import load_trials
from analysis.render import markdown
from analysis.table import comparison
from jobs.card import card
from lorae import untrusted
from lorae.engine.stored import Group, groups
from lorae.shapes import auto_class, kind_of
from lorae.sources import Hub, backbone_config, backbone_folder
from lorae.store.names import ADAPTER_CONFIG, WEIGHTS, member_folder
from lorae.store.peft_format import read_tensors
from lorae.store.store import Store

SAID, CARD, HEAD = "ensemble.json", "README.md", "head.safetensors"


@dataclass(frozen=True, eq=False)
class Exported:
    """What is exported: a row of trials.parquet and its members, all of one recipe."""

    store: Store
    row: dict[str, Any]
    group: Group

    @property
    def members(self) -> list[str]:
        """Ids, in order."""
        return self.row["member_ids"]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The backbone's config."""
        return backbone_config(self.group.source)

    @cached_property
    def backbone(self) -> str:
        """Hub id, or folder on this machine, from which transformers loads the backbone."""
        source = self.group.source
        return source.id if isinstance(source, Hub) else str(backbone_folder(source))

    @property
    def options(self) -> tuple[str, ...] | None:
        """Names of the classes, if all examples have the same."""
        return self.group.classes or self.group.options

    def said(self) -> dict[str, Any]:
        """The content of ensemble.json."""
        row, group, source = self.row, self.group, self.group.source
        return {
            "trial": row["trial_id"],
            "sweep": row["sweep"],
            "members": [member_name(n) for n in range(len(self.members))],
            "member_ids": self.members,
            "backbone": self.backbone,
            "revision": source.revision if isinstance(source, Hub) else None,
            "precision": row["precision"],
            "task": row["task"],
            "classes": self.options,
            "template": group.template,
            "scoring": row["scoring"],
            "max_tokens": group.max_tokens,
            "average": row["combine"],
            "temperature": row["temperature"] or 1.0,
            "validation_nll": row["validation_nll"],
        }

    def files(self, number: int) -> dict[str, bytes]:
        """A member's files, as `AutoPeftModel` opens them; a head without a place in PEFT gets its own
        file."""
        folder = member_folder(self.members[number])
        config = untrusted.json_object(self.store.read(folder, ADAPTER_CONFIG), ADAPTER_CONFIG, {})
        weights = self.store.read(folder, WEIGHTS)
        config["base_model_name_or_path"] = self.backbone
        files = {}
        if kind_of(self.config) != "causal":
            config["auto_mapping"] = self._auto_mapping()
            tensors = read_tensors(weights)
            head = {name: tensors.pop(name) for name in [*tensors] if name.startswith("head.")}
            if head:
                files[HEAD] = safetensors.numpy.save(head)
                weights = safetensors.numpy.save(tensors, metadata={"format": "pt"})
        return files | {ADAPTER_CONFIG: json.dumps(config, indent=1).encode(), WEIGHTS: weights}

    def _auto_mapping(self) -> dict[str, str]:
        """The class of transformers that an encoder's adapter was trained in."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(backbone_folder(self.group.source))
        kind = auto_class(self.config)._model_mapping[type(config)]
        return {"base_model_class": kind.__name__, "parent_library": kind.__module__}

    def licence(self) -> str | None:
        """The backbone's licence, according to the card beside its weights."""
        page = backbone_folder(self.group.source) / CARD
        words = page.read_text(errors="replace")[:5000] if page.is_file() else ""
        found = re.search(r"^license:\s*([\w.-]+)", words, re.MULTILINE)
        return found[1] if found else None

    def table(self) -> str:
        """The trial's row of its table in Markdown, with the meaning of the marks."""
        trials = load_trials(self.store.storage.uri, self.row["sweep"], allow_missing=True)
        found = comparison(trials)
        own = next(cell for cell in trials.cells for r in cell.rows if r["trial_id"] == self.row["trial_id"])
        names = {**own.factors, "model": own.name}
        told = [c.name for c in found.columns if c.kind in ("text", "data")]
        lines = tuple(
            line
            for block in found.blocks
            for line in block
            if all(line[name].value == names.get(name) for name in told)
        )
        return markdown(replace(found, blocks=(lines,), notes=()))


def export_ensemble(store: Store, row: dict[str, Any], folder: str) -> Path:
    """Write a trial's members, ensemble.json and README.md to a new or empty folder.

    Raises:
        ValueError: PEFT does not know the members, the trial does not average its members' predictions, or
            the folder has files.
    """
    target = Path(folder).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is not empty; give a new folder")
    exported = Exported(store, row, _group(store, row))
    written = {CARD: card(exported).encode(), SAID: json.dumps(exported.said(), indent=1).encode()}
    for number in range(len(row["member_ids"])):
        written |= {f"{member_name(number)}/{n}": c for n, c in exported.files(number).items()}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in written.items()}
    written["SHA256SUMS"] = "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()
    for name, content in written.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)
    return target


def member_name(number: int) -> str:
    """Name of a member's folder."""
    return f"member-{number}"


def _group(store: Store, row: dict[str, Any]) -> Group:
    """The members' common recipe.

    Raises:
        ValueError: they cannot be exported; the message says why.
    """
    if row["combine"] not in ("probs", "logits") or row["draws"] != "none":
        raise ValueError(
            f"trial {row['trial_id']} predicts by {row['combine']}, draws {row['draws']}; exported are "
            "ensembles whose members predict once and are averaged: choose one with combine=probs, draws=none"
        )
    found = list(groups(store, row["member_ids"], None))
    method = found[0].method
    if not method.is_peft or method.regime == "prompted":
        raise ValueError(
            f"trial {row['trial_id']} has members of {row['method']}, which PEFT does not know; it opens "
            "LoRA and VeRA; the members' files are in the storage's folder members/"
        )
    return found[0]
