"""The study's last tasks: science questions by option likelihood, each the other's OOD set.

    lorae sweep pipelines/study_science.py --dry-run
    # 54 trials and two zero-shot rows; 120 members, tuning included
    python -m analysis.study lorae-results

Like pipelines/study.py, with its first three recipes and up to four members.
"""

from lorae.tasks import ArcEasy, OpenBookQA, OptionLikelihood
from pipelines._common import smoke
from pipelines.study import MAIN, regularized

SCORING = OptionLikelihood(norm="chars")
TASKS = [task(scoring=SCORING).subset(train=256, validation=128, test=400) for task in (ArcEasy, OpenBookQA)]

SWEEP = regularized(TASKS, TASKS, MAIN, [1, 2, 4], (3e-4, 1e-3, 3e-3))
SMOKE = smoke(SWEEP, {"members": [1, 2]})
