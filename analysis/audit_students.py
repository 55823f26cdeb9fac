"""The check of `analysis.audit` on members that learned from others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from analysis.findings import Finding, Problem, results
from analysis.rows import Row, eval_sets
from lorae.store.names import RECORD, member_folder
from lorae.store.predictions import prediction_sets
from lorae.trial import Trial

if TYPE_CHECKING:
    from analysis.audit import Stored

_TEACHER = {"teacher": {str: str}}


def students_have_their_teachers(stored: Stored) -> list[Finding]:
    """Every student's teacher is stored, its members predict the training examples, and they have the weights
    that they had when the student learned from them.

    That the student's recipe names the right members is part of "members are who they say".
    """
    students = [(row, trial) for row, trial in stored.trials if trial.teacher]
    problems = [problem for row, trial in students for problem in _faults(stored, row, trial)]
    return results(
        "students have their teachers", dict(problems).items(), len(students), "trials of students"
    )


def _faults(stored: Stored, row: Row, trial: Trial) -> Iterator[Problem]:
    assert trial.teacher
    store, teachers = stored.store, trial.teacher.member_ids()
    targets = eval_sets(row)["test"].partition("__")[0] + "__train__"
    for member in teachers:
        if not any(name.startswith(targets) for name in prediction_sets(store.files(member_folder(member)))):
            yield member_folder(member), f"a teacher without predictions {targets}*; repeat the sweep"
    now = store.weight_checksums(teachers)  # an archive may have none
    for member in row["member_ids"]:
        then = store.record(member_folder(member), _TEACHER)["teacher"]
        if changed := [teacher for teacher, checksum in now.items() if then.get(teacher) != checksum]:
            what = f"learned from other weights of {', '.join(changed)}; delete it and repeat the sweep"
            yield f"{member_folder(member)}/{RECORD}", what
