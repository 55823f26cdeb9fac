"""A data set of texts that lorae has never seen, in hub layout, needs nothing but a task file: it is swept,
shown in a table and audited by the command line; what cannot work is refused before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toys import write_split
from writers import with_end_token

from jobs.cli import main
from lorae.results import row_answers
from lorae.store.store import Store

FILE = '''
from dataclasses import dataclass

from lorae import AdamW, Budget, Files, Generate, Hub, Lora, Sweep, Trial
from lorae.tasks import Scoring, Task, parquet, text_example


@dataclass(frozen=True, kw_only=True)
class Geo(Task):
    """Where is it? Columns: qid (a number), passage (may be empty), query, answers (a struct of lists)."""

    scoring: Scoring = Generate(max_new_tokens=12, samples=2)
    val_frac: float = 0.25

    name = "geo"
    home = Hub("acme/geo-qa")
    train = parquet("default/train-*")
    test = parquet("default/validation-*")
    template = "{{question}}\\nAnswer:"

    def example(self, row):
        question = f"{{row['passage']}}\\nQuestion: {{row['query']}}"
        return text_example(question, row["answers"], row["qid"])


SWEEP = Sweep(
    base=Trial(
        backbone=Files({backbone!r}),
        task=Geo(),
        method=Lora(rank=2, targets=("q_proj", "v_proj")),
        optimizer=AdamW(lr=1e-2),
        budget=Budget(batch_size=4, epochs=1, max_tokens=64),
        precision="fp32",
    ),
    axes={{"members": [1, 2]}},
)
'''
PLACES = [
    ("Zürich", "Schweiz"),
    ("東京", "日本"),
    ("Oslo", "Norge 🇳🇴"),
    ("Lima", "Perú"),
    ("Αθήνα", "Ελλάδα"),
]


def rows(num: int, first: int) -> list[dict[str, object]]:
    """Questions of which some have an empty passage, some one that fills the budget ten times."""
    found = []
    for n in range(first, first + num):
        city, country = PLACES[n % 5]
        passage = ("", f"{city} is in {country}. " * 80, f"{city} is {n} years old.")[n % 3]
        names = [country, f"{country}, Earth", country][: 1 + 2 * (n % 2)]
        answers = {"text": names, "answer_start": [3] * len(names)}
        found.append({"qid": n, "passage": passage, "query": f"{n}: where is {city}?", "answers": answers})
    return found


@pytest.fixture(scope="module")
def byte_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random Llama whose tokenizer has every character, in bytes."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = str(tmp_path_factory.mktemp("byte-llama"))
    tokenizer = ByteLevelBPETokenizer()
    texts = [f"{row['passage']} Question: {row['query']}\nAnswer:" for row in rows(9, 0)]
    tokenizer.train_from_iterator(texts, vocab_size=400, special_tokens=["<end>"])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=400, eos_token_id=0, **sizes)).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_short_answers_in_hub_layout_need_only_a_task_file(byte_llama, tmp_path, capsys):
    folder, file = tmp_path / "data/acme/geo-qa/default", tmp_path / "geo.py"
    write_split(folder, "train-00000-of-00001", rows(40, 1000))
    write_split(folder, "validation-00000-of-00001", rows(9, 2000))
    file.write_text(FILE.format(backbone=byte_llama))
    storage, data = str(tmp_path / "store"), ["--data-root", str(tmp_path / "data")]
    assert main(["check", str(file), *data]) == 0
    assert main(["sweep", str(file), *data, "--storage", storage, "--local"]) == 0
    told = capsys.readouterr().err
    assert "exact match" in told and "accuracy" not in told, "what it ends with is of texts"
    assert main(["table", storage, "--sweep", "geo"]) == 0
    out = capsys.readouterr().out
    assert "lock-step of 2" in out and "Norge 🇳🇴" in out and "Perú / Perú, Earth" in out
    assert main(["audit", storage]) == 0
    store = Store(storage)
    two = next(row for row in store.read_table("geo").to_pylist() if row["members"] == 2)
    answers = row_answers(store, two, json.loads(two["eval_sets"])["test"])
    assert len({a.example_id for a in answers}) == 9
    texts = {a.text for a in answers if a.kind == "reference"}
    assert {name for _, name in PLACES} <= texts, "references come back as they were, in any script"
    assert Path(storage, "report", "geo", "examples.md").exists()


@pytest.mark.parametrize(
    ("old", "new", "answers", "why"),
    [
        ("samples=2", "samples=2, temperature=0", "x", "temperature=0: samples need one > 0"),
        ("samples=2", "samples=2, stop=('~~',)", "x", "no token of this tokenizer ends it"),
        ("samples=2", "samples=2", "", "reference 0 of ('',) is blank"),
        ("samples=2", "samples=2", "so " * 12, "write Generate(max_new_tokens="),
        ("Lora(rank=2", "LastLayer() or Lora(rank=2", "x", "LastLayer(std=0.0) with Generate"),
        ("precision=", "draws=Laplace(2), precision=", "x", "an answer is written with one set of weights"),
        ('axes={"mem', 'ood=[RottenTomatoes()], axes={"mem', "x", "rotten_tomatoes is scored by LabelWords"),
    ],
    ids=["temperature", "stop", "empty", "long", "method", "draws", "ood"],
)
def test_what_cannot_work_is_one_line_before_anything_is_trained(
    byte_llama, tiny_llama, tmp_path, capsys, old, new, answers, why
):
    of_words = "stop" in new  # a tokenizer of bytes can make any string
    backbone = with_end_token(tiny_llama, tmp_path / "llama").path if of_words else byte_llama
    text = FILE.format(backbone=backbone).replace(old, new)
    file, folder = tmp_path / "geo.py", tmp_path / "data/acme/geo-qa/default"
    file.write_text(
        text.replace("from lorae import", "from lorae import Laplace, LastLayer,").replace(
            "from lorae.tasks import", "from lorae.tasks import RottenTomatoes,"
        )
    )
    other = {"text": [answers], "answer_start": [0]}
    write_split(folder, "train-00000-of-00001", [*rows(20, 1000), rows(1, 1900)[0] | {"answers": other}])
    write_split(folder, "validation-00000-of-00001", rows(9, 2000))
    storage = tmp_path / "store"
    words = ["sweep", str(file), "--data-root", str(tmp_path / "data"), "--storage", str(storage), "--local"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert why in told and "Traceback" not in told and len(told.strip().splitlines()) == 1
    assert not list(storage.glob("members/*"))
