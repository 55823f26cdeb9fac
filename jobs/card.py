"""The model card of an exported ensemble, with code that loads it by `peft` alone; a test runs that code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lorae
from lorae.shapes import kind_of

if TYPE_CHECKING:
    from jobs.export_ensemble import Exported

PAGE = """---
library_name: peft
base_model: {backbone}
license: {licence}
tags: [lora, ensemble, uncertainty]
---

# {num} members on {label}: {task}

An ensemble of {num} adapters ({method}) on one frozen backbone, made by lorae {version}. Each member
predicts; their {averaged} are averaged, and the result is scaled by the temperature {temperature:.4g}
{fitted}.

## What it measured

{table}

{licensed}

## How to load it

Every folder `member-*` opens with `peft.AutoPeftModel...`; `ensemble.json` says how they are averaged. Run
this here:

```python
{code}
```

With lorae the storage itself answers: `lorae.Ensemble.load(storage, "{trial}").{asked}(texts)`.
"""

AVERAGED = """    if said["average"] == "probs":
        logp = torch.stack(logits).softmax(-1).mean(0).log()
    else:
        logp = torch.stack(logits).mean(0).log_softmax(-1)
    return dict(zip(classes, (logp / said["temperature"]).softmax(-1).tolist()))"""

# Members as adapters of one model, or as models where PEFT would share what is drawn for each member (VeRA)
TOGETHER = (
    """first, *others = said["members"]
model = AUTO.from_pretrained(first, adapter_name=firstDTYPE).eval()
for member in others:
    model.load_adapter(member, adapter_name=member)
""",
    "        model.set_adapter(member)\n",
)
APART = (
    """models = {member: AUTO.from_pretrained(memberDTYPE).eval() for member in said["members"]}
""",
    "        model = models[member]\n",
)

CAUSAL = """import json

import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

said = json.load(open("ensemble.json"))
dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[said["precision"]]
LOADtokenizer = AutoTokenizer.from_pretrained(said["backbone"], revision=said["revision"] or "main")


@torch.no_grad()
def predict(text, classes=said["classes"]):
    \"\"\"The ensemble's probability of each class.\"\"\"
PROMPT    ids = tokenizer(prompt, return_tensors="pt").input_ids
    tokens = [tokenizer(prompt + answer)["input_ids"][ids.shape[1]] for answer in answers]
    logits = []
    for member in said["members"]:
SET        logits.append(model(ids).logits[0, -1, tokens].float())
"""

PROMPTS = {
    "words": """    prompt = said["template"].format(question=text)
    answers = [" " + name for name in classes]
""",
    "letters": """    letters = "ABCDEFGH"[: len(classes)]
    choices = "\\n".join(f"{letter}) {name}" for letter, name in zip(letters, classes))
    prompt = said["template"].format(question=text, choices=choices)
    answers = [" " + letter for letter in letters]
""",
}

TEXT_HEAD = """import json

import torch
from peft import AutoPeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer

said = json.load(open("ensemble.json"))
LOADheads = {member: load_file(f"{member}/head.safetensors") for member in said["members"]}
tokenizer = AutoTokenizer.from_pretrained(said["backbone"], revision=said["revision"] or "main")


@torch.no_grad()
def predict(text, classes=said["classes"]):
    \"\"\"The ensemble's probability of each class.\"\"\"
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=said["max_tokens"])
    logits = []
    for member in said["members"]:
SET        hidden = model.get_base_model().base_model(**inputs).last_hidden_state[0]
        pooled = hidden.mean(0) if said["scoring"] == "head-mean" else hidden[0]
        logits.append(heads[member]["head.weight"] @ pooled + heads[member]["head.bias"])
"""

MEDIA_HEAD = """import json

import torch
from peft import AutoPeftModel
from transformers import PROCESSOR

said = json.load(open("ensemble.json"))
settings = {"num_labels": len(said["classes"]), "ignore_mismatched_sizes": True}
models = [AutoPeftModel.from_pretrained(member, **settings).eval() for member in said["members"]]
processor = PROCESSOR.from_pretrained(said["backbone"], revision=said["revision"] or "main")


@torch.no_grad()
def predict(media, classes=said["classes"], **settings):
    \"\"\"The ensemble's probability of each class; of a sound with sampling_rate=...\"\"\"
    inputs = processor(media, return_tensors="pt", **settings)
    logits = [model(**inputs).logits[0] for model in models]
"""


def card(exported: Exported) -> str:
    """The page."""
    row, said, licence = exported.row, exported.said(), exported.licence()
    scaled = row["temperature"] is not None
    return PAGE.format(
        backbone=exported.backbone,
        licence=licence or "other",
        num=len(exported.members),
        label=row["backbone"],
        task=row["task"],
        method=row["method"],
        version=lorae.__version__,
        averaged={"probs": "probabilities", "logits": "logits"}[row["combine"]],
        temperature=said["temperature"],
        fitted="that was cross-fitted on the test examples" if scaled else "(none was found)",
        table=exported.table().strip(),
        licensed=f"Licence of the backbone: {licence}."
        if licence
        else "The licence is the backbone's, which its own page names; lorae found none beside the weights.",
        code=loading_code(exported),
        trial=row["trial_id"],
        asked="generate" if row["decoding"] else "predict",
    )


def loading_code(exported: Exported) -> str:
    """Python that loads the members by `peft` and defines `predict`."""
    kind, scoring = kind_of(exported.config), exported.row["scoring"]
    load, chosen = APART if exported.group.method.peft_frozen else TOGETHER
    if kind == "causal":
        if scoring not in PROMPTS:
            raise ValueError(
                f"scoring {scoring}: an ensemble that scores whole texts has no code by PEFT; predict with "
                'lorae: lorae predict STORAGE --trial ID --text "..."'
            )
        load = load.replace("AUTO", "AutoPeftModelForCausalLM").replace("DTYPE", ", dtype=dtype")
        code = CAUSAL.replace("PROMPT", PROMPTS[scoring])
        return code.replace("LOAD", load).replace("SET", chosen) + AVERAGED
    if kind == "text":
        load = load.replace("AUTO", "AutoPeftModel").replace("DTYPE", "")
        return TEXT_HEAD.replace("LOAD", load).replace("SET", chosen) + AVERAGED
    processor = "AutoImageProcessor" if kind == "image" else "AutoFeatureExtractor"
    return MEDIA_HEAD.replace("PROCESSOR", processor) + AVERAGED
