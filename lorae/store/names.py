"""Names of the files and folders of a storage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lorae.combinations import COMBINATIONS
from lorae.draws import Fitted, read_draws
from lorae.identity import digest

WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
POSTERIOR = "posterior.safetensors"  # parts of Gaussian weights that PEFT's adapter cannot hold
RECORD, CURVE_FILE, PATH_FILE = "member.json", "curve.parquet", "path.parquet"
LATER_RECORD = "later.json"  # of a member trained for tuning: the cost of its predictions after the choice
SOUP_RECORD = "soup.json"  # its members with the checksums of their weights, and its predictions' cost
CUT = "middle"  # of too long prompts; records of members whose prompts lost the beginning lack it


def journal_file(members: Iterable[str]) -> str:
    """Journal file of members that are being stored together."""
    return f"journal/{digest(sorted(members))}.json"


def member_folder(member_id: str) -> str:
    """Folder of a trained member."""
    return f"members/{member_id}"


def reference_folder(reference_id: str) -> str:
    """Folder of an untouched backbone's predictions."""
    return f"reference/{reference_id}"


def soup_folder(member_ids: Sequence[str], soup: str = "weights") -> str:
    """Folder of the predictions of the soup of these members, whatever their order.

    Args:
        soup: name of the combination that makes the soup.
    """
    return f"soups/{COMBINATIONS[soup].entry_id(member_ids)}"


def texts_folder(member_ids: Sequence[str]) -> str:
    """Folder of the texts that these members write together, in this order, with each member's scores of
    all."""
    return f"pools/{digest(['texts', *member_ids])}"


def unfinished_file(folder: str, name: str, first: int) -> str:
    """File of an entry's answers from this example on, until all are written."""
    return f"unfinished/{folder.replace('/', '-')}-{name}-{first}.parquet"


def pool_folders(member_ids: Sequence[str], reference_id: str, soup: str | None) -> list[str]:
    """Folders whose draws make up an ensemble: those of its members, of their soup, or, without members, of
    the backbone."""
    if soup:
        return [soup_folder(member_ids, soup)]
    return [member_folder(m) for m in member_ids] or [reference_folder(reference_id)]


def entry_lock(folder: str) -> str:
    """Name of the lock on an entry; for a member, its id."""
    kind, _, entry = folder.rpartition("/")
    return entry if kind == "members" else f"{kind}-{entry}"


def fit_file(draws: Fitted, tensors: bool = False) -> str:
    """File name of a fit's scalars or tensors."""
    return f"{draws.label}.{'safetensors' if tensors else 'json'}"


def is_fit_file(name: str) -> bool:
    """Whether a member's file is a fit of its draws."""
    return isinstance(read_draws(name.rpartition(".")[0]), Fitted)


def checkpoint_file(stack_id: str) -> str:
    """File of an unfinished stack's state, from which training resumes."""
    return f"checkpoints/{stack_id}.safetensors"


def trials_file(sweep: str) -> str:
    """File of a sweep's table."""
    return f"sweeps/{sweep}/trials.parquet"


def snapshot_file(number: int) -> str:
    """File of a member's parameters at the end of learning-rate cycle `number` (from 0); the last cycle's are
    in WEIGHTS."""
    return f"snapshots/{number}.safetensors"
