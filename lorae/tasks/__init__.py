"""Tasks that members are trained and evaluated on. To add one, copy `openbookqa.py` and import the new task
here by name."""

from lorae.tasks.alpaca import Alpaca, MTBench
from lorae.tasks.arc import ArcChallenge, ArcEasy
from lorae.tasks.base import (
    Example,
    Generate,
    Head,
    LabelWords,
    Letters,
    OptionLikelihood,
    Prompt,
    Scoring,
    Task,
    Value,
    content_id,
    media_example,
    text_example,
)
from lorae.tasks.boolq import BoolQ
from lorae.tasks.cifar import CIFAR10, CIFAR100
from lorae.tasks.commonsense_qa import CommonsenseQA
from lorae.tasks.data import DataFiles, csv, jsonl, parquet
from lorae.tasks.digits import Digits
from lorae.tasks.disfl_qa import DisflQA, UnanswerableQA
from lorae.tasks.e2e_nlg import E2E
from lorae.tasks.esc50 import ESC50
from lorae.tasks.flowers102 import Flowers102
from lorae.tasks.food101 import Food101
from lorae.tasks.glue import MRPC, QNLI, RTE, STSB, CoLA
from lorae.tasks.gsm8k import GSM8K
from lorae.tasks.ham10000 import HAM10000
from lorae.tasks.lfw_patches import LfwPatches
from lorae.tasks.mmlu import MMLU
from lorae.tasks.mnist import Mnist
from lorae.tasks.openbookqa import OpenBookQA
from lorae.tasks.openood import Textures, TinyImageNet
from lorae.tasks.plot_summaries import PlotSummaries
from lorae.tasks.resisc45 import RESISC45
from lorae.tasks.rotten_tomatoes import RottenTomatoes
from lorae.tasks.social_iqa import SocialIQA
from lorae.tasks.squad import SQuAD
from lorae.tasks.sst2 import SST2
from lorae.tasks.svamp import SVAMP
from lorae.tasks.svhn import SVHN
from lorae.tasks.trec import TREC
from lorae.tasks.trivia_qa import TriviaQA
from lorae.tasks.winogrande import WinoGrande

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "E2E",
    "ESC50",
    "GSM8K",
    "HAM10000",
    "MMLU",
    "MRPC",
    "QNLI",
    "RESISC45",
    "RTE",
    "SST2",
    "STSB",
    "SVAMP",
    "SVHN",
    "TREC",
    "Alpaca",
    "ArcChallenge",
    "ArcEasy",
    "BoolQ",
    "CoLA",
    "CommonsenseQA",
    "DataFiles",
    "Digits",
    "DisflQA",
    "Example",
    "Flowers102",
    "Food101",
    "Generate",
    "Head",
    "LabelWords",
    "Letters",
    "LfwPatches",
    "MTBench",
    "Mnist",
    "OpenBookQA",
    "OptionLikelihood",
    "PlotSummaries",
    "Prompt",
    "RottenTomatoes",
    "SQuAD",
    "Scoring",
    "SocialIQA",
    "Task",
    "Textures",
    "TinyImageNet",
    "TriviaQA",
    "UnanswerableQA",
    "Value",
    "WinoGrande",
    "content_id",
    "csv",
    "jsonl",
    "media_example",
    "parquet",
    "text_example",
]
