"""Streaming decode and encode are those of the whole; frames and latent frames count as Wan's do."""

import pytest
import torch

from longlive_core.config import TinyAutoencoderConfig, WanAutoencoderConfig
from longlive_core.geometry import (
    FRAME_RATE,
    block_at,
    block_seconds,
    latent_size,
    num_blocks,
    num_frames,
    num_latent_frames,
)
from longlive_core.vae.autoencoder import WanAutoencoder
from longlive_core.vae.streaming import StreamingDecoder, StreamingEncoder
from longlive_core.vae.tiny import TinyAutoencoder
from tests.live_bytes import LiveBytes

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


@pytest.fixture(params=[*CONFIGS, WanAutoencoderConfig(width=8)], ids=["patch 2", "patch 1", "wan"])
def encoding(request):
    """An autoencoder that encodes."""
    torch.manual_seed(0)
    is_wan = isinstance(request.param, WanAutoencoderConfig)
    return (WanAutoencoder if is_wan else TinyAutoencoder)(request.param).eval().requires_grad_(False)


@pytest.mark.parametrize("sizes", [[21], [9, 12], [1, 4, 8, 4, 4], [5, 16], [1, 20]], ids=str)
def test_streamed_encode_is_the_whole_encode(encoding, sizes) -> None:
    frames = torch.rand(2, 21, 3, 16, 24)
    encoder = StreamingEncoder(encoding)
    parts = [encoder.push(part) for part in frames.split(sizes, dim=1)]
    assert torch.equal(torch.cat(parts, dim=2), encoding.encode(frames))
    assert torch.equal(encoder.push(frames, opens_scene=True), encoding.encode(frames))


def test_an_encoder_takes_no_more_memory_over_240_seconds(encoding) -> None:
    """What is held after a block, and the most while it is encoded, stay what they were at the third."""
    encoder, frames, taken = StreamingEncoder(encoding), torch.rand(1, 12, 3, 16, 16), []
    is_slow = isinstance(encoding, WanAutoencoder)
    encoder.push(frames[:, :9])
    with LiveBytes() as live:
        for _ in range(12 if is_slow else 240 * FRAME_RATE // 12):
            live.peak = 0
            encoder.push(frames)
            taken.append((live.now, live.peak))
    assert {*taken[3:]} == {taken[3]}


def test_a_push_that_fails_changes_nothing(encoding, monkeypatch) -> None:
    frames = torch.rand(1, 33, 3, 16, 16)
    encoder, encode = StreamingEncoder(encoding), encoding.encode_next
    parts = [encoder.push(frames[:, :9])]

    def fails(frames, past):
        encode(frames, past)  # which uses the past up
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(encoding, "encode_next", fails)
    with pytest.raises(torch.OutOfMemoryError):
        encoder.push(frames[:, 9:21])
    monkeypatch.undo()
    parts += [encoder.push(part) for part in frames[:, 9:].split(12, dim=1)]
    assert torch.equal(torch.cat(parts, dim=2), encoding.encode(frames))


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
