"""Frozen dataclasses and presets: the home of every number the model and the rollout are built from."""

from dataclasses import dataclass, field, replace
from enum import Enum

VERSION = "0.2.0"
ABSOLUTE_LATENT_FRAMES = 1024  # 256 s: up to here absolute positions hold the framing better than endless
CONTEXT_CHANNELS = 96  # of VACE: latents of what is kept and of what is made, 16 each, and 64 of the mask
MAX_TOKENS = 4680  # that go through a layer at once: a block at 832x480, enough to keep any GPU busy


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the causal Wan transformer; the defaults are LongLive-1.3B (Wan2.1-T2V-1.3B)."""

    dim: int = 1536
    ffn_dim: int = 8960
    num_heads: int = 12
    num_layers: int = 30
    latent_channels: int = 16
    text_dim: int = 4096
    text_tokens: int = 512
    freq_dim: int = 256
    eps: float = 1e-6

    def __post_init__(self):
        if self.dim % self.num_heads or self.head_dim % 2:
            raise ValueError(f"dim {self.dim} does not split into {self.num_heads} heads of even size")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads


@dataclass(frozen=True)
class WindowConfig:
    """What a block may attend to, in latent frames. The window counts the sink and the block itself.

    `window_latent_frames` None is full attention: everything since the rollout (or scene) began.
    `endless` re-rotates the sink so that it stays at a bounded distance (LongLive's "infinity" variant).
    `has_small_cache` holds keys and values in fp8, each head of a token with a scale of its own.
    `positions_latent_frames` is the span of endless positions, from the sink to the newest latent frame, that
    the model was trained on; None is the length of the window.
    """

    block_latent_frames: int = 3
    sink_latent_frames: int = 3
    window_latent_frames: int | None = 12
    endless: bool = False
    has_small_cache: bool = False
    positions_latent_frames: int | None = None

    def __post_init__(self):
        block, sink, window = self.block_latent_frames, self.sink_latent_frames, self.window_latent_frames
        if block < 1 or sink < 0:
            raise ValueError(
                f"a block of {block} and a sink of {sink} latent frames are not possible; try 3 and 3"
            )
        if window is not None and window < sink + block:
            raise ValueError(
                f"a window of {window} latent frames cannot hold the sink ({sink}) and one block ({block}); "
                f"try a window of at least {sink + block}, or a smaller sink"
            )
        if (span := self.positions_latent_frames) is not None:
            if window is None or window > span:
                raise ValueError(
                    f"a window of {window or 'all'} latent frames is larger than the {span} positions that "
                    f"the model was trained on; choose {span} or fewer"
                )
            if not self.endless:
                raise ValueError(
                    f"absolute positions go beyond the {span} that the model was trained on; choose auto or "
                    "endless"
                )


class Policy(str, Enum):
    """What happens to the blocks in the window when a new prompt takes effect."""

    RECACHE = "recache"  # recomputed under the new prompt, the sink kept
    REFRESH = "refresh"  # the same, and the sink recomputed too
    KEEP = "keep"  # nothing is recomputed
    CUT = "cut"  # all dropped: a new scene
    BLEND = "blend"  # the embedding moves over some seconds, the window recomputed on the way


SWITCH_POLICIES = tuple(policy for policy in Policy if policy is not Policy.BLEND)  # done at one block


# Steps that a model was trained on -> how many are made -> which of them; always the first, which begins from
# pure noise. What each of these gains and loses is measured in benchmarks/extras.py.
FEWER_STEPS = {4: {3: (0, 1, 3), 2: (0, 2)}}


@dataclass(frozen=True)
class SigmaConfig:
    """Which noise levels a block passes through: `steps` of 1000, warped by `shift` (paper section 3).

    `first_steps`, if any, are those of the first block that is made in a scene (Causal-Forcing++).
    """

    steps: tuple[int, ...] = (1000, 750, 500, 250)
    shift: float = 5.0
    first_steps: tuple[int, ...] = ()

    @property
    def choices(self) -> dict[int, tuple[int, ...]]:
        """How many steps a block may take, and which of those that the model was trained on these are."""
        trained = len(self.steps)
        return {trained: tuple(range(trained))} | FEWER_STEPS.get(trained, {})

    def fewer(self, num_steps: int) -> "SigmaConfig":
        """Only `num_steps` of the steps that the model was trained on; ValueError unless it is a choice."""
        if num_steps == len(self.steps):
            return self
        if num_steps not in self.choices:
            allowed = " or ".join(map(str, self.choices))
            raise ValueError(f"{num_steps} denoising steps a block are not possible; choose {allowed}")
        return replace(self, steps=tuple(self.steps[index] for index in self.choices[num_steps]))


@dataclass(frozen=True)
class TinyAutoencoderConfig:
    """A tiny streaming autoencoder in the layout of the TAEHV family.

    `widths` are the channels at 1/8, 1/4, 1/2 and full size; with `patch` 2 the last doubling is a pixel
    shuffle. `encoder_widths` belong to Mini's own encoder, at 1/4 and 1/8 size; None is a decoder alone.
    """

    latent_channels: int = 16
    widths: tuple[int, int, int, int] = (256, 128, 64, 64)
    memory_blocks: tuple[int, int, int] = (3, 3, 3)
    patch: int = 1
    encoder_widths: tuple[int, int] | None = (96, 128)


TINY_WAN = TinyAutoencoderConfig(encoder_widths=None)  # taew2_1 and lighttaew2_1


@dataclass(frozen=True)
class WanAutoencoderConfig:
    """The Wan 2.1 VAE; the defaults are the published one.

    Stages stand from full size to 1/8; `multipliers` times `width` are their channels. `has_time` says which
    of the three steps between them halve time as well as space. `latent_mean` and `latent_std` [C] make its
    latents unit-variance for the transformer (Wan 2.1 `wan/modules/vae.py`).
    """

    width: int = 96
    multipliers: tuple[int, int, int, int] = (1, 2, 4, 4)
    num_residuals: int = 2
    has_time: tuple[bool, bool, bool] = (False, True, True)
    latent_mean: tuple[float, ...] = (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    )  # fmt: skip
    latent_std: tuple[float, ...] = (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    )  # fmt: skip

    @property
    def latent_channels(self) -> int:
        return len(self.latent_mean)


@dataclass(frozen=True)
class Preset:
    """Everything that belongs to one published model.

    `family` is a pattern of its files' names; `needs_lora`: the checkpoint alone is not the whole model;
    `has_ema`: of the two sections of the published file, the averaged one is meant to be run; `has_two_sets`:
    a second set of weights, `memory_*`, fills the KV cache; `on_switch` is for cues that name no policy;
    `commits_past`: latents to begin with are whole blocks, committed one after the other, as SGF does.
    """

    name: str
    model: ModelConfig = field(default_factory=ModelConfig)
    family: str = ""
    needs_lora: bool = False
    has_ema: bool = False
    has_two_sets: bool = False
    on_switch: Policy = Policy.RECACHE
    commits_past: bool = False
    window: WindowConfig = field(default_factory=WindowConfig)
    sigmas: SigmaConfig = field(default_factory=SigmaConfig)
    width: int = 832
    height: int = 480
    autoencoder: TinyAutoencoderConfig | None = None

    @property
    def num_sets(self) -> int:
        return 1 + self.has_two_sets


MINI = Preset(
    "mini",
    ModelConfig(dim=128, ffn_dim=512, num_heads=4, num_layers=6, text_dim=64, text_tokens=16, freq_dim=64),
    width=64,
    height=64,
    autoencoder=TinyAutoencoderConfig(widths=(96, 64, 32, 32), memory_blocks=(2, 2, 1), patch=2),
)
FULL_CLIP = WindowConfig(sink_latent_frames=0, window_latent_frames=21)  # a Wan clip of 81 frames
FRAMEWISE, SHORT = replace(FULL_CLIP, block_latent_frames=1), WindowConfig(window_latent_frames=9)
SPAN_12, SPAN_21 = (WindowConfig(endless=True, positions_latent_frames=span) for span in (12, 21))
LONG_FRAMEWISE = WindowConfig(1, 4, 21, endless=True, positions_latent_frames=21)
LONGLIVE_1_3B = Preset("longlive-1.3b", family="longlive", needs_lora=True)
SGF = Preset(
    "sgf-chunkwise",
    family="sgf",
    has_ema=True,
    on_switch=Policy.KEEP,
    commits_past=True,
    window=SPAN_21,
)
SGF_PLUS = replace(SGF, name="sgf-plus-chunkwise", family="sgf-plus", has_two_sets=True, window=SPAN_12)
_RELATIVES = (  # a file is of the first whose family its name has
    LONGLIVE_1_3B,
    replace(SGF_PLUS, name="sgf-plus-framewise", family="sgf-plus.*framewise", window=LONG_FRAMEWISE),
    SGF_PLUS,
    replace(SGF, name="sgf-framewise", family="sgf.*framewise", window=LONG_FRAMEWISE),
    SGF,
    *(
        Preset(
            f"causal-forcing-{len(steps)}step",
            family=f"(framewise|causal-forcing).*{len(steps)}-?step",
            window=FRAMEWISE,
            sigmas=SigmaConfig(steps, first_steps=SigmaConfig().steps),
        )
        for steps in ((1000, 500), (1000,))
    ),
    Preset("causal-forcing-framewise", family="framewise", window=FRAMEWISE),
    Preset("causal-forcing", family="causal-forcing", window=FULL_CLIP),
    Preset("self-forcing", family="self-forcing", has_ema=True, window=FULL_CLIP),
    Preset("reward-forcing", family="reward-forcing", window=SHORT),
    Preset("memflow", family="memflow"),
)
RELATIVES = {preset.name: preset for preset in _RELATIVES}
PRESETS = {"mini": MINI, **RELATIVES}
