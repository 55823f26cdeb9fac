"""Texts of stacked members: those that PEFT's members write, whatever is beside them."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, random_trial
from peft import PeftModel
from scipy import stats
from transformers import AutoModelForCausalLM

from lorae.backbone.encoders import Inputs
from lorae.backbone.loading import Backbone, load_backbone, read_backbone
from lorae.engine.adapters import Adapters, Soup
from lorae.engine.decoding import (
    Greedy,
    LockStep,
    Sampling,
    Text,
    decode,
    prompt_batches,
    read_prompts,
    score,
    scores,
)
from lorae.engine.decoding.choosing import nucleus
from lorae.engine.decoding.texts import logits
from lorae.methods import BatchEnsemble, Blob, Full, LastLayer, Lora, PVera, Rank1BNN, Vera
from lorae.noise import make_noise
from lorae.planning import decoding
from lorae.planning.memory import PREDICT_TOKENS
from lorae.regularizers import Masksembles
from lorae.store import peft_format

# Of several lengths, some beyond the sliding windows of 5; all begin alike
PROMPTS = [[7, 20, 21], [7, 20, 9, 30, 31, 32, 33, 34], [7, 20], [7, 20, 11, 12, 13], [7, 20, 21, 40, 41, 42]]
LORA = Lora(rank=4, alpha=8)


def states_of(adapters, seed=0, std=0.3):
    """Random parameters of each member, far from the backbone."""
    drawn = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(value.shape, generator=drawn) * std for name, value in adapters.state(m).items()}
        for m in range(adapters.num_members)
    ]


def peft_texts(trial, method, state, folder, prompts, max_new_tokens):
    """What PEFT's member writes to each prompt alone."""
    folder.mkdir()
    for name, content in peft_format.adapter_files(method, trial.backbone, state).items():
        (folder / name).write_bytes(content)
    lm = AutoModelForCausalLM.from_pretrained(trial.backbone.path)
    model = PeftModel.from_pretrained(lm, folder).eval()
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=False,  # its cache takes `sliding_window` of any config as that of all layers
        )
        texts.append(tuple(written[0, len(prompt) :].tolist()))
    return texts


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_member_of_a_stack_writes_what_it_writes_in_peft(tiny_trial, tiny_llama, tmp_path, architecture):
    trial = random_trial(tiny_trial, tiny_llama, tmp_path, architecture)
    backbone = load_backbone(trial.backbone, "fp32", "cpu")
    with Adapters(backbone, trial.method, [trial.member_key(m)["init"] for m in range(3)]) as adapters:
        states = states_of(adapters)
        adapters.load(states)
        ours = decode(read_prompts(backbone, PROMPTS), Greedy(), 10)
    assert len({text[0].token_ids for member in ours for text in member}) > 5, (
        "members write texts of their own"
    )
    theirs = peft_texts(trial, trial.method, states[1], tmp_path / "adapter", PROMPTS, 10)
    assert [text[0].token_ids for text in ours[1]] == theirs


@pytest.fixture
def backbone(tiny_llama):
    """The tiny Llama, whose weights and settings a test may change; its texts never end by themselves."""
    backbone = read_backbone(tiny_llama, "fp32", "cpu", recompute=False)
    backbone.lm.generation_config.eos_token_id = []
    return backbone


@contextlib.contextmanager
def members(backbone, *numbers, method=LORA, std=0.3):
    """Members of these numbers inserted, each with parameters that depend on its number alone."""
    with Adapters(backbone, method, [("member", m) for m in numbers]) as adapters:
        adapters.load([states_of(adapters, seed=m, std=std)[0] for m in numbers])
        yield adapters


@torch.no_grad()
def next_logits(backbone, ids):
    """Logits (M, V) after tokens that are all read again."""
    read = read_prompts(backbone, [ids])
    return logits(read, read.hidden_MND)[:, 0].double()


def ids_of(texts):
    return [[[text.token_ids for text in of_prompt] for of_prompt in member] for member in texts]


METHODS = [Vera(rank=4), PVera(rank=4), Blob(rank=4), BatchEnsemble(), Rank1BNN(), Full()]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.label)
def test_members_of_every_method_write_what_they_say_when_all_is_read_again(backbone, method):
    with members(backbone, 0, 1, method=method, std=0.3 if method == Full() else 1.0):
        found = ids_of(decode(read_prompts(backbone, PROMPTS[:2]), Greedy(), 5))
        for m, member in enumerate(found):
            for prompt, (written,) in zip(PROMPTS, member):
                for step, token in enumerate(written):
                    assert next_logits(backbone, [*prompt, *written[:step]])[m].argmax() == token
    assert found[0] != found[1]


