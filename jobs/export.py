"""Write a stored member as a PEFT adapter folder."""

from __future__ import annotations

from pathlib import Path

from lorae import untrusted
from lorae.methods import method_named
from lorae.store.names import ADAPTER_CONFIG, RECORD, WEIGHTS, member_folder
from lorae.store.store import Store


def export_member(storage: str, member: str, folder: str) -> Path:
    """Write a member's adapter_config.json and adapter_model.safetensors to a new or empty folder.

    Args:
        member: a member id, or a prefix of it that only one stored member has.
    Raises:
        ValueError: there is no such member or several, it is not a PEFT adapter, or the folder has other
            files.
    """
    store, target = Store(storage), Path(folder)
    matches = [m for m in store.storage.names("members") if m.startswith(member) and store.is_member(m)]
    if len(matches) != 1:
        found = "no stored member" if not matches else f"{len(matches)} members ({', '.join(matches[:5])})"
        raise ValueError(
            f"{member!r} is the beginning of {found} in {store.storage.uri}; give a whole member id"
        )
    if target.is_dir() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty; give a new folder")
    contents = {name: store.read(member_folder(matches[0]), name) for name in (ADAPTER_CONFIG, WEIGHTS)}
    settings = untrusted.json_object(contents[ADAPTER_CONFIG], ADAPTER_CONFIG, {})
    method = settings.get("lorae_method")
    kind = method_named(method.get("type")) if isinstance(method, dict) else None
    if kind and kind.regime == "prompted":
        raise ValueError(
            f"member {matches[0]} is no adapter: it is the untouched backbone with the demonstrations of its "
            f"{store.storage.path(member_folder(matches[0]))}/{RECORD}; put their text before a prompt"
        )
    if "peft_type" not in settings:
        raise ValueError(
            f"member {matches[0]} is no PEFT adapter but {method}; its parameters are "
            f"{store.storage.path(member_folder(matches[0]))}/{WEIGHTS}, under the backbone's own names"
        )
    target.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (target / name).write_bytes(content)
    return target
