"""Texts that M members of a stack write, and what they say of texts.

    with Adapters(backbone, method, keys) as adapters:
        adapters.load(states)
        for chosen in prompt_batches(backbone, prompts, room=64):
            read = read_prompts(backbone, [prompts[n] for n in chosen])
            greedy_MN1 = decode(read, Greedy(), 64, stop=("\\n",))
            pooled_1N1 = decode(read, LockStep("mean"), 64, stop=("\\n",))
            samples_MNK = decode(read, Sampling(keys, ids, draws=5), 64, stop=("\\n",))
        says = score(backbone, prompts, answers)

The prompts are read once, whatever is decoded of them. A `Soup` in place of `Adapters` writes as one member.
"""

from lorae.engine.decoding.choosing import Chooser, Greedy, LockStep, Sampling
from lorae.engine.decoding.prompts import Prompts, check_decodes, prompt_batches, read_prompts
from lorae.engine.decoding.scores import Says, score
from lorae.engine.decoding.texts import Text, decode

__all__ = [
    "Chooser",
    "Greedy",
    "LockStep",
    "Prompts",
    "Sampling",
    "Says",
    "Text",
    "check_decodes",
    "decode",
    "prompt_batches",
    "read_prompts",
    "score",
]