@pytest.mark.parametrize("rule", ["mean", "logits"])
def test_lock_step_writes_the_token_that_the_members_prefer_together(backbone, rule):
    with members(backbone, 0, 1, 2):
        ((first,), (second,)) = ids_of(decode(read_prompts(backbone, PROMPTS[:2]), LockStep(rule), 8))[0]
        for prompt, written in zip(PROMPTS, (first, second)):
            for step, token in enumerate(written):
                logits_MV = next_logits(backbone, [*prompt, *written[:step]])
                pooled_V = logits_MV.softmax(-1).mean(0) if rule == "mean" else logits_MV.mean(0)
                assert pooled_V.argmax() == token


def test_lock_steps_differ_from_each_other_and_from_the_members(backbone):
    with members(backbone, 0, 1, 2):
        read = read_prompts(backbone, PROMPTS)
        found = [decode(read, chooser, 8) for chooser in (LockStep("mean"), LockStep("logits"), Greedy())]
    mean, of_logits, greedy = map(ids_of, found)
    assert len(mean) == len(of_logits) == 1
    assert mean[0] != of_logits[0] and mean[0] not in greedy and of_logits[0] not in greedy


def test_equal_members_in_lock_step_write_what_one_writes(backbone):
    with members(backbone, 1, 1, 1):
        read = read_prompts(backbone, PROMPTS)
        together = [ids_of(decode(read, LockStep(rule), 10))[0] for rule in ("mean", "logits")]
    with members(backbone, 1):
        (alone,) = ids_of(decode(read_prompts(backbone, PROMPTS), Greedy(), 10))
    assert together == [alone, alone]


def test_a_soup_writes_as_the_member_with_the_mean_update(backbone):
    """Of members that share A, the mean of B is the mean of B A."""
    with members(backbone, 0, 1) as adapters:
        states = [adapters.state(m) for m in (0, 1)]
    for name in states[0]:
        if name.endswith(".A"):
            states[1][name] = states[0][name]
    mean = {name: (states[0][name] + states[1][name]) / 2 for name in states[0]}
    keys = [("member", 0), ("member", 1)]
    with Soup(backbone, LORA, keys, states, ()):
        soup = ids_of(decode(read_prompts(backbone, PROMPTS), Greedy(), 8))
    with members(backbone, 0) as adapters:
        adapters.load([mean])
        assert ids_of(decode(read_prompts(backbone, PROMPTS), Greedy(), 8)) == soup
        adapters.load([states[1]])
        assert ids_of(decode(read_prompts(backbone, PROMPTS), Greedy(), 8)) != soup


# Samples ---------------------------------------------------------------------------------------------------


def sampled(backbone, prompts, numbers, ids, draws, **settings):
    chooser = Sampling([("seed", m) for m in numbers], ids, draws, **settings)
    return ids_of(decode(read_prompts(backbone, prompts), chooser, 6))


def test_a_sample_is_its_members_examples_and_draws_own(backbone):
    """Neither the members nor the examples nor the draws beside it change it."""
    names = ["a", "b", "c", "d", "e"]
    with members(backbone, 0, 1, 2):
        together = sampled(backbone, PROMPTS, (0, 1, 2), names, 3)
    with members(backbone, 2):
        alone = [sampled(backbone, [p], (2,), [name], 2)[0][0] for p, name in zip(PROMPTS, names)]
    assert alone == [of_prompt[:2] for of_prompt in together[2]]
    with members(backbone, 2):
        renamed = sampled(backbone, PROMPTS, (2,), [name + "'" for name in names], 2)[0]
        reseeded = sampled(backbone, PROMPTS, (3,), names, 2)[0]
    texts = {tuple(map(tuple, found)) for found in (alone, renamed, reseeded) for found in found}
    assert len(texts) == 3 * len(names), "the example's id and the stream count"
    assert len({text for of_prompt in together[2] for text in of_prompt}) == 15, "and so does the draw"


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.5, 0.7)])
def test_samples_are_as_frequent_as_they_are_probable(backbone, temperature, top_p):
    """A chi-square test of 4,000 first tokens, and of the second ones after the most frequent first."""
    with members(backbone, 0):
        chooser = Sampling([("seed", 0)], ["a"], 4000, temperature, top_p)
        (((*texts,),),) = decode(read_prompts(backbone, PROMPTS[:1]), chooser, 2)
        firsts = np.array([text.token_ids[0] for text in texts])
        most = int(np.bincount(firsts).argmax())
        seconds = np.array([text.token_ids[1] for text in texts if text.token_ids[0] == most])
        for before, tokens in (([], firsts), ([most], seconds)):
            p_V = (next_logits(backbone, [*PROMPTS[0], *before])[0] / temperature).softmax(-1).numpy()
            order = np.argsort(-p_V)
            kept = order[: int((np.cumsum(p_V[order]) < top_p - 1e-12).sum()) + 1]
            assert set(tokens) <= set(kept.tolist())
            expected = len(tokens) * p_V[kept] / p_V[kept].sum()
            frequent = expected >= 5
            counts = np.bincount(tokens, minlength=len(p_V))[kept]
            rare = [(~frequent).any()] if expected[~frequent].sum() >= 1 else []
            seen = [*counts[frequent], *(counts[~frequent].sum() for _ in rare)]
            wanted = [*expected[frequent], *(expected[~frequent].sum() for _ in rare)]
            assert len(seen) > 3
            wanted = np.array(wanted) * sum(seen) / sum(wanted)
            assert stats.chisquare(seen, wanted).pvalue > 1e-3


