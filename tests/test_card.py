"""What only a card can show: every fast path on it against its slow twin. Skipped where there is none."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from longlive_core.model.fastest import AttentionShape, measured, seconds_of
from longlive_core.speed import Speed
from longlive_core.vae.compiled import compile_decoder, release_decoder
from torch import Tensor
from torch.testing import assert_close

from longlive_core import PromptSchedule, load_pipeline
from longlive_core.config import LONGLIVE_1_3B, TINY_WAN, WanAutoencoderConfig
from longlive_core.model import even
from longlive_core.model.attention import BACKENDS, OnDefaultStream, sdpa
from longlive_core.model.layers import FeedForward
from longlive_core.pipeline import Pipeline, Request
from longlive_core.resume import Ending
from longlive_core.rollout.rollout import Hook
from longlive_core.vae.autoencoder import WanAutoencoder
from longlive_core.vae.tiny import TinyAutoencoder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
CARD = torch.device("cuda")
RED = "0:00 a red circle drifts right over navy"
SCHEDULE = f"{RED}\n3s => it turns blue\n8s => keep: a green square\n11s cut: a yellow star"
SECONDS = 17.0


class Notes(Hook):
    """Keeps what was said."""

    def __init__(self):
        self.said: list[str] = []

    def on_note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(autouse=True)
def exact_products():
    """fp32 is fp32: no TF32 in products or convolutions."""
    kept = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = kept


def mini(speed: str = "plain", device: torch.device = CARD, dtype: torch.dtype = torch.float32) -> Pipeline:
    pipeline = load_pipeline("mini")
    pipeline.model.to(device, dtype)
    pipeline.decoder.to(device, dtype)
    pipeline.speed = Speed(speed)
    return pipeline


def made(pipeline: Pipeline, hook: Hook | None = None, ending: Ending | None = None, **request):
    """Frames [F, H, W, 3] and latents [1, C, T, H, W] of a video, on the CPU; a short one has one prompt."""
    schedule = PromptSchedule.parse(RED if "seconds" in request else SCHEDULE)
    asked = Request(schedule, **{"seconds": SECONDS, "seed": 7} | request)
    with torch.inference_mode():
        chunks = [
            (c.frames.cpu(), c.block.latents.cpu())
            for c in pipeline.run(pipeline.plan(asked), hook, ending=ending)
        ]
    frames, latents = zip(*chunks, strict=True)
    return torch.cat(frames), torch.cat(latents, dim=2)


def test_a_card_makes_the_video_of_a_cpu() -> None:
    here, there = made(mini(), seconds=3), made(mini(device=torch.device("cpu")), seconds=3)
    assert_close(here[1][:, :, :6], there[1][:, :, :6], atol=2e-3, rtol=0)
    assert (here[0] - there[0]).abs().mean() < 0.01


def test_graphs_are_eager_bit_for_bit() -> None:
    """Recorded and replayed passes, through switches, a kept past, a cut and every place of the ring."""
    pipeline = mini("graphs")
    for _ in range(2):  # the second video has a cache of its own
        plain, fast = made(mini()), made(pipeline)
        assert torch.equal(fast[1], plain[1]) and torch.equal(fast[0], plain[0])


def test_attention_on_the_default_stream_waits_for_ours_and_is_waited_for() -> None:
    def launched_there(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        with torch.cuda.stream(torch.cuda.default_stream()):
            return sdpa(q, k, v)

    q, k, v = torch.randn(3, 1, 256, 2, 64, device=CARD)
    right = sdpa(q, k, v)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        torch.cuda._sleep(100_000_000)  # cycles: what follows on this stream is late
        seen = OnDefaultStream(launched_there)(q.clone(), k, v).clone()
    torch.cuda.synchronize()
    assert torch.equal(seen, right)


def test_compiled_is_eager() -> None:
    hook = Notes()
    plain, fast = made(mini()), made(mini("compiled"), hook)
    assert_close(fast[1][:, :, :9], plain[1][:, :, :9], atol=2e-3, rtol=0)
    assert (fast[0] - plain[0]).abs().mean() < 0.02
    assert "layers compiled" in str(hook.said) and "decoder compiled" in str(hook.said)


def test_the_second_video_compiles_nothing() -> None:
    from torch._dynamo.utils import counters

    pipeline = mini("compiled")
    first = made(pipeline)
    counters.clear()
    hook = Notes()
    second = made(pipeline, hook)
    assert torch.equal(first[1], second[1])
    assert not counters["stats"]["unique_graphs"]
    assert not [note for note in hook.said if note.startswith("compiling")]


def test_a_video_goes_on_from_its_exact_state() -> None:
    pipeline, ending = mini("graphs"), Ending()
    whole = made(pipeline, seconds=9)
    first = made(pipeline, ending=ending, seconds=5)
    rest = made(pipeline, seconds=4, state=ending.state)
    assert torch.equal(torch.cat((first[0], rest[0])), whole[0])


def test_half_precision_stays_close_for_the_first_blocks() -> None:
    exact, half = made(mini(), seconds=3), made(mini("graphs", dtype=torch.bfloat16), seconds=3)
    error = (half[1].float() - exact[1])[:, :, :6].norm() / exact[1][:, :, :6].norm()
    assert error < 0.1


# Kernels, at the true shapes


def test_every_attention_backend_that_runs_is_sdpa() -> None:
    shape = AttentionShape.of(LONGLIVE_1_3B.model, LONGLIVE_1_3B.window, tokens=1560)
    rows = {row.name: row for row in measured(shape, CARD, torch.bfloat16, BACKENDS)}
    print({name: row.seconds or row.reason for name, row in rows.items()})
    assert rows["sdpa"].seconds
    if torch.cuda.get_device_capability() >= (9, 0):
        assert rows["cudnn-even"].seconds and rows["flash-even"].seconds
    assert not [row for row in rows.values() if "another" in row.reason]


@pytest.mark.parametrize("keys", [4680, 18720])
def test_work_dealt_evenly_is_the_same_attention(keys) -> None:
    def kernel(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)[:2]

    random = torch.Generator(CARD).manual_seed(0)
    q, k, v = (
        torch.randn(1, length, 12, 128, device=CARD, dtype=torch.bfloat16, generator=random)
        for length in (4680, keys, keys)
    )
    right = F.scaled_dot_product_attention(*(t.float().transpose(1, 2) for t in (q, k, v))).transpose(1, 2)
    for join in (None, even.joined):
        out = even.Even(kernel, join)(q, k, v)
        assert (out.float() - right).norm() / right.norm() < 5e-3


def test_gelu_at_the_end_of_a_product_is_gelu_after_it() -> None:
    torch.manual_seed(0)
    ffn = FeedForward(1536, 8960).to(CARD)
    x = torch.randn(1, 4680, 1536, device=CARD)
    right = F.gelu(ffn[0](x), approximate="tanh")
    with torch.no_grad():
        assert_close(ffn[0].gelu(x), right, atol=1e-4, rtol=1e-4)
        half = ffn.to(torch.bfloat16)[0].gelu(x.bfloat16()).float()
    assert (half - right).norm() / right.norm() < 1e-2


def test_a_recorded_kernel_is_timed_without_its_launch() -> None:
    x = torch.zeros(8, device=CARD)
    assert 0 < seconds_of(lambda: x + 1) < 5e-6


@pytest.mark.parametrize("name", ["wan", "tiny"])
def test_a_decoder_on_a_card_is_the_cpus_and_compiling_does_not_change_it(name) -> None:
    torch.manual_seed(0)
    width = replace(WanAutoencoderConfig(), width=32)
    decoder = (WanAutoencoder(width) if name == "wan" else TinyAutoencoder(TINY_WAN)).requires_grad_(False)
    latents = torch.randn(1, 16, 3, 16, 24)
    right = decoded(decoder, latents)
    plain = decoded(decoder.to(CARD), latents.to(CARD))
    assert_close(plain, right, atol=1e-3, rtol=0)
    assert "decoder compiled" in compile_decoder(decoder, latents.shape)
    assert_close(decoded(decoder, latents.to(CARD)), right, atol=1e-3, rtol=0)
    release_decoder(decoder)
    assert torch.equal(decoded(decoder, latents.to(CARD)), plain)


def decoded(decoder: WanAutoencoder | TinyAutoencoder, latents: Tensor) -> Tensor:
    """Three blocks, one after the other, on the CPU."""
    past, frames = None, []
    with torch.no_grad():
        for _ in range(3):
            more, past = decoder.decode(latents, past)
            frames.append(more.cpu())
    return torch.cat(frames, dim=1)
