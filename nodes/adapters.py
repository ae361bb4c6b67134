"""LongLive Mini's text encoder with the face of the host's CLIP; stock nodes call nothing else."""

from typing import Any

from torch import Tensor

from ..longlive_core.text.words import WordEncoder

Tokens = dict[str, list[list[tuple[int, float]]]]


class MiniClip:
    """Prompts -> tokens -> embeddings, as the host's text encoders do it."""

    def __init__(self, words: WordEncoder):
        self._words = words

    def tokenize(self, text: str, return_word_ids: bool = False, **_: Any) -> Tokens:
        """One list of (word, weight); LongLive Mini knows no weights, so they are all 1."""
        tokens = self._words.tokenize(text)
        return {"mini": [[(t, 1.0, i) if return_word_ids else (t, 1.0) for i, t in enumerate(tokens, 1)]]}

    def warnings(self, text: str) -> list[str]:
        """What of a prompt is not understood, in sentences."""
        return self._words.warnings(text)

    def encode_from_tokens(
        self, tokens: Tokens, return_pooled: bool | str = False, return_dict: bool = False
    ) -> Tensor | tuple[Tensor, None] | dict[str, Tensor | None]:
        """Embeddings [1, text tokens, text dim]; there is no pooled one."""
        cond = self._words([" ".join(self._words.words[token] for token, *_ in tokens["mini"][0])])
        if return_dict:
            return {"cond": cond, "pooled_output": None}
        return (cond, None) if return_pooled else cond

    def encode_from_tokens_scheduled(self, tokens: Tokens, add_dict: dict | None = None, **_: Any) -> list:
        """A CONDITIONING of one entry."""
        return [[self.encode_from_tokens(tokens), {"pooled_output": None, **(add_dict or {})}]]
