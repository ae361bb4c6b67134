"""The Wan 2.1 VAE and the tiny Wan decoder: goldens, streaming, tiles, and files in every layout.

Golden weights are a pure function of their names and shapes, so only these are carried.
`pytest tests/test_vae.py --golden-dir DIR` runs the goldens of another folder.
"""

import copy
import functools
import importlib.util
import itertools
import json
import math
import pickle
import random
import re
from itertools import repeat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from benchmarks.plain_decoder import PlainDecoder
from longlive_core.config import TINY_WAN, WanAutoencoderConfig
from longlive_core.geometry import SPACE_STRIDE, TIME_STRIDE, num_frames
from longlive_core.mini.loader import load_mini
from longlive_core.vae import layers
from longlive_core.vae import tiny as tiny_room
from longlive_core.vae.autoencoder import WanAutoencoder
from longlive_core.vae.layers import (
    CausalConv,
    ChannelNorm,
    Downsample,
    LatentSpace,
    Upsample,
    frame_by_frame,
)
from longlive_core.vae.streaming import WARM_LATENT_FRAMES, StreamingDecoder
from longlive_core.vae.tiled import TiledDecoder, spans
from longlive_core.vae.tiny import TinyAutoencoder
from longlive_core.weights.vae_files import (
    build_tiny_decoder,
    build_wan_autoencoder,
    from_reference,
    load_vae,
)
from tests.live_bytes import LiveBytes

ATOL = 1e-4
RESTART = re.compile(r"decode\.restart_from_latent(\d+)")
PUBLISHED_PARAMETERS = 126_892_531  # of Wan2.1_VAE.pth
CARRIED = Path(__file__).parent / "golden"
_spec = importlib.util.spec_from_file_location("seeded", CARRIED / "seeded.py")
seeded = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(seeded)

pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.fixture(scope="module")
def without_gradients():
    with torch.no_grad():
        yield


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as golden:
        return golden.metadata() or {}


CARRIED_META = metadata(CARRIED / "vae_golden.safetensors")
SEED = int(CARRIED_META["seed"])


def shapes_in(meta: dict[str, str]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in json.loads(meta["weights"]).items()}


SHAPES = shapes_in(CARRIED_META)
DIFFUSERS = dict(zip(SHAPES, CARRIED_META["diffusers"].split(), strict=True))


