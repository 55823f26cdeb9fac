"""A backbone's tokenizer: the one that its tokenizer.json describes, whose ids its model embeds."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lorae.files import check_whole, read_json
from lorae.shards import listed

LOG = logging.getLogger("lorae")
FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
# Where tokenizers differ: case, accents composed or not, digits, runs of spaces, lines, contractions, other
# scripts, widths, marks and code
PROBES = (
    "The Quick brown fox doesn't JUMP over 13 lazy dogs, does it?",
    " leading,  two and   three spaces\tand a tab\n\nA new line: \n- yes\n- no",
    "na\u00efve cafe\u0301 \u00c5ngstr\u00f6m \u2014 \u201cquoted\u201d \u2026 \uff21\uff22 \u00bd 2\u00b2",
    "3.14159 1,000,000 2026-11-30 12:45 100% $5 #1 a@b.c http://x.y/z?q=1",
    "\u65e5\u672c\u8a9e \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0627\u0644 \ud55c"
    " \U0001f642\U0001f44d\U0001f3fd",
    "def f(x):\n    return x**2 != y_0  # snake_case camelCase",
)
NUM_PIECES = 64  # of the vocabulary, of which further probes are made


def read_tokenizer(folder: Path, texts: Sequence[str] = ()) -> Any:
    """The tokenizer of a folder in hub layout.

    transformers chooses a class by names in the config; where that reads other ids than tokenizer.json says,
    the file is taken as it is.

    Args:
        texts: on which the two are compared, beside `PROBES`.
    Raises:
        ValueError: there is none, or it cannot be read, or nothing reads the ids of tokenizer.json.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    for name in (FILE, SETTINGS):
        if (folder / name).is_file():
            check_whole(folder / name)
    tokenizer = _read(AutoTokenizer, folder)
    names = {name for name in type(tokenizer).vocab_files_names.values() if name}
    if names and not any((folder / name).is_file() for name in names):
        raise ValueError(f"{folder} has no tokenizer ({' or '.join(sorted(names))}); copy it there")
    if not (folder / FILE).is_file() or not (difference := differing(tokenizer, folder, texts)):
        return tokenizer
    plain = _read(PreTrainedTokenizerFast, folder)
    if differing(plain, folder, texts):
        raise ValueError(
            f"{folder}: {type(tokenizer).__name__} reads {difference!r} as other ids than {FILE} says; take "
            f"that file, {SETTINGS} and config.json of one checkpoint"
        )
    LOG.info(
        "%s: read as tokenizer.json says; %s, which the configs name, reads other ids, of %r for one",
        folder,
        type(tokenizer).__name__,
        difference,
    )
    return plain


def _read(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # `tokenizers` raises plain ones
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{folder} has no tokenizer that can be read ({first}); copy it there") from error


def differing(tokenizer: Any, folder: Path, texts: Sequence[str] = ()) -> str | None:
    """The first text that a tokenizer reads as other ids than tokenizer.json does, if any. What it adds at
    the ends may differ where its settings say what to add."""
    from tokenizers import Tokenizer

    raw = Tokenizer.from_file(str(folder / FILE))
    raw.no_truncation()
    raw.no_padding()
    texts = [*PROBES, *_vocabulary_probes(raw), *texts]
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    both = (False,) if {"add_bos_token", "add_eos_token"} & settings.keys() else (False, True)
    for special in both:
        ours = tokenizer(texts, add_special_tokens=special)["input_ids"]
        for text, ids, encoding in zip(texts, ours, raw.encode_batch(texts, add_special_tokens=special)):
            if ids != encoding.ids:
                return text
    return None


def _vocabulary_probes(raw: Any) -> list[str]:
    """Texts of pieces of the vocabulary, as most words are unknown to a small one."""
    size = raw.get_vocab_size()
    pieces = [raw.id_to_token(number) or "" for number in range(0, size, max(1, size // NUM_PIECES))]
    return [" ".join(pieces), "".join(pieces), " ".join(pieces).upper(), " ".join(map(str.title, pieces))]


def check_embedded(tokenizer: Any, num_embedded: int, folder: Path, texts: Iterable[str] = ()) -> None:
    """Refuse a tokenizer whose ids lie beyond what its model embeds; special tokens, which some models have
    for other uses, only where a text holds them.

    Raises:
        ValueError: both sizes, and what to do.
    """
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= num_embedded}
    if not beyond:
        return
    unused = {token for token in beyond if token in _special(tokenizer)}
    found = sorted(beyond.keys() - unused) or sorted(t for t in unused if any(t in text for text in texts))
    if found:
        raise ValueError(
            f"{folder}: its tokenizer has ids up to {max(beyond.values())}, such as of {listed(found)}, its "
            f"model embeds {num_embedded}; take the tokenizer of these weights, or data without such tokens"
        )


def _special(tokenizer: Any) -> set[str]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {token.content for token in added.values() if token.special}