def test_nucleus_is_what_a_full_sort_finds():
    """Also where it has more tokens than are looked at first, and where the last ones are equal."""
    probs = torch.rand(3, 3000, generator=torch.Generator().manual_seed(0)).softmax(-1)
    found = nucleus(probs, 0.6)
    ordered, order = probs.sort(-1, descending=True)
    num = (ordered.double().cumsum(-1) < 0.6).sum(-1) + 1
    for row in range(3):
        assert num[row] > 256
        kept = found[row].nonzero()[:, 0]
        assert set(kept.tolist()) == set(order[row, : num[row]].tolist())
        assert torch.equal(found[row, kept], probs[row, kept])
    tied = torch.tensor([[0.25, 0.4, 0.25, 0.1]])
    assert torch.equal(nucleus(tied, 0.5), torch.tensor([[0.25, 0.4, 0.25, 0.0]]))


@pytest.mark.parametrize("setting", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_sampling_outside_its_range_is_refused(setting):
    with pytest.raises(ValueError, match="must be"):
        Sampling([("seed", 0)], ["a"], 1, **setting)


# Ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chooser", [Greedy, LockStep, "samples"])
def test_texts_that_end_leave_the_others_as_they_are(backbone, chooser):
    """Ended texts are dropped from the batch: an eighth of all tokens end one here."""
    names = [str(n) for n in range(6)]
    prompts = [*PROMPTS, [8, 9]]

    def make(names):
        return Sampling([("seed", 0), ("seed", 1)], names, 3) if chooser == "samples" else chooser()

    with members(backbone, 0, 1):
        whole = decode(read_prompts(backbone, prompts), make(names), 12)
        ends = list(range(0, 64, 8))
        backbone.lm.generation_config.eos_token_id = ends
        found = decode(read_prompts(backbone, prompts), make(names), 12)
    lengths = set()
    for member, all_of_member in zip(found, whole):
        for of_prompt, all_of_prompt in zip(member, all_of_member):
            for text, full in zip(of_prompt, all_of_prompt):
                ended = [step for step, token in enumerate(full.token_ids) if token in ends]
                length = ended[0] + 1 if ended else 12
                assert text.token_ids == full.token_ids[:length] and text.finished == bool(ended)
                assert not full.finished and len(full.token_ids) == 12
                shown = text.token_ids[:-1] if ended else text.token_ids
                assert text.text == backbone.tokenizer.decode(shown, skip_special_tokens=True)
                lengths.add(length)
    assert len(lengths) > 2


def test_a_text_is_cut_before_its_first_stop(backbone):
    with members(backbone, 0):
        read = read_prompts(backbone, PROMPTS)
        whole = [text for (text,) in decode(read, Greedy(), 10)[0]]
        words = [text.text.split() for text in whole]
        stop = (f"{words[0][3]} {words[0][4]}", words[1][6])  # of two tokens, and of one
        found = [text for (text,) in decode(read, Greedy(), 10, stop)[0]]
    for text, full in zip(found, whole):
        ends = [full.text.find(s) for s in stop if s in full.text]
        if not ends:
            assert text == full and not text.finished
            continue
        assert text.text == full.text[: min(ends)] and text.finished
        num = len(text.token_ids)
        assert text.token_ids == full.token_ids[:num]
        before, until = (backbone.tokenizer.decode(full.token_ids[:n]) for n in (num - 1, num))
        assert any(s in until for s in stop) and not any(s in before for s in stop)
    assert sum(text.finished for text in found) in range(2, len(found) + 1)


def test_a_text_without_probabilities_is_cut_and_the_others_go_on(backbone):
    with members(backbone, 0, 1) as adapters:
        whole = decode(read_prompts(backbone, PROMPTS), Greedy(), 8)
        poison = whole[0][0][0].token_ids[2]
        backbone.lm.get_input_embeddings().weight[poison] = float("nan")
        found = decode(read_prompts(backbone, PROMPTS), Greedy(), 8)
        for member, all_of_member in zip(found, whole):
            for (text,), (full,) in zip(member, all_of_member):
                at = [step for step, token in enumerate(full.token_ids) if token == poison]
                num = at[0] + 1 if at else 8
                assert text.token_ids == full.token_ids[:num] and not text.finished
        assert 1 <= len(found[0][0][0].token_ids) <= 3
        assert any(len(text.token_ids) == 8 for member in found for (text,) in member)
        adapters.load([adapters.state(0), {k: v * float("nan") for k, v in adapters.state(1).items()}])
        read = read_prompts(backbone, PROMPTS)
        greedy, samples = (
            decode(read, chooser, 8)
            for chooser in (Greedy(), Sampling([("seed", 0), ("seed", 1)], list("abcde"), 1))
        )
        assert greedy[0] == found[0]
        for broken in (*greedy[1], *samples[1], *decode(read, LockStep(), 8)[0]):
            assert broken == [Text((), "", False)]


# Refusals --------------------------------------------------------------------------------------------------


def test_what_cannot_write_is_refused(backbone, tiny_trial):
    encoder = Backbone("vit", backbone.lm, Inputs({}, None))
    with pytest.raises(ValueError, match="is an encoder"):
        read_prompts(encoder, PROMPTS)
    with (
        Adapters(backbone, LastLayer(), [("member", 0)], answer_ids=(5, 6)),
        pytest.raises(ValueError, match=r"LastLayer\(.*cannot write"),
    ):
        read_prompts(backbone, PROMPTS)
    masks = tiny_trial(regularizers=(Masksembles(masks=4),))
    key = masks.member_key(0)
    noise = make_noise(masks.method, masks.regularizers, [key])
    with (
        Adapters(backbone, masks.method, [key["init"]], noise),
        pytest.raises(ValueError, match="4 masks each cannot write"),
    ):
        score(backbone, PROMPTS, [[[3]]] * len(PROMPTS))


def test_texts_beyond_what_the_backbone_reads_are_refused(backbone):
    most = backbone.lm.config.max_position_embeddings
    with pytest.raises(ValueError, match=f"reads {most} tokens; a prompt has 8, max_new_tokens={most - 7}"):
        decode(read_prompts(backbone, PROMPTS), Greedy(), most - 7)
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        decode(read_prompts(backbone, PROMPTS), Greedy(), 0)
    with pytest.raises(ValueError, match="prompt 1 has no token"):
        read_prompts(backbone, [[1], []])


@pytest.mark.parametrize("stop", ["", "\u2603"])
def test_a_stop_that_no_text_can_have_is_refused(backbone, stop):
    with pytest.raises(ValueError, match="stop="):
        decode(read_prompts(backbone, PROMPTS), Greedy(), 4, (stop,))


def test_a_rule_that_is_none_is_refused():
    with pytest.raises(ValueError, match="lockstep='median'"):
        LockStep("median")


# Scores ----------------------------------------------------------------------------------------------------


class Recorder(Greedy):
    """Greedy, which notes each member's log-probabilities while it writes."""

    def __init__(self):
        self.seen = []

    def choose(self, backbone, logits_MSV, rows_MS, step):
        self.seen.append(logits_MSV.double().log_softmax(-1))
        return super().choose(backbone, logits_MSV, rows_MS, step)


def test_scores_are_those_seen_while_the_text_was_written(backbone):
    recorder = Recorder()
    with members(backbone, 0, 1, 2):
        written = ids_of(decode(read_prompts(backbone, PROMPTS), recorder, 6))
        found = score(backbone, PROMPTS, [[member[n][0] for member in written] for n in range(5)])
    for m, member in enumerate(written):
        for n, (tokens,) in enumerate(member):
            logp_TV = torch.stack([step[m, n] for step in recorder.seen]).numpy()
            says = found[n][m]
            assert says.log_probs_MT.shape == says.entropies_MT.shape == (3, 6)
            own = logp_TV[np.arange(6), list(tokens)]
            np.testing.assert_allclose(says.log_probs_MT[m], own, atol=2e-5)
            np.testing.assert_allclose(says.entropies_MT[m], -(np.exp(logp_TV) * logp_TV).sum(-1), atol=2e-5)


@pytest.mark.parametrize("method", [LORA, Full()], ids=lambda method: method.label)
def test_scores_are_those_of_every_text_read_alone(backbone, method, monkeypatch):
    """Whatever answers are beside it, and in blocks of two tokens."""
    monkeypatch.setattr(scores, "LOGIT_BYTES", 2 * 2 * 4 * backbone.lm.config.vocab_size)
    answers = [[[3, 4, 5], [9]], [], [[], [11, 12]], [[]], [[40, 41, 42, 43, 44, 45, 46]]]
    with members(backbone, 0, 1, method=method):
        found = score(backbone, PROMPTS, answers)
        for prompt, of_prompt, says in zip(PROMPTS, answers, found, strict=True):
            assert len(of_prompt) == len(says)
            for answer, say in zip(of_prompt, says):
                assert say.log_probs_MT.shape == say.entropies_MT.shape == (2, len(answer))
                assert say.mean_entropy_T.shape == (len(answer),)
                for t, token in enumerate(answer):
                    logp_MV = next_logits(backbone, [*prompt, *answer[:t]]).log_softmax(-1)
                    mean_V = logp_MV.exp().mean(0)
                    entropies_M = -(logp_MV.exp() * logp_MV).sum(-1)
                    np.testing.assert_allclose(say.log_probs_MT[:, t], logp_MV[:, token], atol=2e-5)
                    np.testing.assert_allclose(say.entropies_MT[:, t], entropies_M, atol=2e-5)
                    np.testing.assert_allclose(
                        say.mean_entropy_T[t], -(mean_V * mean_V.log()).sum(), atol=2e-5
                    )


def test_a_member_without_numbers_has_no_score_and_the_others_have(backbone):
    with members(backbone, 0, 1) as adapters:
        ((before,),) = score(backbone, PROMPTS[:1], [[[3, 4]]])
        adapters.load([adapters.state(0), {k: v * float("nan") for k, v in adapters.state(1).items()}])
        ((after,),) = score(backbone, PROMPTS[:1], [[[3, 4]]])
    assert np.array_equal(after.log_probs_MT[0], before.log_probs_MT[0])
    assert np.isnan(after.log_probs_MT[1]).all() and np.isnan(after.mean_entropy_T).all()


def test_prompts_are_read_in_batches_that_bound_the_cache(backbone, monkeypatch):
    monkeypatch.setitem(
        decoding.CACHE_BYTES, "cpu", 30 * 2 * decoding.token_bytes(vars(backbone.lm.config), 4)
    )
    with members(backbone, 0, 1):
        batches = [list(batch) for batch in prompt_batches(backbone, PROMPTS, room=4, draws=2)]
    assert sorted(n for batch in batches for n in batch) == list(range(5))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * (max(len(PROMPTS[n]) for n in batch) + 8) <= 30
    lengths = [len(PROMPTS[n]) for batch in batches for n in batch]
    assert lengths == sorted(lengths, reverse=True) and 1 < len(batches) < 5


def test_prompts_that_are_read_one_after_another_are_as_if_read_at_once(backbone, monkeypatch):
    with members(backbone, 0, 1):
        found = []
        for tokens in (2048, 12):
            monkeypatch.setitem(PREDICT_TOKENS, "cpu", tokens)
            read = read_prompts(backbone, PROMPTS)
            found.append((read.hidden_MND, ids_of(decode(read, Greedy(), 8))))
    (hidden, texts), (in_parts, texts_in_parts) = found
    torch.testing.assert_close(hidden, in_parts, atol=1e-5, rtol=0)
    assert texts == texts_in_parts


def test_planned_bytes_of_a_token_are_those_that_are_kept(backbone):
    read = read_prompts(backbone, [[7, 8, 9]] * 2)
    (reading,) = read.readings
    kept = [t for layer in reading.layers.values() for kept in layer for t in kept]
    tokens = 2 + 2 * 1  # shared ones once, and the last of each
    assert sum(t.nbytes for t in kept) == tokens * decoding.token_bytes(backbone.lm.config.to_dict(), 4)
