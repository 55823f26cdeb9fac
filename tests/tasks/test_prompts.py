"""What long prompts lose, and the token that a tokenizer puts before every text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from toys import Colours
from transformers import PreTrainedTokenizerFast

from lorae.backbone.encoders import Read
from lorae.sources import Hub
from lorae.tasks import Example, Head, LabelWords, Letters, OptionLikelihood, Scoring, Task, WinoGrande
from lorae.tasks.base import Prompt
from lorae.tasks.data import parquet
from lorae.tasks.encoding import encode

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


ANSWERS = (("Ġ", "y"), ("Ġ", "n"), ("Ġ", "A"), ("Ġ", "B"))  # what the answers here begin with


def byte_level(pairs: tuple[tuple[str, str], ...] = (), bos: bool = True) -> Any:
    """A tokenizer with a token for every byte, and for some pairs; `<s>` comes before every text."""
    merges = [*ANSWERS, *pairs]
    vocabulary = {token: n for n, token in enumerate(["<s>", *ALPHABET, *("".join(pair) for pair in merges)])}
    raw = Tokenizer(models.BPE(vocabulary, merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    if bos:
        raw.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>")


TOKENIZER = byte_level()


@dataclass(frozen=True, kw_only=True)
class Facts(Task):
    """Is it true? The prompt is "Fact: ... True?"."""

    scoring: Scoring = LabelWords()

    name = "facts"
    home = Hub("toy/facts")
    train = parquet("train-*")
    test = parquet("test-*")
    template = "Fact: {question} True?"


def fact(question: str, options: tuple[str, ...] = ("yes", "no")) -> Example:
    return Example("f", question, options, 0)


def read(
    task: Task, example: Example, most: int, tokenizer: Any = TOKENIZER, context: str = ""
) -> tuple[str, int]:
    """The prompt's text as its tokens have it, and how many of them were cut out."""
    (row,) = encode(tokenizer, task, [example], most, context=context)
    prompt = row.tokens[: row.segments.count(-1)] if row.segments else row.tokens
    return tokenizer.decode(list(prompt)), row.truncated


# What is cut


@pytest.mark.parametrize("scoring", [LabelWords(), OptionLikelihood()])
def test_the_middle_of_the_question_is_cut(scoring: Scoring) -> None:
    longest = len(" yes") - 1 if scoring == OptionLikelihood() else 0  # " y" is one token
    fixed = len("<s>") - 2 + len("Fact:  True?")
    text, cut = read(Facts(scoring=scoring), fact("cdefghijklmopqrs"), fixed + longest + 5)
    assert (text, cut) == ("<s>Fact: cders True?", 11)
    whole, none = read(Facts(scoring=scoring), fact("cdefg"), fixed + longest + 5)
    assert (whole, none) == ("<s>Fact: cdefg True?", 0)


