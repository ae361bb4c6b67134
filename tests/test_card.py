"""What only a GPU can show: every fast path on it against its slow twin. Skipped where there is none."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from benchmarks.plain_products import plain, plain_attention, plain_unscaled
from longlive_core import PromptSchedule, load_pipeline
from longlive_core.config import LONGLIVE_1_3B, TINY_WAN, WanAutoencoderConfig
from longlive_core.fast.attention import HopperAttention
from longlive_core.fast.int8 import int8_linear, int8_trial
from longlive_core.fast.products import fp8_linear, lacks_fp8_products
from longlive_core.model.attention import BACKENDS, HOPPER, attention_backend, is_hopper, sdpa
from longlive_core.pipeline import COMPILING, Pipeline, Request
from longlive_core.resume import Ending
from longlive_core.rollout.rollout import Hook
from longlive_core.vae.autoencoder import WanAutoencoder
from longlive_core.vae.tiny import TinyAutoencoder
from longlive_core.weights.quantize import to_8_bits

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")
RED = "0:00 a red circle drifts right over navy"
SCHEDULE = f"{RED}\n3s => it turns blue\n8s => keep: a green square\n11s cut: a yellow star"
SECONDS = 17.0
BLOCK, WINDOW = 4680, 18720  # tokens at 832x480


class Notes(Hook):
    """Keeps the sentences for the user."""

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


def mini(speed: str = "plain", device: torch.device = GPU, dtype: torch.dtype = torch.float32) -> Pipeline:
    pipeline = load_pipeline("mini", speed=speed)
    pipeline.model.to(device, dtype)
    pipeline.decoder.to(device, dtype)
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


def test_a_gpu_makes_the_video_of_a_cpu() -> None:
    here, there = made(mini(), seconds=3), made(mini(device=torch.device("cpu")), seconds=3)
    assert_close(here[1][:, :, :6], there[1][:, :, :6], atol=2e-3, rtol=0)
    assert (here[0] - there[0]).abs().mean() < 0.01


def test_the_same_video_again_is_the_same_bit_for_bit() -> None:
    pipeline = mini()
    first, second = made(pipeline), made(pipeline)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_compiled_is_eager() -> None:
    """Through switches, a kept past, a cut and every place of the ring."""
    hook = Notes()
    eager, fast = made(mini()), made(mini("compiled"), hook)
    assert_close(fast[1][:, :, :9], eager[1][:, :, :9], atol=2e-3, rtol=0)
    assert (fast[0] - eager[0]).abs().mean() < 0.02
    assert hook.said == [COMPILING]


def test_the_second_video_compiles_nothing() -> None:
    from torch._dynamo.utils import counters

    pipeline, hook = mini("compiled"), Notes()
    first = made(pipeline)
    counters.clear()
    second = made(pipeline, hook)
    assert torch.equal(first[1], second[1])
    assert not counters["stats"]["unique_graphs"] and not hook.said


@pytest.mark.parametrize("speed", ["plain", "compiled"])
def test_a_video_goes_on_from_its_exact_state(speed) -> None:
    pipeline, ending = mini(speed), Ending()
    whole = made(pipeline, seconds=9)
    first = made(pipeline, ending=ending, seconds=5)
    rest = made(pipeline, seconds=4, state=ending.state)
    assert torch.equal(torch.cat((first[0], rest[0])), whole[0])


def test_half_precision_stays_close_for_the_first_blocks() -> None:
    exact, half = made(mini(), seconds=3), made(mini("compiled", dtype=torch.bfloat16), seconds=3)
    assert relative(half[1][:, :, :6], exact[1][:, :, :6]) < 0.1


# Kernels, at the true shapes


def relative(ours: Tensor, right: Tensor) -> float:
    """Relative rms error."""
    return float((ours.float() - right.float()).norm() / right.float().norm())


def qkv(keys: int) -> list[Tensor]:
    """Random queries of a block, and so many keys and values, in bf16."""
    random, heads = torch.Generator(GPU).manual_seed(0), LONGLIVE_1_3B.model.num_heads
    shapes = ((1, tokens, heads, LONGLIVE_1_3B.model.head_dim) for tokens in (BLOCK, keys, keys))
    return [torch.randn(shape, device=GPU, generator=random).bfloat16() for shape in shapes]


@pytest.mark.parametrize("name", ["auto", *BACKENDS])
def test_every_attention_backend_that_can_be_imported_is_sdpa(name) -> None:
    if name == "cudnn-even" and not is_hopper(GPU):
        pytest.skip(f"needs a GPU of compute capability {HOPPER}")
    try:
        attend = attention_backend(name, GPU)
    except ValueError as error:
        pytest.skip(str(error))
    q, k, v = qkv(WINDOW)
    right = sdpa(q.float(), k.float(), v.float())
    limit = 0.1 if name in ("sage", "int8") else 5e-3  # which round to 8 bits
    assert relative(attend(q, k, v), right) < limit


def test_int8_attention_is_as_near_as_its_model_in_plain_arithmetic() -> None:
    try:
        attend = attention_backend("int8", GPU)
    except ValueError as error:
        pytest.skip(str(error))
    q, k, v = (t[:, :, :2] for t in qkv(WINDOW))
    q = q[:, :256]
    right = sdpa(q.float(), k.float(), v.float())
    model = plain_attention(*(t.cpu() for t in (q, k, v))).to(GPU)
    assert relative(attend(q, k, v), right) < 1.5 * relative(model, right)


@pytest.mark.parametrize("name", ["auto", "int8"])
def test_attention_of_a_package_is_one_graph(name) -> None:
    try:
        attend = attention_backend(name, GPU)
    except ValueError as error:
        pytest.skip(str(error))
    q, k, v = qkv(BLOCK)
    assert_close(torch.compile(attend, fullgraph=True)(q, k, v), attend(q, k, v), atol=2e-2, rtol=0)


@pytest.mark.parametrize("shape", [(1536, 1536), (8960, 1536), (1536, 8960)], ids=str)
def test_the_int8_product_is_plain_arithmetic(shape) -> None:
    """By comfy-kitchen's own kernel, eager and in a compiled graph."""
    try:
        found = int8_trial((shape,), torch.bfloat16, GPU)
    except ValueError as error:
        pytest.skip(str(error))
    random = torch.Generator(GPU).manual_seed(0)
    sizes = ((1, BLOCK, shape[1]), shape, shape[:1])
    x, weight, bias = (torch.randn(size, device=GPU, generator=random) for size in sizes)
    x, bias, (small, scale) = x.bfloat16(), bias.bfloat16(), to_8_bits(weight, torch.int8)
    right = plain(x, small, scale, bias)
    assert relative(int8_linear(x, small, scale, bias), right) < 1e-2
    assert relative(torch.compile(int8_linear, fullgraph=True)(x, small, scale, bias), right) < 1e-2
    assert found.speed > 0 and found.loss < 0.03


