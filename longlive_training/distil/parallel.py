"""One run in many processes: their number, what they average, and models that are sharded over them (FSDP2).

A sharded model's processes hold a part of each weight. A layer gathers its weights when it is used; gradients
are averaged over all processes and each keeps those of its part. One process is the same code.
"""

import os
import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from longlive_core.model.causal_wan import CausalWan
from longlive_core.model.layers import Layer

NONE, NODE, ALL = "none", "node", "all"
SHARDS = NONE, NODE, ALL
MODEL_METHODS = "encode_text", "modulations", "fill_cache"  # what uses weights, besides forward
LAYER_METHODS = "text_kv", "modulation_at", "fill_cache", "on_filled"


def rank_and_size() -> tuple[int, int]:
    """This process, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


def gathered(own: object) -> list:
    """What each process has, on all of them."""
    found = [own] * rank_and_size()[1]
    if dist.is_initialized():
        dist.all_gather_object(found, own)
    return found


def average_over_ranks(x: Tensor) -> Tensor:
    """The mean over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(x)
        x.div_(dist.get_world_size())
    return x


def whole(x: Tensor) -> Tensor:
    """A tensor, put together where it is sharded; all ranks must ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def mesh_of(shard: str, device: torch.device) -> DeviceMesh | None:
    """Processes as [replicas, parts of a model]: parts over a node's, or over all; None for no sharding.

    ValueError for a process alone that torchrun did not start.
    """
    if shard == NONE:
        return None
    if not dist.is_initialized():
        raise ValueError(f"--shard {shard} needs processes that torchrun started; see docs/tuning.md")
    ranks = rank_and_size()[1]
    parts = ranks if shard == ALL else int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    return init_device_mesh(device.type, (ranks // parts, parts), mesh_dim_names=("replicas", "parts"))


def shard(model: CausalWan, mesh: DeviceMesh) -> None:
    """Shard a model layer by layer."""
    for layer in model.layers:
        shard_part(layer, mesh, model.dtype)
    shard_part(model, mesh, model.dtype)


def shard_part(part: nn.Module, mesh: DeviceMesh, dtype: torch.dtype, is_offloaded: bool = False) -> None:
    """Shard a layer, or, once all of them are, the rest of a model.

    Weights are gathered in `dtype`, gradients averaged in fp32. What is trained stays gathered until
    `forget_gathered`: rollouts use it many times between two updates. What is frozen is gathered for one use;
    it may wait on the CPU.
    """
    is_layer, is_trained = isinstance(part, Layer), any(w.requires_grad for w in part.parameters())
    if is_layer and not part.modulation.requires_grad:  # small: whole everywhere
        modulation = part.modulation.detach()
        del part.modulation
        part.register_buffer("modulation", modulation)
    waiting = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nobody writes into these
    fully_shard(
        part,
        mesh=mesh,
        reshard_after_forward=is_layer and not is_trained,
        mp_policy=MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False),
        offload_policy=waiting if is_offloaded and is_layer else OffloadPolicy(),
    )
    part.set_reshard_after_backward(False, recurse=False)
    for method in LAYER_METHODS if is_layer else MODEL_METHODS:
        register_fsdp_forward_method(part, method)


def forget_gathered(model: CausalWan) -> None:
    """Keep only this process's part of a sharded model: its weights have changed."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
