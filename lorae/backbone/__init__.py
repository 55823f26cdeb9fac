"""Frozen backbones: their files, weights and tokenizers, and packed forward passes."""
