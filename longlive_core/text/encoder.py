"""Token ids -> text embeddings: UMT5's encoder from transformers, with its weights as the file stores them.

Every matrix is cast to the precision of the arithmetic only when it is used, one at a time: 8-bit files
stay 8-bit in memory, and on the CPU a memory-mapped file stays one copy.
"""

import re

import torch
from torch import Tensor, nn

from .libraries import library
from .tokens import TEXT_TOKENS, Tokenizer

MAX_DISTANCE = 128
NORM_EPS = 1e-6
CPU_ROWS = 512  # of a matrix, cast at once: few enough to stay in a processor's cache
_FIRST = "encoder.block.0.layer."
_LAYER = re.compile(r"^encoder\.block\.\d+\.layer\.0\.SelfAttention\.q\.weight$")


def widened(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """`stored` in a wider dtype.

    torch converts 8-bit floats on a CPU one by one, several times slower than it multiplies with them. Their
    bits fit into a half float, whose exponent counts from 15 instead of 7; the two codes of NaN become 480.
    """
    if stored.dtype != torch.float8_e4m3fn or stored.device.type != "cpu":
        return stored.to(dtype)
    bits = stored.view(torch.int8).to(torch.int16)
    halves = ((bits & -0x8000) | ((bits & 0x7F) << 7)).view(torch.float16)
    return halves.to(dtype) * 2**8


class StoredLinear(nn.Module):
    """x [..., in] -> [..., out] through a weight [out, in] of any dtype and a scale of it, [1] or [out]."""

    weight = (
        None  # the feed-forward asks for it to cast its input to the weight; here it is the other way round
    )

    def __init__(self, stored: Tensor, scale: Tensor | None):
        super().__init__()
        self.register_buffer("stored", stored)
        self.register_buffer("scale", None if scale is None else scale.float().flatten())

    def forward(self, x: Tensor) -> Tensor:
        rows = CPU_ROWS if x.device.type == "cpu" else len(self.stored)
        parts = self.stored.split(rows)
        y = torch.cat([nn.functional.linear(x, widened(part, x.dtype)) for part in parts], -1)
        return y if self.scale is None else (y * self.scale).to(x.dtype)


class StoredEmbedding(nn.Module):
    """ids [...] -> rows [..., dim] in `dtype`, out of a table [ids, dim] of any dtype."""

    def __init__(self, stored: Tensor, scale: Tensor | None, dtype: torch.dtype):
        super().__init__()
        self.register_buffer("stored", stored)
        self.register_buffer("scale", None if scale is None else scale.float().reshape(-1, 1))
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.stored[ids].float()
        if self.scale is not None:
            rows = rows * (self.scale if len(self.scale) == 1 else self.scale[ids])
        return rows.to(self.dtype)


def _full(stored: Tensor, scale: Tensor | None) -> Tensor:
    """A weight in float32, its scale applied."""
    full = stored.float()
    return full if scale is None else full * scale.float().reshape(-1, *[1] * (full.ndim - 1))


class PromptEncoder:
    """Calling it turns a prompt into [1, 512, text dim] in `dtype`; rows after `</s>` are exactly zero."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, dtype: torch.dtype):
        self.model, self.tokenizer, self.dtype = model, tokenizer, dtype

    def __call__(self, prompt: str) -> Tensor:
        return self.embed(self.tokenizer(prompt))

    @torch.no_grad()
    def embed(self, tokens: list[int]) -> Tensor:
        """Ids, `</s>` included -> [1, 512, text dim] on the encoder's device.

        Only the real tokens are computed: under the attention mask padding changes none of them, and its own
        rows become zero anyway. Raises ValueError when a number is not finite.
        """
        device = self.model.get_input_embeddings().stored.device
        ids = torch.tensor([tokens], dtype=torch.long, device=device)
        rows = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        if not rows.isfinite().all():
            raise ValueError("the text encoder gave numbers that are not finite; its file is damaged")
        return nn.functional.pad(rows, (0, 0, 0, TEXT_TOKENS - len(tokens))).to(self.dtype)


def umt5_sizes(shapes: dict[str, tuple[int, ...]]) -> dict[str, int] | None:
    """The sizes in transformers' words, inferred from shapes under its names; None if this is no UMT5."""
    try:
        vocabulary, dim = shapes["shared.weight"]
        buckets, heads = shapes[f"{_FIRST}0.SelfAttention.relative_attention_bias.weight"]
        inner, _ = shapes[f"{_FIRST}0.SelfAttention.q.weight"]
        ffn_dim, _ = shapes[f"{_FIRST}1.DenseReluDense.wi_0.weight"]
        head_dim, rest = divmod(inner, heads)
    except (KeyError, ValueError, ZeroDivisionError):
        return None
    sizes = {
        "vocab_size": vocabulary,
        "d_model": dim,
        "d_kv": head_dim,
        "d_ff": ffn_dim,
        "num_heads": heads,
        "num_layers": sum(bool(_LAYER.match(name)) for name in shapes),
        "relative_attention_num_buckets": buckets,
    }
    return None if rest or min(sizes.values()) < 1 else sizes


def umt5_skeleton(sizes: dict[str, int]) -> nn.Module:
    """The encoder of these sizes on `meta`."""
    transformers = library("transformers")
    config = transformers.UMT5Config(
        **sizes,
        relative_attention_max_distance=MAX_DISTANCE,
        layer_norm_epsilon=NORM_EPS,
        feed_forward_proj="gated-gelu",
        attn_implementation="eager",
    )
    with torch.device("meta"):
        return transformers.UMT5EncoderModel(config).eval()


def fill_umt5(
    model: nn.Module, weights: dict[str, Tensor], scales: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """Give a skeleton its weights without copying them; norms and position biases alone become `dtype`."""
    matrices = {f"{n}.weight": n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    for weight, name in matrices.items():
        model.set_submodule(name, StoredLinear(weights[weight], scales.get(weight)))
    table = "shared.weight"
    model.set_input_embeddings(StoredEmbedding(weights[table], scales.get(table), dtype))
    small = {name: _full(weights[name], scales.get(name)).to(dtype) for name, _ in model.named_parameters()}
    model.load_state_dict(small, assign=True, strict=False)
    model.requires_grad_(False)