@given(st.text(st.sampled_from("cd é{}?"), min_size=1, max_size=40).filter(str.strip), st.integers(14, 60))
def test_a_prompt_keeps_its_first_token_its_template_and_both_ends(question: str, most: int) -> None:
    before, own, after = (TOKENIZER(text)["input_ids"] for text in ("Fact: ", question, " True?"))
    own, after = own[1:], after[1:]
    (row,) = encode(TOKENIZER, Facts(), [fact(question)], most)
    left = most - len(before) - len(after)
    if len(own) > left:
        own = own[: (left + 1) // 2] + own[len(own) - left // 2 :]
    assert list(row.tokens) == before + own + after


def test_letters_keep_the_options_while_something_is_left_of_the_question() -> None:
    task, example = Facts(scoring=Letters()), fact("cdefghij", ("red", "green"))
    whole = len(TOKENIZER(task.prompt(example).text)["input_ids"])
    text, _ = read(task, example, whole - 7)
    assert "Question: c\nChoices:\nA) red\nB) green\nAnswer:" in text
    text, _ = read(task, example, whole - 12)
    assert text.endswith("Answer:") and text.startswith("<s>Return the label") and "Question: cde" in text
    assert "B) green\nAnswer:" in text, "the end of the options is kept, too"


def test_a_prompt_that_has_no_room_for_its_text_is_refused() -> None:
    message = (
        r"facts f: the prompt has 13 tokens without the example's own text, 13 fit; raise Budget\(max_tok"
    )
    with pytest.raises(ValueError, match=message):
        read(Facts(), fact("cdefgh"), 13)
    assert read(Facts(), fact("cdefgh"), 14) == ("<s>Fact: c True?", 5)


def test_what_follows_the_blank_of_winogrande_is_kept_in_the_options() -> None:
    task = WinoGrande("s", scoring=OptionLikelihood())
    example = Example("w", "He met me, but later _ left.", ("yak", "newt"), 0)
    fixed, longest = len("Sentence: ") + 1, len(" newt left.") - 1
    assert read(task, example, fixed + longest + 6) == ("<s>Sentence: He ter", 14)


def test_a_token_that_spans_a_border_stays_with_what_follows() -> None:
    """Of " T" the tokenizer makes one token, of which the template is the second half."""
    tokenizer = byte_level((("Ġ", "T"), ("d", "ĠT")))
    text, cut = read(Facts(), fact("cefd"), 14, tokenizer)
    assert (text, cut) == ("<s>Fact: cfd True?", 1)


def test_demonstrations_are_no_part_of_the_question() -> None:
    context = "Fact: x True? no\n\n"
    text, cut = read(Facts(), fact("cdefghijklmopqrs"), 12 + 4, byte_level(), context)
    assert (text, cut) == (f"<s>{context}Fact: cdrs True?", 12)


def test_a_task_may_write_its_prompts_itself() -> None:
    class Twice(Facts):
        def prompt(self, example: Example) -> Prompt:
            text = f"{example.question}, that is: {example.question.upper()} ->"
            return Prompt(text, (" yes", " no"))

    class Unknown(Facts):
        """Its prompts do not show the question as it is."""

        def prompt(self, example: Example) -> Prompt:
            return Prompt(str(len(example.question)) * 20, (" yes", " no"))

    class Strict(Facts):
        def prompt(self, example: Example) -> Prompt:
            one, other = example.question.split("|")
            return Prompt(f"{one} so {other}", (" yes", " no"))

    text, _ = read(Twice(), fact("cdefgh"), 14)
    assert text == "<s>cdefgDEFGH ->"
    assert read(Unknown(), fact("abcdef"), 11) == ("<s>" + "6" * 10, 10)
    assert read(Strict(), fact("cdefgh|ijklmo"), 9) == ("<s>cdefklmo", 8)


# The first token


@pytest.mark.parametrize("scoring", [LabelWords(), OptionLikelihood()])
@pytest.mark.parametrize("template", ["<s>Fact: {question}", "Read this. <s> {question}", "{question}<s>"])
def test_a_template_with_the_token_that_comes_first_anyway_is_refused(
    scoring: Scoring, template: str
) -> None:
    task = type("Own", (Facts,), {"template": template})(scoring=scoring)
    message = "facts f: the template has '<s>', which this tokenizer puts before all; leave it out"
    with pytest.raises(ValueError, match=message):
        read(task, fact("abc"), 64)
    text, _ = read(task, fact("abc"), 64, byte_level(bos=False))
    assert text == template.format(question="abc"), "a tokenizer that puts none there has it once"


def test_a_text_that_begins_with_the_first_token_is_refused() -> None:
    class Bare(Facts):
        template = "{question} True?"

    with pytest.raises(ValueError, match="facts f: the text has '<s>', which this tokenizer puts before"):
        read(Bare(), fact("<s>abc"), 64)
    assert read(Bare(), fact("the tag <s>"), 64)[0] == "<s>the tag <s> True?", "elsewhere it is the text's"


def test_an_encoders_text_begins_once() -> None:
    class Processor:
        """What `Inputs` offers of a tokenizer."""

        processor = byte_level()

        def tokens(self, task: Task, examples: list[Example], most: int) -> list[Read]:
            return [Read(tuple(self.processor(e.question)["input_ids"])) for e in examples]

    task = Facts(scoring=Head())
    assert encode(Processor(), task, [fact("abc")], 64)[0].tokens == tuple(TOKENIZER("abc")["input_ids"])
    with pytest.raises(ValueError, match="facts f: the text has '<s>'"):
        encode(Processor(), task, [fact("<s>abc")], 64)


def test_prompts_that_fit_are_what_they_were(tiny_trial: Any) -> None:
    """Nothing changes for them, whatever the tokenizer: their tokens are those of the text."""
    task: Any = tiny_trial().task
    assert isinstance(task, Colours)
    examples = task.examples("train")
    tokenizer = byte_level((("Ġ", "r"), ("Ġ", "g"), ("Ġ", "b")))
    for scoring in (LabelWords(), Letters()):
        scored = replace(task, scoring=scoring)
        rows = encode(tokenizer, scored, examples, 512)
        assert [list(r.tokens) for r in rows] == tokenizer([scored.prompt(e).text for e in examples])[
            "input_ids"
        ]