@functools.cache
def parameter(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """A weight that all states share; none is written to."""
    return seeded.vae_param(seed, name, shape)


def wan_state(seed: int = SEED, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensor]:
    """A small Wan VAE under the reference's names."""
    return {name: parameter(seed, name, shape) for name, shape in shapes.items()}


def taehv_shapes(latent_channels: int = 16) -> dict[str, tuple[int, ...]]:
    """Names and shapes of taew2_1, as madebyollin/taehv builds it."""
    shapes = {"decoder.1.weight": (256, latent_channels, 3, 3), "decoder.1.bias": (256,)}

    def memory_block(name: str, width: int) -> None:
        for i, channels_in in ((0, 2 * width), (2, width), (4, width)):
            shapes[f"{name}.conv.{i}.weight"] = (width, channels_in, 3, 3)
            shapes[f"{name}.conv.{i}.bias"] = (width,)

    for first, width, after, times in ((3, 256, 128, 1), (9, 128, 64, 2), (15, 64, 64, 2)):
        for i in range(3):
            memory_block(f"decoder.{first + i}", width)
        shapes[f"decoder.{first + 4}.conv.weight"] = (width * times, width, 1, 1)
        shapes[f"decoder.{first + 5}.weight"] = (after, width, 3, 3)
    shapes |= {"decoder.22.weight": (3, 64, 3, 3), "decoder.22.bias": (3,)}
    shapes |= {"encoder.0.weight": (64, 3, 3, 3), "encoder.0.bias": (64,)}
    return shapes


def taehv_state(latent_channels: int = 16, seed: int = SEED) -> dict[str, Tensor]:
    return {name: parameter(seed, name, shape) for name, shape in taehv_shapes(latent_channels).items()}


@pytest.fixture(scope="module")
def wan() -> WanAutoencoder:
    return build_wan_autoencoder(wan_state())


@pytest.fixture(scope="module")
def tiny() -> TinyAutoencoder:
    return build_tiny_decoder(taehv_state())


@pytest.fixture(scope="module")
def latents() -> Tensor:
    return seeded.normal(SEED, "latents", (2, 16, 7, 3, 4))


def decode_in(decoder, latents: Tensor, sizes: list[int]) -> Tensor:
    stream = StreamingDecoder(decoder)
    return torch.cat([stream.push(part) for part in latents.split(sizes, dim=2)], dim=1)


def psnr(ours: Tensor, other: Tensor) -> float:
    return -10 * math.log10((ours - other).square().mean())


# Goldens


class Golden:
    """A golden file of the VAE, its weights, and what of its frames it holds."""

    def __init__(self, folder: Path):
        file = folder / "vae_golden.safetensors"
        if not file.exists():
            pytest.skip(f"no goldens of the VAE in {folder}")
        self.tensors, meta = load_file(file), metadata(file)
        self.step, self.seed = int(meta.get("pixel_stride", 1)), int(meta.get("seed", SEED))
        weights = folder / "vae_weights.safetensors"
        if not weights.exists() and "weights" not in meta:
            pytest.skip(f"neither weights of the VAE nor their shapes in {folder}")
        state = load_file(weights) if weights.exists() else wan_state(self.seed, shapes_in(meta))
        self.vae = build_wan_autoencoder(state)
        self.latents = self.tensors["latent"].transpose(1, 2)
        self.whole = self.vae.decode(self.latents)[0]

    def compare(self, frames: Tensor, name: str) -> None:
        """The reference's video is in [-1, 1]."""
        ours = frames[..., :: self.step, :: self.step] * 2 - 1
        torch.testing.assert_close(ours, self.tensors[name], atol=ATOL, rtol=0)


@pytest.fixture(scope="module")
def golden(golden_dir) -> Golden:
    return Golden(golden_dir)


def latents_of(frames: int) -> int:
    """How many latent frames a video of that many frames begins with."""
    return 1 + (frames - 1) // TIME_STRIDE


def parts(pattern: tuple[int, ...], total: int) -> list[int]:
    """Sizes as in the pattern, over and over, that sum up to the total."""
    sizes = []
    for size in itertools.cycle(pattern):
        sizes.append(min(size, total - sum(sizes)))
        if sum(sizes) == total:
            return sizes


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The golden's latents, however many, come in parts."""
    if "golden_sizes" in metafunc.fixturenames:
        file = metafunc.config.getoption("--golden-dir") / "vae_golden.safetensors"
        total = load_file(file)["latent"].shape[1] if file.exists() else 1
        patterns = ((1,), (2,), (3,), (1, 3, 2, 2), (4, 5))
        metafunc.parametrize("golden_sizes", [parts(pattern, total) for pattern in patterns], ids=str)


def test_golden_encode(golden) -> None:
    frames = golden.tensors["video"].transpose(1, 2) / 2 + 0.5
    expected = golden.tensors["encode.latent"].transpose(1, 2)
    torch.testing.assert_close(golden.vae.encode(frames), expected, atol=ATOL, rtol=0)


def test_golden_decode(golden) -> None:
    golden.compare(golden.whole, "decode.whole")
    for restart in filter(None, map(RESTART.fullmatch, golden.tensors)):
        first, count = int(restart[1]), latents_of(golden.tensors[restart[0]].shape[1])
        golden.compare(golden.vae.decode(golden.latents[:, :, first : first + count])[0], restart[0])


def test_golden_streamed_decode_is_the_whole_decode_bit_for_bit(golden, golden_sizes) -> None:
    frames = decode_in(golden.vae, golden.latents, golden_sizes)
    golden.compare(frames, "decode.whole")
    assert torch.equal(frames, golden.whole)


def test_golden_mean_and_std(golden) -> None:
    assert torch.equal(golden.tensors["mean"], torch.tensor(WanAutoencoderConfig().latent_mean))
    assert torch.equal(golden.tensors["std"], torch.tensor(WanAutoencoderConfig().latent_std))


def test_golden_tiny_decoder(golden) -> None:
    """madebyollin/taehv itself, with the same seeded weights and normalised latents."""
    if "taehv.frames" not in golden.tensors:
        pytest.skip("no golden of the tiny decoder in this folder")
    batch, frames, _, *seen = golden.tensors["taehv.frames"].shape
    size = [golden.step * pixels // SPACE_STRIDE for pixels in seen]  # the one that has so many pixels left
    shape = (batch, latents_of(frames), golden.latents.shape[1], *size)
    latents = seeded.normal(golden.seed, "taehv.latent", shape).transpose(1, 2)
    tiny = build_tiny_decoder(taehv_state(shape[2], golden.seed))
    ours = tiny.decode(latents)[0][..., :: golden.step, :: golden.step]
    torch.testing.assert_close(ours, golden.tensors["taehv.frames"], atol=1e-5, rtol=0)


def test_goldens_of_other_sizes_are_read(wan, tiny, tmp_path) -> None:
    """Ten latents, another batch, frame size and stride: made here, and read as any golden."""
    latents, restarted = seeded.normal(SEED, "other", (2, 16, 10, 2, 3)), slice(4, 6)
    video = seeded.uniform(SEED, "other", (2, 3, 5, 24, 16))
    small = seeded.normal(SEED, "taehv.latent", (1, 2, 16, 4, 1)).transpose(1, 2)
    made = {
        "latent": latents.transpose(1, 2),
        "decode.whole": wan.decode(latents)[0][..., ::3, ::3] * 2 - 1,
        "decode.restart_from_latent4": wan.decode(latents[:, :, restarted])[0][..., ::3, ::3] * 2 - 1,
        "video": video,
        "encode.latent": wan.encode(video.transpose(1, 2) / 2 + 0.5).transpose(1, 2),
        "taehv.frames": tiny.decode(small)[0][..., ::3, ::3],
    }
    made = {name: tensor.contiguous() for name, tensor in made.items()}
    meta = {"pixel_stride": "3", "seed": str(SEED), "weights": CARRIED_META["weights"]}
    save_file(made, tmp_path / "vae_golden.safetensors", meta)
    other = Golden(tmp_path)
    for check in (test_golden_encode, test_golden_decode, test_golden_tiny_decoder):
        check(other)
    for pattern, sizes in (((4, 5), [4, 5, 1]), ((3,), [3, 3, 3, 1])):
        assert parts(pattern, 10) == sizes
        test_golden_streamed_decode_is_the_whole_decode_bit_for_bit(other, sizes)


# Streaming


@pytest.mark.parametrize("sizes", [[1] * 7, [2, 2, 2, 1], [3, 3, 1], [1, 2, 4]], ids=str)
@pytest.mark.parametrize("name", ["wan", "tiny"])
def test_streamed_decode_is_the_whole_decode(name, sizes, latents, request) -> None:
    decoder = request.getfixturevalue(name)
    frames = decode_in(decoder, latents, sizes)
    assert frames.shape == (2, num_frames(7), 3, 24, 32)
    assert frames.dtype == torch.float32 and frames.min() >= 0 and frames.max() <= 1
    whole = decoder.decode(latents)[0]
    assert torch.equal(frames, whole)


@pytest.mark.parametrize("name", ["wan", "tiny"])
def test_first_block_gives_nine_frames_then_twelve(name, latents, request) -> None:
    stream = StreamingDecoder(request.getfixturevalue(name))
    assert [stream.push(latents[:, :, :3]).shape[1] for _ in range(3)] == [9, 12, 12]
    assert request.getfixturevalue(name).decode(latents[:, :, :1])[0].shape[1] == 1


def test_a_batch_is_its_videos_one_by_one(wan, latents) -> None:
    together = wan.decode(latents)[0]
    alone = torch.cat([wan.decode(one)[0] for one in latents.split(1)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["wan", "tiny"])
def test_the_past_never_grows(name, latents, request) -> None:
    decoder, past, sizes = request.getfixturevalue(name), None, set()
    for count in (1, 1, 3, 2):
        _, past = decoder.decode(latents[:, :, :count], past)
        sizes.add((len(past), sum(tensor.untyped_storage().nbytes() for tensor in past)))
    assert len(sizes) == 1


def test_old_and_new_past_do_not_pile_up(wan, latents) -> None:
    _, past = wan.decode(latents[:, :, :1])
    wan.decode(latents[:, :, :1], past)
    assert past == []


def test_warm_decoders_go_on_as_if_they_had_seen_everything(wan, tiny) -> None:
    latents = seeded.normal(SEED, "long", (1, 16, WARM_LATENT_FRAMES + 5, 1, 1))
    for decoder in (wan, tiny):
        stream = StreamingDecoder(decoder)
        stream.warm(latents[:, :, :-1])
        frames, whole = stream.push(latents[:, :, -1:]), decoder.decode(latents)[0][:, -4:]
        assert (frames - whole).abs().max() < 1 / 255


def test_a_tiny_decoder_looks_back_no_further_than_it_says(tiny) -> None:
    for decoder in (tiny, load_mini().autoencoder):
        channels, seen = len(decoder.mean), decoder.looks_back + 1
        latents = seeded.normal(SEED, "long", (1, channels, seen + 4, 2, 2))
        last = decoder.decode(latents)[0][:, -1]
        assert torch.equal(decoder.decode(latents[:, :, -seen:])[0][:, -1], last)


class AllAtOnce:
    """A slow twin: every layer sees the whole video, zeros before it, and nothing is carried along."""

    def __init__(self, vae: WanAutoencoder):
        self.vae = vae

    def through(self, layers, x: Tensor) -> Tensor:
        for layer in layers:
            if isinstance(layer, Downsample):
                x = frame_by_frame(lambda f, d=layer: d.space(nn.functional.pad(f, (0, 1, 0, 1))), x)
                x = x if layer.time is None else torch.cat((x[:, :, :1], nn.Conv3d.forward(layer.time, x)), 2)
            elif isinstance(layer, Upsample):
                x = self.up(layer, x)
            else:
                x, _ = layer(x, repeat(None))
        return x

    def up(self, layer: Upsample, x: Tensor) -> Tensor:
        if layer.time is not None:
            first, rest = x[:, :, :1], x[:, :, 1:]
            even, odd = layer.time(rest, repeat(None))[0].chunk(2, dim=1)
            x = torch.cat((first, torch.stack((even, odd), dim=3).flatten(2, 3)), dim=2)
        return frame_by_frame(lambda f: layer.space(f.repeat_interleave(2, 2).repeat_interleave(2, 3)), x)

    def run(self, net: nn.Module, x: Tensor, is_encoder: bool) -> Tensor:
        x, _ = net.stem(x, repeat(None))
        stages = [part for s in net.stages for part in (*s.residuals, s.resample) if part is not None]
        x = self.through([*stages, net.middle] if is_encoder else [net.middle, *stages], x)
        return net.head(nn.functional.silu(net.norm(x)), repeat(None))[0]

    def scale(self, values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values).view(1, -1, 1, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        raw = latents * self.scale(self.vae.config.latent_std) + self.scale(self.vae.config.latent_mean)
        video = self.run(self.vae.decoder, self.vae.decoder.unpack(raw), False)
        return (video.transpose(1, 2) / 2 + 0.5).clamp(0, 1)

    def encode(self, frames: Tensor) -> Tensor:
        moments = self.run(self.vae.encoder, frames.transpose(1, 2) * 2 - 1, True)
        mean = self.vae.encoder.moments(moments)[:, :16]
        return (mean - self.scale(self.vae.config.latent_mean)) / self.scale(self.vae.config.latent_std)


def test_latent_by_latent_is_all_at_once(wan, latents) -> None:
    torch.testing.assert_close(wan.decode(latents)[0], AllAtOnce(wan).decode(latents), atol=1e-5, rtol=0)


def test_chunked_encode_is_all_at_once(wan) -> None:
    frames = seeded.uniform(SEED, "frames", (2, 13, 3, 16, 24), 0, 1)
    torch.testing.assert_close(wan.encode(frames), AllAtOnce(wan).encode(frames), atol=1e-5, rtol=0)


def test_encode_leaves_out_frames_beyond_the_last_four(wan) -> None:
    frames = seeded.uniform(SEED, "frames", (1, 12, 3, 16, 16), 0, 1)
    latents = wan.encode(frames)
    assert latents.shape == (1, 16, 3, 2, 2)
    assert torch.equal(latents, wan.encode(frames[:, :9]))
    assert torch.equal(latents[:, :, :1], wan.encode(frames[:, :1]))


@pytest.mark.parametrize("shape", [(1, 1, 3, 20, 16), (1, 0, 3, 16, 16)])
def test_encode_refuses_what_has_no_latents(wan, shape) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        wan.encode(torch.zeros(shape))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 0.01), (torch.bfloat16, 0.06)], ids=str)
def test_half_precision_stays_near(wan, latents, dtype, error) -> None:
    half = build_wan_autoencoder({name: tensor.to(dtype) for name, tensor in wan_state().items()})
    frames, past = half.decode(latents[:, :, :3])
    assert frames.dtype == torch.float32 and {tensor.dtype for tensor in past} == {dtype}
    assert (frames - wan.decode(latents[:, :, :3])[0]).abs().max() < error


# Slow twins


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def test_the_decoder_is_its_plain_twin(wan, latents) -> None:
    """Cat, clone and Conv3d; both are measured against fp64."""
    ours, plain = wan.decode(latents)[0], PlainDecoder(wan).decode(latents)[0]
    exact = PlainDecoder(copy.deepcopy(wan).double()).decode(latents.double())[0]
    assert ours.std() > 0.1
    assert rms(ours - exact) < 4 * rms(plain - exact) and (ours - plain).abs().max() < ATOL


def test_a_past_that_was_stored_goes_on_bit_for_bit(wan, latents) -> None:
    """What was stored may lie otherwise in memory."""
    _, past = wan.decode(latents[:, :, :2])
    stored = [tensor.contiguous() for tensor in past]
    frames, again = (wan.decode(latents[:, :, 2:], p)[0] for p in (past, stored))
    assert torch.equal(frames, again)


def test_the_meta_device_allocates_what_a_cpu_does(wan, latents) -> None:
    peaks = []
    for device in ("cpu", "meta"):
        vae = copy.deepcopy(wan).to(device)
        with LiveBytes(has_copies=True) as live:
            vae.decode(latents[:1, :, :2].to(device))
        peaks.append(live.peak)
    assert peaks[1] == pytest.approx(peaks[0], rel=0.01)


class OnGpu(Tensor):
    """A tensor of a CPU that is computed as on a GPU."""

    is_cuda = True


@pytest.mark.parametrize(
    ("conv", "is_narrow"),
    [
        (CausalConv(20, 6), True),
        (CausalConv(192, 6), False),
        (CausalConv(20, 6, (3, 1, 1)), False),
        (CausalConv(20, 6, (3, 1, 1), stride=2), False),
    ],
    ids=["narrow", "wide", "of time", "half the frames"],
)
def test_convolutions_of_gpus_are_those_of_cpus(conv, is_narrow, monkeypatch) -> None:
    """Narrow ones are computed in two axes there."""
    calls, in_two_axes = [], conv.double().in_two_axes
    monkeypatch.setattr(conv, "in_two_axes", lambda x: calls.append(1) or in_two_axes(x))
    channels = conv.in_channels
    x = channels_last(seeded.normal(SEED, "x", (2, channels, 4, 10, 12)).double())
    past = channels_last(seeded.normal(SEED, "past", (2, channels, conv.num_past, 10, 12)).double()).split(
        1, 2
    )
    right, right_past = conv(x, iter(past))
    assert not calls
    ours, new_past = conv(x.as_subclass(OnGpu), iter(past))
    assert bool(calls) == is_narrow and all(map(torch.equal, new_past, right_past))
    assert_close(ours.as_subclass(Tensor), right)
    assert not is_narrow or ours.is_contiguous(memory_format=torch.channels_last_3d)
    first, right_first = (conv(start, repeat(None))[0] for start in (x.as_subclass(OnGpu), x))
    assert_close(first.as_subclass(Tensor), right_first)


@pytest.mark.parametrize("sizes", [[1] * 7, [3, 3, 1]], ids=str)
@pytest.mark.parametrize("name", ["wan", "tiny"])
def test_decoding_as_on_a_gpu_is_that_of_a_cpu(name, sizes, latents, request, monkeypatch) -> None:
    """There full size goes frame by frame, narrow convolutions in two axes and channels come last."""
    decoder = request.getfixturevalue(name)
    right = decoder.decode(latents)[0]
    for room in (layers, tiny_room):
        monkeypatch.setattr(room, "counts_as_gpu", lambda x: True)
    monkeypatch.setattr(tiny_room, "MOST_PIXELS", 1)
    whole = decoder.decode(latents)[0]
    assert torch.equal(decode_in(decoder, latents, sizes), whole)
    assert_close(whole, right, atol=1e-5, rtol=0)


def test_norms_of_gpus_are_those_of_cpus() -> None:
    norm = ChannelNorm(20).double()
    norm.gamma.data.normal_(generator=torch.Generator().manual_seed(0))
    x = channels_last(seeded.normal(SEED, "x", (2, 20, 4, 10, 12)).double())
    x[:, :, 0, 0, 0] = 0
    assert_close(norm(x.as_subclass(OnGpu)).as_subclass(Tensor), norm(x))


def test_latents_of_the_transformer_are_those_of_the_decoder_scaled() -> None:
    raw, values = seeded.normal(SEED, "raw", (2, 3, 4, 2, 2)), ((0.5, -1.0, 0.0), (2.0, 0.25, 1.0))
    for space in (LatentSpace(*values), LatentSpace(*map(torch.tensor, values))):
        ours = space.normalised(raw)
        assert_close(ours[:, 1], (raw[:, 1] + 1) / 0.25)
        assert_close(space.raw(ours), raw)


def test_the_decoder_compiles_without_a_break() -> None:
    """In mid-video it is one graph (traced only: no compiler is needed)."""
    config = WanAutoencoderConfig(width=8, multipliers=(1, 1, 1, 1), num_residuals=0)
    decoder, latents = WanAutoencoder(config).decoder, seeded.normal(SEED, "small", (1, 16, 1, 2, 2))
    first, again = decoder(latents)[1], decoder(latents)[1]
    frames, _ = torch.compile(decoder, fullgraph=True, backend="eager")(latents, first)
    assert torch.equal(frames, decoder(latents, again)[0])


# Tiles


def test_weights_of_tiles_sum_to_one() -> None:
    for size in range(1, 90, 7):
        for tile, overlap in ((8, 2), (32, 8), (8, 0), (8, 7), (13, 5)):
            total = torch.zeros(8 * size)
            for span in spans(size, tile, overlap):
                assert span.latents.start >= 0 and span.latents.stop <= size
                total[span.pixels] += span.weights
            torch.testing.assert_close(total, torch.ones_like(total))


def test_one_tile_is_no_tile(wan, latents) -> None:
    assert torch.equal(decode_in(TiledDecoder(wan), latents, [3, 4]), wan.decode(latents)[0])


@pytest.mark.parametrize("past_device", [None, "cpu"])
def test_streamed_tiles_are_whole_tiles(wan, past_device) -> None:
    latents = seeded.normal(SEED, "tiles", (1, 16, 3, 4, 7))
    tiled = TiledDecoder(wan, 32, 8, past_device)
    frames = decode_in(tiled, latents, [1, 2])
    assert frames.shape == (1, num_frames(3), 3, 32, 56)
    assert torch.equal(frames, tiled.decode(latents)[0])


def test_tiles_of_trained_weights_have_no_seams() -> None:
    """LongLive Mini's decoder, 440x312 pixels: the stated tolerance of 256 and 64."""
    autoencoder = load_mini().autoencoder
    coarse = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    picture = nn.functional.interpolate(coarse, size=(312, 440), mode="bicubic").clamp(0, 1)
    latents = autoencoder.encode(picture[:, None])
    whole = autoencoder.decode(latents)[0]
    tiled = TiledDecoder(autoencoder).decode(latents)[0]
    assert tiled.shape == whole.shape == (1, 1, 3, 312, 440)
    assert psnr(tiled, whole) > 65 and (tiled - whole).abs().max() < 0.02


def test_tiles_of_random_weights_stay_near(wan) -> None:
    """The attention at 1/8 size sees only its tile, so tiles of the Wan VAE differ whatever the overlap."""
    latents = seeded.normal(SEED, "wide", (1, 16, 1, 16, 36))
    assert psnr(TiledDecoder(wan).decode(latents)[0], wan.decode(latents)[0]) > 40


@pytest.mark.parametrize("sizes", [(256, 256), (250, 64), (256, 60), (64, -8), (0, 0)])
def test_impossible_tiles_are_refused(wan, sizes) -> None:
    with pytest.raises(ValueError, match="try 256 and 64"):
        TiledDecoder(wan, *sizes)


# Files


def save(state: dict[str, Tensor], path: Path) -> Path:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {DIFFUSERS[name]: tensor for name, tensor in state.items()}


def test_the_published_vae_has_these_parameters() -> None:
    with torch.device("meta"):
        vae = WanAutoencoder(WanAutoencoderConfig())
    assert sum(p.numel() for p in vae.parameters()) == PUBLISHED_PARAMETERS
    assert sum(p.numel() for p in vae.decoder.parameters()) == 73_295_603
    assert len(vae.state_dict()) == len(SHAPES)


@pytest.mark.parametrize("spelling", [dict, renamed], ids=["reference", "diffusers"])
def test_weights_are_shared_not_copied(spelling) -> None:
    state = spelling(wan_state())
    vae = build_wan_autoencoder(state)
    assert vae.config == WanAutoencoderConfig(width=8)
    ours = from_reference(state)
    assert ours.keys() == vae.state_dict().keys()
    assert all(p.data_ptr() == ours[name].data_ptr() for name, p in vae.named_parameters())
    tiny_state = taehv_state()
    shared = {tensor.data_ptr() for tensor in tiny_state.values()}
    assert all(p.data_ptr() in shared for p in build_tiny_decoder(tiny_state).parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("spelling", [dict, renamed], ids=["reference", "diffusers"])
def test_every_layout_loads_the_same_tensors(tmp_path, spelling, suffix, dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in wan_state().items()}
    vae = load_vae(save(spelling(state), tmp_path / f"vae{suffix}"), dtype)
    expected = from_reference(state)
    assert all(torch.equal(expected[n], t) and t.dtype == dtype for n, t in vae.state_dict().items())


@pytest.mark.parametrize(
    "prefix", ["model.", "first_stage_model.", "vae.", "module.", "_orig_mod.", "module.vae.model."]
)
@pytest.mark.parametrize("spelling", [dict, renamed], ids=["reference", "diffusers"])
def test_prefixes_of_vaes_are_no_part_of_the_names(tmp_path, prefix, spelling) -> None:
    state = spelling(wan_state())
    vae = load_vae(
        save({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "vae.safetensors")
    )
    expected = from_reference(state)
    assert all(torch.equal(expected[name], tensor) for name, tensor in vae.state_dict().items())
    tiny = {prefix + name: tensor for name, tensor in taehv_state().items()}
    assert isinstance(load_vae(save(tiny, tmp_path / "taew2_1.safetensors")), TinyAutoencoder)
    image = {f"{prefix}decoder.conv_in.weight": PICTURE}
    with pytest.raises(ValueError, match="an image VAE"):
        load_vae(save(image, tmp_path / "sd.safetensors"))


@pytest.mark.parametrize("section", ["model_state", "model_state_dict", "state_dict", "model"])
def test_vaes_in_a_section_of_a_checkpoint_load(tmp_path, section) -> None:
    torch.save({"step": 3, section: {f"model.{n}": t for n, t in wan_state().items()}}, tmp_path / "vae.pth")
    assert isinstance(load_vae(tmp_path / "vae.pth"), WanAutoencoder)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_tiny_decoders_load(tmp_path, tiny, latents, suffix) -> None:
    vae = load_vae(save(taehv_state(), tmp_path / f"taew2_1{suffix}"))
    assert isinstance(vae, TinyAutoencoder) and vae.config == TINY_WAN
    assert torch.equal(vae.decode(latents)[0], tiny.decode(latents)[0])


def test_lighttae_hears_raw_latents(tmp_path, tiny, latents) -> None:
    """Same names, same shapes, another convention: only the file's name tells."""
    vae = load_vae(save(taehv_state(), tmp_path / "lighttaew2_1.safetensors"))
    wan = WanAutoencoderConfig()
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (wan.latent_mean, wan.latent_std))
    assert torch.equal(vae.decode(latents)[0], tiny.decode(latents * std + mean)[0])


def one_sentence(error: pytest.ExceptionInfo, path: Path) -> str:
    text = str(error.value)
    assert str(path) in text and "\n" not in text
    return text


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}


LAST = "decoder.head.2.weight"
NAMED = torch.zeros(4, 4)
PICTURE = torch.zeros(4, 4, 3, 3)
STRANGERS = {
    "missing": (
        lambda: without(wan_state(), LAST),
        r"incomplete or wrong VAE: 1 tensor missing \(decoder.head.weight\)",
    ),
    "misshapen": (
        lambda: wan_state() | {LAST: torch.zeros(4, 8, 3, 3, 3)},
        r"1 tensor of another shape .* \[3, 8, 3, 3, 3\]",
    ),
    "unexpected": (lambda: wan_state() | {"decoder.x": NAMED}, r"1 tensor unexpected \(decoder.x\)"),
    "integers": (
        lambda: wan_state() | {LAST: torch.zeros(3, 8, 3, 3, 3, dtype=torch.int8)},
        r"1 tensor of an unsupported dtype \(decoder.head.weight\)",
    ),
    "not finite": (lambda: wan_state() | {LAST: torch.full((3, 8, 3, 3, 3), math.nan)}, "not finite"),
    "scalar": (lambda: wan_state() | {"encoder.conv1.weight": torch.zeros(())}, "of another shape"),
    "tiny missing": (
        lambda: without(taehv_state(), "decoder.22.bias"),
        r"1 tensor missing \(decoder.head.bias\)",
    ),
    "tiny of Wan 2.2": (lambda: taehv_state(48), "tiny decoder of 48 latent channels"),
    "tiny super": (
        lambda: {"decoder.0.weight": PICTURE, "decoder.1.conv.0.weight": PICTURE.clone()},
        "larger layout",
    ),
    "Wan 2.2": (
        lambda: {"decoder.upsamples.0.upsamples.0.residual.2.weight": NAMED},
        "Wan 2.2 VAE, of 48 latent channels",
    ),
    "48 channels": (lambda: {"decoder.conv1.weight": torch.zeros(8, 48, 3, 3, 3)}, "of 48 latent channels"),
    "pictures": (lambda: {"decoder.conv_in.weight": PICTURE}, "an image VAE"),
    "Hunyuan": (lambda: {"decoder.conv_in.conv.weight": NAMED}, "another video model"),
    "LoRA": (lambda: {"blocks.0.self_attn.q.lora_A.weight": NAMED}, "it is a LoRA"),
    "text": (lambda: {"shared.weight": NAMED}, "a text encoder"),
    "transformer": (
        lambda: {"patch_embedding.weight": torch.zeros(1536, 16, 1, 2, 2)},
        "a Wan .*transformer",
    ),
    "nothing": (lambda: {"some.weight": NAMED}, "an unknown kind of model.*some.weight"),
}


@pytest.mark.parametrize("case", STRANGERS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_wrong_file_says_what_it_is(tmp_path, case, suffix) -> None:
    build, expected = STRANGERS[case]
    path = save(build(), tmp_path / f"file{suffix}")
    with pytest.raises(ValueError) as error:
        load_vae(path)
    assert re.search(expected, one_sentence(error, path))


def test_another_familys_tiny_decoder_is_told_by_its_name(tmp_path) -> None:
    path = save(taehv_state(), tmp_path / "taehv.pth")
    with pytest.raises(ValueError, match="HunyuanVideo or CogVideoX"):
        load_vae(path)


class Bomb:
    def __reduce__(self):
        return (print, ("a pickle ran code",))


def broken(path: Path, kind: str) -> Path:
    """A file that nothing can be read from."""
    if kind == "folder":
        path.mkdir()
    elif kind == "code":
        path.write_bytes(pickle.dumps({"decoder.conv1.weight": Bomb()}))
    elif kind == "noise":
        path.write_bytes(random.Random(0).randbytes(5000))
    elif kind == "empty":
        path.touch()
    return path


@pytest.mark.parametrize("kind", ["folder", "code", "noise", "empty", "absent"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_broken_file_is_one_sentence(tmp_path, capsys, kind, suffix) -> None:
    path = broken(tmp_path / f"vae{suffix}", kind)
    with pytest.raises(ValueError) as error:
        load_vae(path)
    one_sentence(error, path)
    assert "ran code" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file_is_one_sentence_and_the_next_one_loads(tmp_path, suffix) -> None:
    whole = save(wan_state(), tmp_path / f"whole{suffix}")
    content, path = whole.read_bytes(), tmp_path / f"cut{suffix}"
    for cut in random.Random(0).sample(range(1, len(content)), 10):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError) as error:
            load_vae(path)
        one_sentence(error, path)
    path.write_bytes(content)
    assert isinstance(load_vae(path), WanAutoencoder)
