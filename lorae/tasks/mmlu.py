"""MMLU: exam questions of 57 subjects, alone or in the four official groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from lorae.sources import Hub
from lorae.tasks.base import Example, Task, content_id
from lorae.tasks.data import DataFiles, parquet

# github.com/hendrycks/test, categories.py
# fmt: off
GROUPS: dict[str, tuple[str, ...]] = {
    "stem": (
        "abstract_algebra", "astronomy", "college_biology", "college_chemistry", "college_computer_science",
        "college_mathematics", "college_physics", "computer_security", "conceptual_physics",
        "electrical_engineering", "elementary_mathematics", "high_school_biology", "high_school_chemistry",
        "high_school_computer_science", "high_school_mathematics", "high_school_physics",
        "high_school_statistics", "machine_learning",
    ),
    "humanities": (
        "formal_logic", "high_school_european_history", "high_school_us_history",
        "high_school_world_history", "international_law", "jurisprudence", "logical_fallacies",
        "moral_disputes", "moral_scenarios", "philosophy", "prehistory", "professional_law",
        "world_religions",
    ),
    "social_science": (
        "econometrics", "high_school_geography", "high_school_government_and_politics",
        "high_school_macroeconomics", "high_school_microeconomics", "high_school_psychology",
        "human_sexuality", "professional_psychology", "public_relations", "security_studies", "sociology",
        "us_foreign_policy",
    ),
    "other": (
        "anatomy", "business_ethics", "clinical_knowledge", "college_medicine", "global_facts",
        "human_aging", "management", "marketing", "medical_genetics", "miscellaneous", "nutrition",
        "professional_accounting", "professional_medicine", "virology",
    ),
}
# fmt: on
SUBJECTS = tuple(subject for group in GROUPS.values() for subject in group)


@dataclass(frozen=True)
class MMLU(Task):
    """Questions with four options (Hendrycks et al. 2021, arXiv:2009.03300), at least 100 test per subject.

    Train are the hub's dev and validation rows: per subject 5 dev rows, and validation rows about a tenth as
    many as test rows.

    Source: cais/mmlu on the hub (MIT), one folder per subject.
    Columns: question, subject, choices, answer (0 to 3).
    Example: "The rate, r, of a zero-order chemical reaction A -> B can be expressed as which of the
    following?" | A) r = k ln[A] B) r = k [A]^2 C) r = k [A] D) r = k | 3

    Args:
        subject: one of 57 ("college_chemistry"), or a group: "stem", "social_science", "humanities", "other".
    """

    subject: str = field(metadata={"identity": False})  # part of the task's name

    home = Hub("cais/mmlu")

    def __post_init__(self) -> None:
        known = (*GROUPS, *SUBJECTS)
        if self.subject not in known:
            similar = get_close_matches(self.subject, known, n=3, cutoff=0.5) or ["college_chemistry"]
            raise ValueError(
                f"subject={self.subject!r}: must be one of MMLU's {len(SUBJECTS)} subjects or "
                f"{', '.join(GROUPS)}; write {' or '.join(f'MMLU({s!r})' for s in similar)}"
            )
        super().__post_init__()

    @property
    def name(self) -> str:
        return f"mmlu/{self.subject}"

    @property
    def subjects(self) -> tuple[str, ...]:
        return GROUPS.get(self.subject, (self.subject,))

    @property
    def train(self) -> DataFiles:
        return parquet(*(f"{s}/{part}-*" for s in self.subjects for part in ("dev", "validation")))

    @property
    def test(self) -> DataFiles:
        return parquet(*(f"{s}/test-*" for s in self.subjects))

    def example(self, row: dict[str, Any]) -> Example:
        if row["subject"] not in self.subjects:
            raise ValueError(f"the row's subject is {row['subject']!r}")
        question, options = row["question"], tuple(row["choices"])
        return Example(content_id(question, *options), question, options, row["answer"])
