"""A backbone's tokenizer: the one that its tokenizer.json describes, whose ids its model embeds."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lorae.files import check_whole
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


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder in hub layout.

    transformers chooses a class by names in the config; where that reads other ids than tokenizer.json says,
    the file is taken as it is.

    Raises:
        ValueError: there is none, or it cannot be read, or nothing reads the ids of tokenizer.json.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    for name in (FILE, SETTINGS):
        if (folder / name).is_file():
            check_whole(folder / name)
    tokenizer = _read(AutoTokenizer, folder)
    names = {FILE, *filter(None, type(tokenizer).vocab_files_names.values())}
    if type(tokenizer).vocab_files_names and not any((folder / name).is_file() for name in names):
        raise ValueError(f"{folder} has no tokenizer ({' or '.join(sorted(names))}); copy it there")
    if not (folder / FILE).is_file() or not (difference := _difference(tokenizer, folder, _probes(folder))):
        return tokenizer
    plain = _read(PreTrainedTokenizerFast, folder)
    check_ids(plain, folder, _probes(folder))
    LOG.info(
        "%s: read as %s says; %s, which the configs name, reads other ids, of %r for one",
        folder,
        FILE,
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


def check_ids(tokenizer: Any, folder: Path, texts: Sequence[str]) -> None:
    """Refuse a tokenizer that reads texts as other ids than its folder's tokenizer.json does.

    Raises:
        ValueError: the text.
    """
    if (folder / FILE).is_file() and (text := _difference(tokenizer, folder, texts)):
        raise ValueError(
            f"{folder}: {type(tokenizer).__name__} reads {text[:80]!r} as other ids than {FILE} says; take "
            f"that file, {SETTINGS} and config.json of one checkpoint"
        )


def _difference(tokenizer: Any, folder: Path, texts: Sequence[str]) -> str | None:
    """The first text with other ids, if any."""
    ours, theirs = tokenizer(list(texts))["input_ids"], _from_file(folder).encode_batch(list(texts))
    return next((t for t, ids, encoding in zip(texts, ours, theirs) if ids != encoding.ids), None)


def _from_file(folder: Path) -> Any:
    from tokenizers import Tokenizer

    raw = Tokenizer.from_file(str(folder / FILE))
    raw.no_truncation()
    raw.no_padding()
    return raw


def _probes(folder: Path) -> list[str]:
    """`PROBES`, and texts of pieces of the vocabulary, as most words are unknown to a small one."""
    raw = _from_file(folder)
    size = raw.get_vocab_size()
    pieces = [raw.id_to_token(number) or "" for number in range(0, size, max(1, size // NUM_PIECES))]
    words = " ".join(pieces)
    return [*PROBES, words, "".join(pieces), words.upper(), words.title()]


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


def end_tokens(lm: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a text: those of the model's generation_config.json, or of its config.json where that
    names none, and the tokenizer's."""
    generation = getattr(lm, "generation_config", None)
    own = getattr(generation, "eos_token_id", None)
    found: set[int] = set()
    for ids in (lm.config.eos_token_id if own is None else own, tokenizer.eos_token_id):
        found |= {ids} if isinstance(ids, int) else set(ids or ())
    return tuple(sorted(found))
