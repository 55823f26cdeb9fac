"""The stored answers of a row: of a member, of members together, of a soup, or of the backbone."""

from __future__ import annotations

from analysis.rows import Row, describe, eval_sets, pool, soup
from lorae.store.answers import Answer, answers_file
from lorae.store.names import texts_folder
from lorae.store.store import Store


def stored_answers(store: Store, row: Row, where: str) -> tuple[Answer, ...] | None:
    """Answers of a row's members on "test", "validation" or an OOD task; None if they are not stored.

    Raises:
        ValueError: they are damaged, or of several decodings, between which nothing decides.
    """
    folder = texts_of(row)
    names = answer_names(store, folder, eval_sets(row)[where])
    if len(names) > 1:
        raise ValueError(
            f"{describe(row)} has answers of {len(names)} decodings ({', '.join(names)}); delete those that "
            "are not meant, or write each decoding into a storage of its own"
        )
    return store.answers(folder, names[0]).answers if names else None


def texts_of(row: Row) -> str:
    """Folder of the answers of a row's members together."""
    several = row["members"] > 1 and not soup(row)
    return texts_folder(row["member_ids"]) if several else pool(row)[0]


def answer_names(store: Store, folder: str, eval_set: str) -> list[str]:
    """Names of an entry's answers to an evaluation set, one for each decoding."""
    start, end = answers_file(f"{eval_set}-\0").split("\0")
    files = (file for file in store.files(folder) if file.startswith(start) and file.endswith(end))
    return sorted(file.removeprefix(answers_file("").split(".")[0]).removesuffix(end) for file in files)
