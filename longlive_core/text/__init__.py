"""Prompt -> text embeddings [B, text tokens, text dim], padding rows zero: `words` for Mini, UMT5 for Wan."""

from .words import WordEncoder

__all__ = ["WordEncoder"]
