"""Mini's encoder: a table of words, small, trained with its transformer and shipped with it."""

import logging
import re

import torch
from torch import Tensor, nn

logger = logging.getLogger("longlive")
_WORD = re.compile(r"[^\W_]+")


class WordEncoder(nn.Module):
    """A trained vector for every known word, plus one for its place in the sentence."""

    def __init__(self, words: tuple[str, ...], text_tokens: int, text_dim: int):
        super().__init__()
        self.words = words
        self._index = {word: index for index, word in enumerate(words)}
        self.text_tokens = text_tokens
        self.table = nn.Embedding(len(words), text_dim)
        self.places = nn.Parameter(torch.randn(text_tokens, text_dim) * 0.1)

    def tokenize(self, prompt: str) -> list[int]:
        """Indices of the known words, at most `text_tokens`; unknown words are left out with a warning."""
        found = _WORD.findall(prompt.casefold())
        unknown = sorted({word for word in found if word not in self._index})
        if unknown:
            known_words, words = " ".join(self.words), ", ".join(unknown[:8])
            logger.warning("Mini does not know %s in %r; it knows: %s", words, prompt[:200], known_words)
        known = [self._index[word] for word in found if word in self._index]
        if len(known) > self.text_tokens:
            logger.warning(
                "LongLive Mini reads only the first %d words of %r", self.text_tokens, prompt[:200]
            )
        return known[: self.text_tokens]

    def forward(self, prompts: list[str]) -> Tensor:
        """Prompts -> [B, text tokens, text dim]; rows after the last word are zero."""
        return torch.stack([self._embed(self.tokenize(prompt)) for prompt in prompts])

    def _embed(self, tokens: list[int]) -> Tensor:
        rows = self.table(torch.tensor(tokens, dtype=torch.long, device=self.places.device))
        rows = rows + self.places[: len(tokens)]
        return nn.functional.pad(rows, (0, 0, 0, self.text_tokens - len(tokens)))
