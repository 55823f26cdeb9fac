"""The demo's sweep file on a tiny model."""

from __future__ import annotations

DEMO_ON_A_TINY_MODEL = """
from dataclasses import replace
from toys import Colours, Greys
from lorae.regularizers import KL, DecayB
from lorae.sources import Files
from lorae.trial import AdamW
from pipelines.demo import SWEEP as DEMO
base = replace(DEMO.base, backbone=Files({backbone!r}), task=Colours(), precision="fp32")
base = replace(base, optimizer=AdamW(lr=3e-3))
regularizers = [(), (KL(beta=0.3),), (DecayB(strength=50.0),)]
axes = {{"regularizers": regularizers, "members": [1, 2, 4]}}
SWEEP = replace(DEMO, base=base, axes=axes, tune={{}}, ood=[Greys()])
"""
