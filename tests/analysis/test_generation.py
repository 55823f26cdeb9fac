"""Tables and figures of texts: their numbers by other means, and what is undefined, broken or missing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from answers import pool, with_soup
from sklearn.metrics import roc_auc_score
from sweeps import make_sweep

from analysis.data import Trials, load_trials
from analysis.generation import content_of
from analysis.render import csv_text, latex, markdown
from analysis.script import write
from analysis.significance import Difference
from analysis.table import Entry, Table
from analysis.text_examples import examples_table
from analysis.text_tables import added_table, quality_table, scores_table
from analysis.texts import Line, Texts
from lorae.regularizers import KL
from lorae.store.answers import Answer
from lorae.texts import quality, uncertainty
from lorae.texts.pools import by_example

AXES = {"members": [0, 1, 3], "seed": [0, 1]}
N = 60


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    """The backbone, one member, three, and their soup."""
    found = load_trials(make_sweep(tmp_path_factory.mktemp("sweep"), AXES), "toy")
    of_three = [row for row in found.rows if row["members"] == 3]
    soups = [row | {"combine": "weights", "trial_id": f"soup-{row['trial_id']}"} for row in of_three]
    return replace(found, rows=(*found.rows, *soups))


def read(row, split) -> list[Answer] | None:
    """Answers with two rules of lock-step; one member's are those of the pool."""
    if split != "test":
        return None
    whole = pool(N, 3, 4, seed=row["seed"], lockstep=2)
    if row["combine"] == "weights":
        return with_soup(whole, N, row["seed"])
    if row["members"] == 3:
        return whole
    keep = [a for a in whole if a.source < 1 and a.kind != "lockstep"]
    return [replace(a, log_probs_MT=a.log_probs_MT[:1], entropies_MT=a.entropies_MT[:1]) for a in keep]


@pytest.fixture(scope="module")
def texts(trials: Trials) -> Texts:
    return Texts(trials, read)


def line_of(table: Table, **values) -> dict:
    (line,) = [
        line for block in table.blocks for line in block if all(line[k].value == v for k, v in values.items())
    ]
    return line


def right(answer: Answer) -> bool:
    return answer.text.split()[-1] == answer.example_id[1:]


# Quality --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_way_to_a_text_has_the_share_of_right_numbers(texts):
    table = quality_table(texts)
    names = [line["text"].value for line in table.blocks[0]]
    assert sorted(names) == sorted(
        [
            *("backbone", "one member", "vote of 4 samples of one member", "vote of 3 members", "soup of 3"),
            *("lock-step of 3, mean probability", "lock-step of 3, mean logits"),
        ]
    )
    pools = [pool(N, 3, 4, seed=seed, lockstep=2) for seed in (0, 1)]
    by_hand = np.mean([[right(a) for a in answers if a.kind == "greedy"] for answers in pools])
    assert line_of(table, text="one member")["number_match"].value == pytest.approx(by_hand)
    soups = [[right(a) for a in with_soup([], N, seed)] for seed in (0, 1)]
    entry = line_of(table, text="soup of 3")["number_match"]
    assert entry.value == pytest.approx(np.mean(soups))
    assert entry.stderr == pytest.approx(abs(np.mean(soups[0]) - np.mean(soups[1])) / 2)
    backbone = line_of(table, text="backbone")["number_match"]  # the first seed's first member here
    assert backbone.value == pytest.approx(
        np.mean([right(a) for a in pools[0] if a.kind == "greedy" and a.source == 0])
    )
    assert backbone.stderr is None
    lockstep = [[right(a) for a in answers if a.kind == "lockstep" and a.draw == 1] for answers in pools]
    shown = line_of(table, text="lock-step of 3, mean logits")["number_match"].value
    assert shown == pytest.approx(np.mean(lockstep))


