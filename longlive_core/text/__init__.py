"""Prompts -> text embeddings [B, text tokens, text dim], padding rows zero. Knows words, not files.

Mini reads prompts with `words`, the Wan family with UMT5: `tokens`, `encoder`, and `cache`, which spares it.
"""

from .words import WordEncoder

__all__ = ["WordEncoder"]
