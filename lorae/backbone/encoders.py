"""Encoders of images, audio and text: their inputs, and their pooled features, from which the members' own
heads compute class logits.

Images and audio go through the model's own processor, one example at a time and only when a batch needs them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from lorae.augmentation import Augmented
from lorae.backbone.devices import to_device
from lorae.backbone.packing import ATTENTION, Packing
from lorae.backbone.tokens import read_tokenizer
from lorae.media import Audio, Image
from lorae.shapes import first_position, kind_of, num_pooled_tokens, num_prefix_tokens, num_tokens
from lorae.tasks.base import Example, Task

if TYPE_CHECKING:
    from lorae.backbone.loading import Backbone
    from lorae.tasks.encoding import Row
    from lorae.tasks.scoring import Scoring

# Processed media to keep in memory, 1,780 images of 224 x 224 or 2,048 audio clips for AST: processing one
# takes 7 or 60 ms of a core (measured), and every member reads all of them in every epoch.
CACHE_BYTES = 2**30
# Samples per spectrogram frame, and between frames, at 16 kHz, in transformers' ASTFeatureExtractor
FRAME, HOP = 400, 160


@dataclass(frozen=True)
class Read:
    """An encoder's input for an example.

    Args:
        types: types of the tokens, see `Row`.
        cut: number of tokens cut from the end.
    """

    tokens: tuple[int, ...]
    types: tuple[int, ...] = ()
    cut: int = 0


@dataclass(frozen=True, eq=False)
class Inputs:
    """Converts examples to an encoder's inputs; replaces a causal LM's tokenizer.

    Args:
        config: the backbone's config.json.
        processor: the backbone's own tokenizer, image processor or feature extractor.
    """

    config: dict[str, Any]
    processor: Any
    cache: OrderedDict[str, np.ndarray] = field(default_factory=OrderedDict, repr=False)

    def tokens(self, task: Task, examples: Sequence[Example], max_tokens: int) -> list[Read]:
        """Tokens of each example.

        For a text these are its tokens with special tokens; for a pair, both sentences joined by the model's
        own tokenizer. A text that is too long loses its end; a pair loses the end of the longer sentence,
        token by token. For an image or audio clip the tokens are zeros, one per patch and prefix token; each
        is decoded here once, so that a damaged one ends a stack early.

        Raises:
            ValueError: an image or audio clip that this backbone cannot read; names the example.
        """
        if kind_of(self.config) == "text":
            texts = [(prompt.text, prompt.pair) for prompt in map(task.prompt, examples)]
            whole = self._tokenized(texts)
            long = [text for text, read in zip(texts, whole) if len(read.tokens) > max_tokens]
            rest = iter(self._tokenized(long, truncation="longest_first", max_length=max_tokens))
            kept = [read if len(read.tokens) <= max_tokens else next(rest) for read in whole]
            return [replace(k, cut=len(w.tokens) - len(k.tokens)) for k, w in zip(kept, whole)]
        tokens = (0,) * num_tokens(self.config)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return [Read(tokens, cut=cut) for cut in pool.map(lambda e: self._checked(task, e), examples)]

    @property
    def has_types(self) -> bool:
        """Whether tokens of a pair's second sentence have their own type, as with BERT."""
        names = self.processor.model_input_names
        return "token_type_ids" in names and self.config.get("type_vocab_size", 0) > 1

    def _tokenized(self, texts: Sequence[tuple[str, str | None]], **cut: Any) -> list[Read]:
        """Tokens of texts and pairs, each kind tokenised together; pairs with types, if the model has any."""
        found: dict[int, Read] = {}
        for paired in (False, True):
            places = [n for n, (_, pair) in enumerate(texts) if (pair is not None) == paired]
            typed = paired and self.has_types
            sentences = [*zip(*(texts[n] for n in places))][: 1 + paired]
            if places:
                read = self.processor(*map(list, sentences), return_token_type_ids=typed, **cut)
                types = read["token_type_ids"] if typed else [()] * len(places)
                found |= {n: Read(tuple(i), tuple(t)) for n, i, t in zip(places, read["input_ids"], types)}
        return [found[n] for n in range(len(texts))]

    def _checked(self, task: Task, example: Example) -> int:
        """Decode an example; returns the number of audio frames beyond the backbone's limit."""
        try:
            if isinstance(example.media, Image):
                example.media.pixels()
                return 0
            assert isinstance(example.media, Audio), f"check_backbone refuses {task.modality} here"
            samples, patch = self._samples(example.media), self.config["patch_size"]
            frames = 1 + (len(samples) - FRAME) // HOP
            if frames < patch:
                raise ValueError(
                    f"the audio has {len(samples)} samples, a patch of the backbone "
                    f"{FRAME + (patch - 1) * HOP}; leave it out or pad it"
                )
            return max(0, frames - self.config["max_length"])
        except ValueError as error:
            raise ValueError(f"{task.name} {example.id}: {error}") from error

    def _samples(self, audio: Audio) -> np.ndarray:
        return audio.waveform(self.processor.sampling_rate)

    def processed(self, media: Image | Augmented | Audio) -> np.ndarray:
        """Output of the model's own processor for an image (C, H, W) or for audio (frames, bins), fp32."""
        if not isinstance(media, Audio):
            made = self.processor(
                images=[media.pixels()], input_data_format="channels_last", return_tensors="np"
            )
        else:
            rate = self.processor.sampling_rate
            made = self.processor(self._samples(media), sampling_rate=rate, return_tensors="np")
        return made[self.processor.model_input_names[0]][0]

    def media_batch(self, rows: Sequence[Row]) -> torch.Tensor:
        """Processed distinct media of the rows: media that several members read are processed once."""
        distinct = {row.media.digest: row.media for row in rows if row.media}
        missing = [digest for digest in distinct if digest not in self.cache]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            made = dict(zip(missing, pool.map(self.processed, [distinct[digest] for digest in missing])))
        arrays = [made[digest] if digest in made else self.cache[digest] for digest in distinct]
        once = [digest for digest, media in distinct.items() if isinstance(media, Augmented)]
        self._keep({digest: array for digest, array in zip(distinct, arrays) if digest not in once})
        return torch.from_numpy(np.stack(arrays))

    def _keep(self, arrays: dict[str, np.ndarray]) -> None:
        """Keep the most recently used arrays, up to `CACHE_BYTES`; an augmented image is not seen again."""
        for digest, array in arrays.items():
            self.cache[digest] = array
            self.cache.move_to_end(digest)
        size = max((array.nbytes for array in arrays.values()), default=0)  # all have one shape
        while len(self.cache) * size > CACHE_BYTES:
            self.cache.popitem(last=False)