def test_the_perplexity_of_references_falls_with_members(texts):
    table = quality_table(texts)
    refs = [[a for a in pool(N, 3, 4, seed=s, lockstep=2) if a.kind == "reference"] for s in (0, 1)]
    nll = [
        -np.mean([np.log(np.exp(a.log_probs_MT.astype(float)).mean(0)).mean() for a in one]) for one in refs
    ]
    three = line_of(table, text="vote of 3 members")
    assert three["reference_nll"].value == pytest.approx(np.mean(nll))
    assert three["perplexity"].value == pytest.approx(np.exp(np.mean(nll)))
    alone = [-np.mean([a.log_probs_MT.mean() for a in one]) for one in refs]
    assert line_of(table, text="one member")["reference_nll"].value == pytest.approx(np.mean(alone))
    assert np.mean(alone) > np.mean(nll)
    for other in ("soup of 3", "lock-step of 3, mean logits"):
        assert line_of(table, text=other)["reference_nll"] == Entry(None)  # not stored


@pytest.mark.slow
def test_what_never_stopped_or_is_not_finite_is_counted(trials):
    def broken(row, split):
        found = read(row, split)
        for place, answer in enumerate(found or ()):
            if answer.kind == "greedy" and answer.source == 1 and answer.example_id in ("q0", "q1", "q2"):
                found[place] = replace(
                    answer, finished=False, log_probs_MT=answer.log_probs_MT * np.float32(np.nan)
                )
        return found

    table = quality_table(texts := Texts(trials, broken))
    line = line_of(table, text="one member")
    assert line["unfinished"].value == pytest.approx(3 / N / 3) == line["not_finite"].value
    found = texts.judged(next(iter(texts.recipes)), Line("nll", "one"))["auroc_wrong"]
    assert 0 < found.value < 1  # such answers are the least certain
    assert (
        "3 of 180 greedy texts did not end by themselves"
        in examples_table(texts, next(iter(texts.recipes))).caption
    )


# Scores ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_auroc_of_a_score_is_the_mean_over_members_and_seeds(texts):
    table = scores_table(texts)
    each = {"one": [], "members": []}
    for seed in (0, 1):
        examples = by_example(pool(N, 3, 4, seed=seed, lockstep=2))
        for m in range(3):
            wrong = [not right(e.greedy[m]) for e in examples]
            for source in each:
                score = [uncertainty.nll(e.view(source, m, (0, 1, 2))) for e in examples]
                each[source].append(roc_auc_score(wrong, score))
    for source, name in (("one", "one member"), ("members", "3 members")):
        entry = line_of(table, score="NLL", **{"from": name})["auroc_wrong"]
        assert entry.value == pytest.approx(np.mean(each[source])), source
        assert entry.stderr and entry.mark
    assert {line["from"].value for line in table.blocks[0]} == {
        *("one member", "4 samples of one member", "3 members", "4 samples of each of 3 members"),
    }


@pytest.mark.slow
def test_what_members_add_is_a_difference_with_an_interval(texts):
    scores, added = scores_table(texts), added_table(texts)
    line = line_of(added, score="NLL per token", **{"from": "3 members"})
    found = line["auroc_wrong"]
    three, one = (
        line_of(scores, score="NLL per token", **{"from": name})["auroc_wrong"].value
        for name in ("3 members", "one member")
    )
    assert isinstance(found, Difference) and line["against"].value == "itself"
    assert found.value == pytest.approx(three - one) and found.lo < found.value < found.hi
    several = line_of(added, score="mutual information", **{"from": "3 members"})
    assert several["against"].value == "NLL per token"
    mi = line_of(scores, score="mutual information", **{"from": "3 members"})["auroc_wrong"].value
    assert several["auroc_wrong"].value == pytest.approx(mi - one)


@pytest.mark.slow
def test_members_that_all_err_leave_dashes(trials):
    def wrong(row, split):
        found = read(row, split)
        return found and [a if a.kind == "reference" else replace(a, text="It is -1") for a in found]

    texts = Texts(trials, wrong)
    table = scores_table(texts)
    for line in table.blocks[0]:
        assert line["auroc_wrong"] == line["prr"] == line["aupr_wrong"] == Entry(None)
        assert line["aurc_wrong"].value == pytest.approx(1)
    assert " - " in markdown(table)
    assert markdown(added_table(texts))


