"""Frozen dataclasses and presets: the home of every number the model and the rollout are built from."""

from dataclasses import dataclass, field

ABSOLUTE_LATENT_FRAMES = (
    1024  # up to here (256 s) absolute positions hold the framing better than endless ones
)


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
    """

    block_latent_frames: int = 3
    sink_latent_frames: int = 3
    window_latent_frames: int | None = 12
    endless: bool = False

    def __post_init__(self):
        block, sink, window = self.block_latent_frames, self.sink_latent_frames, self.window_latent_frames
        if block < 1 or sink < 0:
            raise ValueError(
                f"a block of {block} and a sink of {sink} latent frames are not possible; try 3 and 3"
            )
        if window is not None and sink > block:
            raise ValueError(
                f"a sink of {sink} latent frames is longer than the block of {block}: "
                f"it would be frozen half made; try a sink of at most {block}"
            )
        if window is not None and window < sink + block:
            raise ValueError(
                f"a window of {window} latent frames cannot hold the sink ({sink}) and one block ({block}); "
                f"try a window of at least {sink + block}, or a smaller sink"
            )


@dataclass(frozen=True)
class SigmaConfig:
    """Which noise levels a block passes through: `steps` of 1000, warped by `shift` (paper section 3)."""

    steps: tuple[int, ...] = (1000, 750, 500, 250)
    shift: float = 5.0


@dataclass(frozen=True)
class TinyAutoencoderConfig:
    """A tiny streaming autoencoder in the layout of the TAEHV family.

    `widths` are the channels at 1/8, 1/4, 1/2 and full size; with `patch` 2 the last doubling is a pixel
    shuffle. `encoder_widths` belong to Mini's own encoder, at 1/4 and 1/8 size.
    """

    latent_channels: int = 16
    widths: tuple[int, int, int, int] = (256, 128, 64, 64)
    memory_blocks: tuple[int, int, int] = (3, 3, 3)
    patch: int = 1
    encoder_widths: tuple[int, int] = (96, 128)


@dataclass(frozen=True)
class Preset:
    """Everything that belongs to one published model."""

    name: str
    model: ModelConfig
    window: WindowConfig = field(default_factory=WindowConfig)
    sigmas: SigmaConfig = field(default_factory=SigmaConfig)
    width: int = 832
    height: int = 480
    autoencoder: TinyAutoencoderConfig | None = None


MINI = Preset(
    name="mini",
    model=ModelConfig(
        dim=128, ffn_dim=512, num_heads=4, num_layers=6, text_dim=64, text_tokens=16, freq_dim=64
    ),
    width=64,
    height=64,
    autoencoder=TinyAutoencoderConfig(widths=(96, 64, 32, 32), memory_blocks=(2, 2, 1), patch=2),
)
LONGLIVE_1_3B = Preset(name="longlive-1.3b", model=ModelConfig())
PRESETS = {preset.name: preset for preset in (MINI, LONGLIVE_1_3B)}