@dataclass(frozen=True)
class EncoderBatch:
    """Rows on the device, members first; `class_logits` turns it into logits (rows, C)."""

    scoring: Scoring
    inputs: dict[str, Any]  # arguments of the model's forward
    pooled: torch.Tensor  # (rows, T), True at the tokens whose mean the head reads

    @property
    def packing(self) -> Packing | None:
        """How texts are packed; None if every row of the inputs is an example."""
        return self.inputs.get("packing")

    @property
    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Row of each token of the inputs, and its index in that row."""
        if self.packing:
            return self.packing.rows, self.packing.places
        each = (torch.arange(n, device=self.pooled.device) for n in self.pooled.shape)
        rows, places = torch.meshgrid(*each, indexing="ij")
        return rows, places


def read_inputs(folder: Path, config: dict[str, Any]) -> Inputs:
    """The processor in an encoder's folder.

    Raises:
        ValueError: the folder has no processor, or its inputs do not have the size that the model reads.
    """
    import transformers

    kind = kind_of(config)
    if kind == "text":
        return Inputs(config, read_tokenizer(folder))
    auto: Any = transformers.AutoImageProcessor if kind == "image" else transformers.AutoFeatureExtractor
    try:
        inputs = Inputs(config, auto.from_pretrained(folder, trust_remote_code=False))
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{folder} has no preprocessor_config.json that can be read ({first}); copy it there"
        ) from error
    if kind == "image":
        _check_size(inputs, Image.raw(np.zeros((64, 64, 3), np.uint8)), folder)
    elif kind == "audio":
        rate = inputs.processor.sampling_rate
        _check_size(inputs, Audio.raw(np.linspace(-0.1, 0.1, rate, dtype=np.float32), rate), folder)
    return inputs


def _check_size(inputs: Inputs, probe: Image | Audio, folder: Path) -> None:
    config, made = inputs.config, inputs.processed(probe).shape
    if isinstance(probe, Image):
        size = config["image_size"]
        read = (config.get("num_channels", 3), *([size] * 2 if isinstance(size, int) else size))
    else:
        read = (config["max_length"], config["num_mel_bins"])
    if made != tuple(read):
        raise ValueError(
            f"{folder}: its processor makes inputs of shape {made}, its model reads {tuple(read)}; correct "
            "preprocessor_config.json"
        )


def body_only(lm: Any) -> None:
    """Remove the model's own classifier and pooler, which members' heads do not use."""
    for name, _ in list(lm.named_children()):
        if name != lm.base_model_prefix:
            setattr(lm, name, torch.nn.Identity())
    if getattr(lm.base_model, "pooler", None) is not None:
        lm.base_model.pooler = None


def collate(rows: Sequence[Row], backbone: Backbone, num_members: int, pool: str) -> EncoderBatch:
    """Batch of rows, members first with equally many rows each, on the backbone's device; texts are packed if
    the model runs packed, else right-padded.

    Args:
        pool: which tokens' features a head reads, as in `Head`.
    """
    encoder: Inputs = backbone.tokenizer
    lengths = torch.tensor([len(row.tokens) for row in rows])
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    inputs: dict[str, Any]
    if rows[0].media is not None:
        name, order = encoder.processor.model_input_names[0], {}
        index = [order.setdefault(row.media.digest, len(order)) for row in rows if row.media]
        media = encoder.media_batch(rows).to(backbone.device, backbone.dtype, non_blocking=True)
        inputs = {name: media[to_device(index, backbone.device)]}
    elif backbone.lm.config._attn_implementation == ATTENTION:
        packing = Packing.of(lengths.tolist(), num_members, backbone.device).bidirectional()
        positions = packing.places + first_position(encoder.config)
        ids = packing.pack([token for row in rows for token in row.tokens])
        inputs = {"input_ids": ids, "position_ids": positions, "packing": packing}
        if types := _types(rows):
            inputs["token_type_ids"] = packing.pack(types)
    else:
        ids = torch.full(real.shape, encoder.processor.pad_token_id)
        ids[real] = torch.tensor([token for row in rows for token in row.tokens])
        mask = real.long()
        inputs = {
            "input_ids": to_device(ids, backbone.device),
            "attention_mask": to_device(mask, backbone.device),
        }
        if types := _types(rows):
            padded = torch.zeros_like(ids)
            padded[real] = torch.tensor(types)
            inputs["token_type_ids"] = to_device(padded, backbone.device)
    pooled = real.clone()
    if pool == "cls":
        pooled[:, num_pooled_tokens(encoder.config) :] = False
    elif rows[0].media is not None:
        pooled[:, : num_prefix_tokens(encoder.config)] = False
    return EncoderBatch(rows[0].scoring, inputs, to_device(pooled, backbone.device))


def _types(rows: Sequence[Row]) -> list[int]:
    """Types of all rows' tokens, row after row; empty if all are 0."""
    if not any(row.types for row in rows):
        return []
    return [kind for row in rows for kind in (row.types or (0,) * len(row.tokens))]


def features(backbone: Backbone, batch: EncoderBatch) -> torch.Tensor:
    """Pooled features (rows, D) in fp32, the input of the heads."""
    hidden = backbone.lm.base_model(**batch.inputs).last_hidden_state
    if batch.packing:
        hidden = batch.packing.padded(hidden)  # (rows, T, D)
    weights = batch.pooled[:, None].to(hidden.dtype)
    mean = torch.bmm(weights, hidden)[:, 0].float() / batch.pooled.sum(1, keepdim=True)
    if kind_of(backbone.tokenizer.config) == "audio":  # AST's head begins with a norm
        return F.layer_norm(mean, mean.shape[-1:], eps=backbone.lm.config.layer_norm_eps)
    return mean