@pytest.mark.slow
def test_validation_calibrates_where_it_is_stored(trials, texts):
    recipe, line = next(iter(texts.recipes)), Line("nll", "one")
    other = Texts(trials, lambda row, _: read(row, "test"))  # calibrated on the test examples themselves
    folds, seen = (t.judged(recipe, line)["calibrated_ece15"].value for t in (texts, other))
    assert seen < 1e-6 < folds


def test_a_sweep_without_texts_is_refused(trials):
    with pytest.raises(ValueError, match=r"sweep toy has stored answers.*Generate"):
        Texts(trials, lambda row, split: None)


@pytest.mark.slow
def test_long_texts_have_the_metrics_of_corpora_and_no_auroc(trials):
    def long(row, split):
        found = []
        for a in read(row, split) or ():
            n = int(a.example_id[1:])
            said = f"The {a.text.split()[-1]} is a cheap family friendly place near the river in area {n}"
            found.append(replace(a, text=said))
            if a.kind == "reference":
                found.append(
                    replace(a, text=f"Near the river, {n} is a cheap place which is friendly", draw=1)
                )
        return found

    texts = Texts(trials, long)
    table = quality_table(texts)
    greedy = [
        [e.greedy[m].text for e in by_example(long(row, "test"))]
        for row in rows_of_3(trials)
        for m in range(3)
    ]
    gold = [e.gold for e in by_example(long(rows_of_3(trials)[0], "test"))]
    line = line_of(table, text="one member")
    assert all(len(given) == 2 for given in gold) and line["meteor"] == Entry(None)
    for name, metric in quality.CORPUS_METRICS.items():
        if name != "meteor":
            assert line[name].value == pytest.approx(np.mean([metric(words, gold) for words in greedy])), name
    assert line["bleu"].stderr and line["cider"].stderr and 50 < line["bleu"].value < 100
    assert any("WordNet" in note for note in table.notes)
    scores = line_of(scores_table(texts), score="NLL", **{"from": "3 members"})
    assert scores["auroc_wrong"] == Entry(None) and -1 < scores["prr"].value < 1
    content_of(texts)


def rows_of_3(trials):
    return [row for row in trials.rows if row["members"] == 3 and row["combine"] != "weights"]


@pytest.mark.slow
def test_two_recipes_have_files_of_their_own_and_differences_within_each(tmp_path):
    axes = {"regularizers": [(), (KL(),)], "members": [1, 3], "seed": [0]}
    texts = Texts(load_trials(make_sweep(tmp_path, axes), "toy"), read)
    content = content_of(texts)
    names = [*(table.name for table in content.tables), *(plot.name for plot in content.plots)]
    assert len(set(names)) == len(names) == 4 + 1 + 2 * 2 and len(texts.recipes) == 2
    scores, added = (next(t for t in content.tables if t.name == name) for name in ("scores", "added"))
    assert len(scores.blocks) == len(added.blocks) == 2
    told = [{line["regularizers"].value for line in block} for block in scores.blocks]
    assert told == [{"none"}, {"kl-0.1"}]


# Files ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_tables_and_figures_are_written(texts, tmp_path, capsys):
    content = write(content_of(texts), tmp_path)
    assert [table.name for table in content.tables] == ["quality", "scores", "added", "examples"]
    assert [plot.name for plot in content.plots] == ["text-quality", "text-risk-coverage", "prr"]
    for table in content.tables:
        assert csv_text(table).count("\n") == 1 + sum(map(len, table.blocks)) and latex(table)
    said = capsys.readouterr().out
    assert "The answer is 0 [✓]" in said and "vote of 3 members" in said
    assert sorted(p.suffix for p in tmp_path.iterdir()) == sorted(
        [".md", ".csv", ".tex"] * 4 + [".pdf", ".svg"] * 3
    )
