"""Mini's text encoder, as UMT5 is LongLive's: a small table of words, shipped with the transformer."""

import logging
import re

import torch
from torch import Tensor, nn

logger = logging.getLogger("longlive")
_WORD = re.compile(r"[^\W_]+")


class WordEncoder(nn.Module):
    """Word embedding plus position embedding: prompts -> [B, text tokens, text dim]."""

    def __init__(self, words: tuple[str, ...], text_tokens: int, text_dim: int):
        super().__init__()
        self.words = words
        self._index = {word: index for index, word in enumerate(words)}
        self.text_tokens = text_tokens
        self.table = nn.Embedding(len(words), text_dim)
        self.places = nn.Parameter(torch.randn(text_tokens, text_dim) * 0.1)

    def tokenize(self, prompt: str) -> list[int]:
        """Indices of the known words, at most `text_tokens`; logs `warnings`."""
        for warning in self.warnings(prompt):
            logger.warning("%s", warning)
        return self._known(prompt)[: self.text_tokens]

    def warnings(self, prompt: str) -> list[str]:
        """One sentence on unknown words and one on words beyond `text_tokens`, where there are any."""
        known, found = self._known(prompt), []
        if unknown := sorted({*self._split(prompt)} - {self.words[index] for index in known}):
            names = ", ".join(unknown[:8])
            found.append(f"Mini does not know {names} in {prompt[:200]!r}; the README lists its words")
        if len(known) > self.text_tokens:
            found.append(f"Mini uses only the first {self.text_tokens} words of {prompt[:200]!r}")
        return found

    def _known(self, prompt: str) -> list[int]:
        return [self._index[word] for word in self._split(prompt) if word in self._index]

    @staticmethod
    def _split(prompt: str) -> list[str]:
        return _WORD.findall(prompt.casefold())

    def forward(self, prompts: list[str]) -> Tensor:
        """Prompts -> [B, text tokens, text dim]; rows after the last word are zero."""
        return torch.stack([self._embed(self.tokenize(prompt)) for prompt in prompts])

    def _embed(self, tokens: list[int]) -> Tensor:
        rows = self.table(torch.tensor(tokens, dtype=torch.long, device=self.places.device))
        rows = rows + self.places[: len(tokens)]
        return nn.functional.pad(rows, (0, 0, 0, self.text_tokens - len(tokens)))
