"""Tasks that members are trained and evaluated on. To add one, copy `openbookqa.py` and import it here by
name."""

from lorae.tasks.arc import ArcChallenge, ArcEasy
from lorae.tasks.base import (
    Example,
    Head,
    LabelWords,
    Letters,
    OptionLikelihood,
    Prompt,
    Scoring,
    Task,
    content_id,
)
from lorae.tasks.boolq import BoolQ
from lorae.tasks.cifar import CIFAR10, CIFAR100
from lorae.tasks.commonsense_qa import CommonsenseQA
from lorae.tasks.data import DataFiles
from lorae.tasks.digits import Digits
from lorae.tasks.esc50 import ESC50
from lorae.tasks.flowers102 import Flowers102
from lorae.tasks.ham10000 import HAM10000
from lorae.tasks.lfw_patches import LfwPatches
from lorae.tasks.mmlu import MMLU
from lorae.tasks.mnist import Mnist
from lorae.tasks.openbookqa import OpenBookQA
from lorae.tasks.plot_summaries import PlotSummaries
from lorae.tasks.rotten_tomatoes import RottenTomatoes
from lorae.tasks.social_iqa import SocialIQA
from lorae.tasks.sst2 import SST2
from lorae.tasks.svhn import SVHN
from lorae.tasks.trec import TREC
from lorae.tasks.winogrande import WinoGrande

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "ESC50",
    "HAM10000",
    "MMLU",
    "SST2",
    "SVHN",
    "TREC",
    "ArcChallenge",
    "ArcEasy",
    "BoolQ",
    "CommonsenseQA",
    "DataFiles",
    "Digits",
    "Example",
    "Flowers102",
    "Head",
    "LabelWords",
    "Letters",
    "LfwPatches",
    "Mnist",
    "OpenBookQA",
    "OptionLikelihood",
    "PlotSummaries",
    "Prompt",
    "RottenTomatoes",
    "Scoring",
    "SocialIQA",
    "Task",
    "WinoGrande",
    "content_id",
]
