"""E2E NLG: sentences about a restaurant from its attributes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from lorae.sources import Hub
from lorae.tasks.base import Example, Generate, Scoring, Task, content_id, text_example
from lorae.tasks.data import parquet


@dataclass(frozen=True, kw_only=True)
class E2E(Task):
    """Meaning to text (Novikova et al. 2017, arXiv:1706.09254): 42,061 pairs of 4,862 meanings in train; 630
    meanings with 4,693 texts in test.

    In test, a meaning with all its references is one example; in train, each pair is one example, as in
    arXiv:2106.09685. Validation is carved from train by whole meanings.

    Source: tuetschek/e2e_nlg on the hub, its conversion to parquet (CC BY-SA 4.0).
    Columns: meaning_representation, human_reference.
    Example: "name[Blue Spice], eatType[coffee shop], area[city centre]" | "A coffee shop in the city centre
    area called Blue Spice."
    """

    scoring: Scoring = Generate(max_new_tokens=96)

    name = "e2e_nlg"
    home = Hub("tuetschek/e2e_nlg", revision="refs/convert/parquet")
    train = parquet("default/train/*", num_rows=42061)
    test = parquet("default/test/*", num_rows=4693)
    template = "{question}\nText:"

    def rows(self, split: Literal["train", "test"]) -> list[dict[str, Any]]:
        rows = super().rows(split)
        if split == "train":
            return rows
        of_meaning: dict[str, dict[str, Any]] = {}
        for row in rows:
            first = of_meaning.setdefault(row["meaning_representation"], dict(row) | {"human_reference": []})
            first["human_reference"].append(row["human_reference"])
        return list(of_meaning.values())

    def example(self, row: dict[str, Any]) -> Example:
        meaning, found = row["meaning_representation"], row["human_reference"]
        texts = (found,) if isinstance(found, str) else tuple(found)
        example = text_example(meaning, texts, content_id(meaning, *texts), group=meaning)
        return replace(example, options=texts)  # equal ones count twice, as in the E2E scripts
