"""Streaming decode is the whole decode; frames and latent frames count as Wan's do."""

import pytest
import torch

from longlive_core.config import TinyAutoencoderConfig
from longlive_core.geometry import (
    block_at,
    block_seconds,
    latent_size,
    num_blocks,
    num_frames,
    num_latent_frames,
)
from longlive_core.vae.streaming import StreamingDecoder
from longlive_core.vae.tiny import TinyAutoencoder

CONFIGS = [
    TinyAutoencoderConfig(4, (16, 8, 8, 8), (2, 1, 1), 2, (8, 8)),
    TinyAutoencoderConfig(4, (16, 8, 8, 8), (1, 2, 1), 1, (8, 8)),
]


@pytest.fixture(params=CONFIGS, ids=["patch 2", "patch 1"])
def autoencoder(request) -> TinyAutoencoder:
    torch.manual_seed(0)
    return TinyAutoencoder(request.param).eval()


@pytest.mark.parametrize("sizes", [[7], [1] * 7, [3, 3, 1], [1, 2, 4], [2, 5]])
def test_streamed_decode_is_the_whole_decode(autoencoder, sizes) -> None:
    latents = torch.randn(2, 4, 7, 2, 3)
    decoder = StreamingDecoder(autoencoder)
    parts = [decoder.push(part, i == 0) for i, part in enumerate(latents.split(sizes, dim=2))]
    with torch.no_grad():
        whole, _ = autoencoder.decode(latents)
    assert whole.shape == (2, num_frames(7), 3, 16, 24)
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_first_block_gives_nine_frames_then_twelve(autoencoder) -> None:
    decoder = StreamingDecoder(autoencoder)
    counts = [decoder.push(torch.randn(1, 4, 3, 2, 2), i == 0).shape[1] for i in range(3)]
    assert counts == [9, 12, 12]


def test_a_new_scene_keeps_the_clock_and_forgets_the_old(autoencoder) -> None:
    old, new = torch.randn(2, 1, 4, 3, 2, 2).unbind(0)
    decoder = StreamingDecoder(autoencoder)
    decoder.push(old, True)
    frames = decoder.push(new, True)
    assert frames.shape[1] == 12
    assert torch.equal(frames[:, 3:], StreamingDecoder(autoencoder).push(new, True))
    assert torch.equal(frames[:, :1].expand(-1, 3, -1, -1, -1), frames[:, :3])


def test_encode_gives_as_many_latent_frames_as_decode_takes(autoencoder) -> None:
    frames = torch.rand(1, num_frames(4), 3, 16, 16)
    assert autoencoder.encode(frames).shape == (1, 4, 4, 2, 2)


def test_counting() -> None:
    assert [num_frames(n) for n in (0, 1, 3, 6, 27)] == [0, 1, 9, 21, 105]
    assert [num_latent_frames(n) for n in (0, 1, 2, 9, 10, 480)] == [0, 1, 2, 3, 4, 121]
    assert num_blocks(480, 3) == 41 and num_blocks(9, 3) == 1
    assert all(block_at(block_seconds(b, 3), 3) == b for b in range(2000))


@pytest.mark.parametrize("size", [(64, 63), (0, 64), (-16, 64), (840, 480)])
def test_impossible_sizes_name_the_nearest(size) -> None:
    with pytest.raises(ValueError, match="multiples of 16; try"):
        latent_size(*size)
