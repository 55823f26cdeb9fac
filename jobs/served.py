"""`lorae verify URL STORAGE`: are served probabilities those of the stored members? Some servers silently
drop adapter weights that they do not know."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lorae.engine.ensembles import Ensemble

TIMEOUT_SECONDS = 120.0
MAX_ANSWER_BYTES = 2**26
AT_ONCE = 64  # inputs per request
TOLERANCE = {"fp32": 0.005, "bf16": 0.03}  # per probability, by the members' precision


@dataclass(frozen=True)
class Finding:
    """How much a served member differs from the stored one.

    Args:
        difference: largest difference of a class probability.
        like: what it answers like instead, in words; "" if unknown.
    """

    member: str
    difference: float
    is_off: bool
    like: str = ""

    def __str__(self) -> str:
        told = f"{'OFF' if self.is_off else 'ok ':<3}  member {self.member}  differs by {self.difference:.2g}"
        return told + (f"; it answers like {self.like}" if self.like else "")


def verify(url: str, ensemble: Ensemble, texts: Sequence[Any], tolerance: float | None) -> list[Finding]:
    """Compare the members behind an endpoint of `lorae serve` with the stored ones.

    Args:
        texts: inputs that both predict.
        tolerance: largest difference of a probability that counts as rounding; None = by the precision.
    Raises:
        ValueError: there is no such endpoint, or it serves other members.
    """
    ids = ensemble.row["member_ids"]
    expected = ensemble.predict(texts).member_probabilities
    backbone = ensemble.backbone_probabilities(texts)
    served = _served(url, texts, expected.shape)
    most = TOLERANCE[ensemble.row["precision"]] if tolerance is None else tolerance
    found = []
    for number, member in enumerate(ids if len(expected) > 1 else ids[:1]):
        difference = float(np.abs(served[number] - expected[number]).max())
        off = not difference <= most  # NaN is off too
        others = {f"member {other}": p for other, p in zip(ids, expected) if other != member}
        if backbone is not None:
            others["the backbone without its adapter"] = backbone
        like = next((n for n, p in others.items() if np.abs(served[number] - p).max() <= most), "")
        found.append(Finding(member, difference, off, like if off else ""))
    return found


def _served(url: str, texts: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Member probabilities (M, N, C) from the endpoint; 0 for classes that an input lacks."""
    num_members, _, num_classes = shape
    rows: list[Any] = []
    for start in range(0, len(texts), AT_ONCE):
        rows += _post(url, {"inputs": list(texts[start : start + AT_ONCE])})
    served = np.zeros((num_members, len(rows), num_classes))
    try:
        for n, row in enumerate(rows):
            of_row = np.array(row["member_probabilities"], dtype=float)
            served[:, n, : of_row.shape[1]] = of_row
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{url} answers with other members than the {num_members} of this trial; give --trial ID"
        ) from error
    return served


def _post(url: str, body: dict[str, Any]) -> list[Any]:
    place = urllib.parse.urlsplit(url)
    if place.scheme not in ("http", "https") or not place.netloc:
        raise ValueError(f"{url} is no URL of a server; write http://127.0.0.1:8000")
    target = f"{place.scheme}://{place.netloc}{place.path.rstrip('/')}/predict"
    request = urllib.request.Request(target, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            return json.loads(answer.read(MAX_ANSWER_BYTES))["predictions"]
    except urllib.error.HTTPError as error:
        raise ValueError(
            f"{target} refused: {error.code} {error.read(500).decode(errors='replace')}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{target} does not answer as `lorae serve` does: {error}") from error
