"""Likenesses of texts by models that are given: an encoder's embeddings, or entailment by an NLI model.

    alike = entailment("microsoft/deberta-base-mnli")       a repository of the hub, or a folder
    Texts(trials, read, SCORES | scores_of(alike, "nli", 0.5))

Only safetensors are read, and no code of a repository is run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorae.sources import Files, Hub, backbone_folder
from lorae.texts.likeness import Likeness, by_embedding, by_entailment

AT_ONCE = 64  # texts, or pairs of texts, of one forward pass
ENTAILMENT, EMBEDDING = 0.5, 0.8  # probability, and cosine, from which two texts mean the same


def entailment(model: str) -> Likeness:
    """Entailment in both directions by an NLI model, whose labels name "entailment".

    Raises:
        ValueError: no such model, or one without that label.
    """
    from transformers import AutoModelForSequenceClassification

    lm, tokenizer = _loaded(model, AutoModelForSequenceClassification)
    labels = {name.lower(): int(n) for n, name in lm.config.id2label.items()}
    if "entailment" not in labels:
        raise ValueError(
            f"{model} has the labels {', '.join(labels)}, none of which is entailment; give an NLI model"
        )

    def probabilities(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        inputs = tokenizer([list(pair) for pair in pairs], **_PADDED)
        return lm(**inputs).logits.softmax(-1)[:, labels["entailment"]].double().numpy()

    return by_entailment(_remembering(probabilities))


def embedding(model: str) -> Likeness:
    """Cosine of an encoder's mean hidden states, as sentence transformers such as MiniLM are used.

    Raises:
        ValueError: no such model.
    """
    from transformers import AutoModel

    lm, tokenizer = _loaded(model, AutoModel)

    def embed(texts: Sequence[str]) -> np.ndarray:
        inputs = tokenizer([text or " " for text in texts], **_PADDED)
        hidden_KTD, mask_KT1 = lm(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
        return ((hidden_KTD * mask_KT1).sum(1) / mask_KT1.sum(1)).double().numpy()

    return by_embedding(_remembering(embed))


_PADDED: dict[str, Any] = {"padding": True, "truncation": True, "max_length": 256, "return_tensors": "pt"}


def _loaded(model: str, kind: Any) -> tuple[Any, Any]:
    """A model without dropout, in fp32 on the CPU, and its tokenizer."""
    from transformers import AutoTokenizer

    folder = backbone_folder(Files(model) if Path(model).is_dir() else Hub(model))
    try:
        lm = kind.from_pretrained(folder, trust_remote_code=False, use_safetensors=True).float().eval()
        return lm, AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{model} cannot be read as {kind.__name__}: {error}") from error


def _remembering(function: Callable[[Sequence[Any]], np.ndarray]) -> Callable[[Sequence[Any]], np.ndarray]:
    """The function computed once of each item, since subsets of members compare the same texts again."""
    known: dict[Any, np.ndarray] = {}

    @functools.wraps(function)
    def remembering(items: Sequence[Any]) -> np.ndarray:
        import torch

        new = [item for item in dict.fromkeys(items) if item not in known]
        with torch.no_grad():
            for start in range(0, len(new), AT_ONCE):
                part = new[start : start + AT_ONCE]
                known.update(zip(part, function(part)))
        return np.array([known[item] for item in items])

    return remembering
