"""What `lorae table STORAGE` shows of any sweep: its rows compared, or the texts that its members wrote."""

from __future__ import annotations

from analysis import demo, generation
from analysis.data import Trials
from analysis.script import Content


def content(trials: Trials) -> Content:
    """The standard tables and figures."""
    return (generation if generation.writes_texts(trials) else demo).content(trials)
