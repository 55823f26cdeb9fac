"""Small random encoders of images, audio and text."""

from __future__ import annotations

from pathlib import Path

from toys import WORDS

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}


MORE = {
    "vit": {"image_size": 16, "patch_size": 4},
    "deit": {"image_size": 16, "patch_size": 4},
    "audio-spectrogram-transformer": {"max_length": 36, "num_mel_bins": 16, "patch_size": 8},
    "bert": {"vocab_size": 60},
    "roberta": {"vocab_size": 60, "pad_token_id": 1, "max_position_embeddings": 40},
    "distilbert": {"vocab_size": 60, "hidden_dim": 64},  # has dim, n_layers, n_heads
}


def write_tokenizer(folder: Path, types: bool = False) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *WORDS]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    single, pair = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
    words.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ends)
    names = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", model_input_names=names
    )
    fast.save_pretrained(folder)


def write_encoder(folder: Path, model: str) -> Path:
    """A random encoder of texts with its tokenizer, as its class for classification saves it."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    write_tokenizer(folder, types=model == "bert")
    torch.manual_seed(0)
    config = AutoConfig.for_model(model, **SIZES | MORE[model], num_labels=3, architectures=[""])
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder
