"""Names of the files and folders of a storage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lorae.combinations import COMBINATIONS
from lorae.draws import Fitted, read_draws
from lorae.identity import digest

WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
POSTERIOR = "posterior.safetensors"  # of Gaussian weights what PEFT's adapter has no place for
RECORD, CURVE_FILE, PATH_FILE = "member.json", "curve.parquet", "path.parquet"
LATER_RECORD = "later.json"  # of a member that tuning trained: what its predictions after the choice cost
SOUP_RECORD = "soup.json"  # its members with the checksums of their weights, and what its predictions cost
CUT = "middle"  # of prompts that are too long; records of members that lost the beginning do not say so


def journal_file(members: Iterable[str]) -> str:
    """Of members that are being stored together."""
    return f"journal/{digest(sorted(members))}.json"


def member_folder(member_id: str) -> str:
    """Of a trained member."""
    return f"members/{member_id}"


def reference_folder(reference_id: str) -> str:
    """Of an untouched backbone's predictions."""
    return f"reference/{reference_id}"


def soup_folder(member_ids: Sequence[str], soup: str = "weights") -> str:
    """Of the predictions of the soup of these members, whatever their order.

    Args:
        soup: name of the combination that makes it.
    """
    return f"soups/{COMBINATIONS[soup].entry_id(member_ids)}"


def texts_folder(member_ids: Sequence[str]) -> str:
    """Of the texts of these members together, in their order, with what each says of all."""
    return f"pools/{digest(['texts', *member_ids])}"


def unfinished_file(folder: str, name: str, first: int) -> str:
    """Of an entry's answers from this example on, until all of them are written."""
    return f"unfinished/{folder.replace('/', '-')}-{name}-{first}.parquet"


def pool_folders(member_ids: Sequence[str], reference_id: str, soup: str | None) -> list[str]:
    """Folders whose draws make up an ensemble: its members', that of their soup, or without members the
    backbone's own."""
    if soup:
        return [soup_folder(member_ids, soup)]
    return [member_folder(m) for m in member_ids] or [reference_folder(reference_id)]


def entry_lock(folder: str) -> str:
    """Name of the lock on an entry: a member's is its id."""
    kind, _, entry = folder.rpartition("/")
    return entry if kind == "members" else f"{kind}-{entry}"


def fit_file(draws: Fitted, tensors: bool = False) -> str:
    """Of the numbers of a fit, or of its tensors, if it has any."""
    return f"{draws.label}.{'safetensors' if tensors else 'json'}"


def is_fit_file(name: str) -> bool:
    """Whether a file of a member is what its draws were fitted by."""
    return isinstance(read_draws(name.rpartition(".")[0]), Fitted)


def checkpoint_file(stack_id: str) -> str:
    """State of a stack whose training has begun, from which it is resumed."""
    return f"checkpoints/{stack_id}.safetensors"


def trials_file(sweep: str) -> str:
    """Of a sweep's table."""
    return f"sweeps/{sweep}/trials.parquet"


def snapshot_file(number: int) -> str:
    """Parameters of a member at the end of a cycle of its learning rate, from 0; the last are WEIGHTS."""
    return f"snapshots/{number}.safetensors"