@pytest.mark.parametrize("keys", [BLOCK, 2 * BLOCK, 3 * BLOCK, WINDOW])
def test_attention_in_parts_is_the_same_attention(keys) -> None:
    """For every window that grows, on 132 multiprocessors as on an H100, whichever are here."""
    if torch.cuda.get_device_capability(GPU) < (8, 0):
        pytest.skip("cuDNN's attention needs compute capability 8.0")
    q, k, v = qkv(keys)
    right = sdpa(q.float(), k.float(), v.float())
    assert relative(HopperAttention(132)(q, k, v), right) < 5e-3


@pytest.mark.parametrize("shape", [(1536, 1536), (8960, 1536), (1536, 8960)], ids=str)
def test_the_fp8_product_is_plain_arithmetic(shape) -> None:
    if reason := lacks_fp8_products(GPU):
        pytest.skip(reason)
    random = torch.Generator(GPU).manual_seed(0)
    x, weight, bias = (
        torch.randn(size, device=GPU, generator=random) for size in ((1, BLOCK, shape[1]), shape, shape[:1])
    )
    x, bias, (small, scale) = x.bfloat16(), bias.bfloat16(), to_8_bits(weight)
    assert relative(fp8_linear(x, small, scale, bias), plain_unscaled(x, small, scale, bias)) < 1e-2


@pytest.mark.parametrize("name", ["wan", "tiny"])
def test_a_decoder_on_a_gpu_is_the_cpus(name) -> None:
    torch.manual_seed(0)
    width = replace(WanAutoencoderConfig(), width=32)
    decoder = (WanAutoencoder(width) if name == "wan" else TinyAutoencoder(TINY_WAN)).requires_grad_(False)
    latents = torch.randn(1, 16, 3, 16, 24)
    right = decoded(decoder, latents)
    assert_close(decoded(decoder.to(GPU), latents.to(GPU)), right, atol=1e-3, rtol=0)


def decoded(decoder: WanAutoencoder | TinyAutoencoder, latents: Tensor) -> Tensor:
    """Three blocks, one after the other, on the CPU."""
    past, frames = None, []
    with torch.no_grad():
        for _ in range(3):
            more, past = decoder.decode(latents, past)
            frames.append(more.cpu())
    return torch.cat(frames, dim=1)
