"""Subsets with equally many training examples of each class: balanced, nested, named, refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from media import Shades, image_rows
from toys import write_split

from analysis.audit_trials import spec_of
from lorae.augmentation import Augment
from lorae.identity import canonical
from lorae.tasks import SQuAD
from lorae.tasks.base import Value


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Shades:
    """60 training rows: 30 dark, 20 grey, 10 light."""
    folder: Path = tmp_path_factory.mktemp("shades")
    rows = image_rows("train", 60, 0)
    for n, row in enumerate(rows):
        row["label"] = 0 if n < 30 else 1 if n < 50 else 2
    write_split(folder / "shades", "train", rows)
    write_split(folder / "shades", "test", image_rows("test", 9, 1))
    return Shades(val_frac=0.2).located(folder)


def test_each_class_has_as_many_examples_and_a_smaller_subset_is_in_a_larger_one(shades: Shades) -> None:
    whole, ids = shades.splits(), {}
    for size in (1, 4):
        splits = shades.subset(train_per_class=size).splits()
        assert Counter(e.label for e in splits["train"]) == dict.fromkeys(range(3), size)
        assert splits["test"] == whole["test"] and splits["validation"] == whole["validation"]
        ids[size] = {e.id for e in splits["train"]}
        assert [e for e in whole["train"] if e.id in ids[size]] == list(splits["train"])
    assert ids[1] < ids[4]
    one_of_each = shades.subset(train=3).splits()["train"]
    assert {e.id for e in one_of_each} != ids[1], "another rule than for `num_train`"


def test_it_names_members_and_rows_but_not_what_is_predicted(shades: Shades) -> None:
    some, other = (shades.subset(train_per_class=size) for size in (1, 4))
    assert some.fingerprint() != other.fingerprint() != shades.fingerprint()
    assert "per_class" not in shades.fingerprint()
    for split in ("validation", "test"):
        assert some.eval_set(split) == shades.eval_set(split)
    assert some.eval_set("train") != other.eval_set("train")
    assert replace(some, augment=Augment()).label == "shades-1-per-class+flip-h"
    content = replace(some, augment=Augment(degrees=(0, 90))).fingerprint()
    assert spec_of(canonical(content)["augment"], [Augment]) == Augment(degrees=(0, 90))


def test_what_is_not_there_and_what_contradicts_it_is_refused(shades: Shades) -> None:
    with pytest.raises(ValueError, match=r"train_per_class=11, but 'light' has \d+ training examples"):
        shades.subset(train_per_class=11).splits()
    with pytest.raises(ValueError, match="must be >= 1"):
        shades.subset(train_per_class=0)
    with pytest.raises(ValueError, match="with num_train=8: leave one of them out"):
        shades.subset(8, train_per_class=2)
    with pytest.raises(ValueError, match="with scoring=Value"):
        Shades(scoring=Value(), train_per_class=2)
    with pytest.raises(ValueError, match="with scoring=Generate"):
        SQuAD(train_per_class=2)
