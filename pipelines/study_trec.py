"""The study's second task: which kind of answer a question asks for, six classes by label words.

    lorae sweep pipelines/study_trec.py --dry-run
    # 36 trials and the zero-shot row; 104 members, tuning included
    python -m analysis.study lorae-results

Like pipelines/study.py, with its first three recipes and without an OOD set, since no other task has this
prompt. Before training, the backbone knows next to nothing of this task (accuracy 0.16), but most of film
reviews (0.80).
"""

from lorae.tasks import TREC
from pipelines._common import smoke
from pipelines.study import MAIN, regularized

TASK = TREC().subset(train=256, validation=128, test=500)
SWEEP = regularized([TASK], [], MAIN, [1, 2, 4, 8], (1e-3, 3e-3, 1e-2, 3e-2))
SMOKE = smoke(SWEEP, {"members": [1, 2]})
