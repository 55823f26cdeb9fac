"""Tasks that members are trained and evaluated on. To add one, copy `openbookqa.py` and import it here by
name."""

from lorae.tasks.arc import ArcChallenge, ArcEasy
from lorae.tasks.base import Example, Head, LabelWords, Letters, OptionLikelihood, Prompt, Scoring, Task
from lorae.tasks.boolq import BoolQ
from lorae.tasks.commonsense_qa import CommonsenseQA
from lorae.tasks.mmlu import MMLU
from lorae.tasks.openbookqa import OpenBookQA
from lorae.tasks.plot_summaries import PlotSummaries
from lorae.tasks.rotten_tomatoes import RottenTomatoes
from lorae.tasks.social_iqa import SocialIQA
from lorae.tasks.trec import TREC
from lorae.tasks.winogrande import WinoGrande

__all__ = [
    "MMLU",
    "TREC",
    "ArcChallenge",
    "ArcEasy",
    "BoolQ",
    "CommonsenseQA",
    "Example",
    "Head",
    "LabelWords",
    "Letters",
    "OpenBookQA",
    "OptionLikelihood",
    "PlotSummaries",
    "Prompt",
    "RottenTomatoes",
    "Scoring",
    "SocialIQA",
    "Task",
    "WinoGrande",
]
