"""Several processes that train one model: who they are, how weights are spread over them, what they tell each other.

Alone, a process gets its own values back from every function here, so the loop has one path. Full fine-tuning shards
weights, gradients and moments over the processes (``fully_shard``, one group a decoder layer); adapters are small, so
every process keeps them whole and averages their gradients. Not accelerate's own wrapping: asked for FSDP on a CPU it
replicates without a word, and what is tested here on two CPU processes should be what runs on eight GPUs. It does start
the processes, so ``accelerate launch`` and ``torchrun`` both work.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

T = TypeVar("T")

# Others wait for the first process while it writes a model, or makes one; a process that died ends all at once anyway.
PATIENCE = timedelta(hours=2)


def join(device: torch.device) -> None:
    """Meet the other processes that ``torchrun`` or ``accelerate launch`` started; alone, nothing happens.

    Raises:
        ValueError: ``accelerate launch`` was told to use DeepSpeed.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
        raise ValueError("weights are sharded by PyTorch here: launch without --use_deepspeed.")
    for name in ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        os.environ.pop(name, None)  # or transformers would leave weights empty for accelerate's own wrapping to fill
    PartialState(cpu=device.type == "cpu", timeout=PATIENCE)


def leave() -> None:
    """Part from the other processes; what was said by then has arrived."""
    if count() > 1:
        dist.barrier()
        dist.destroy_process_group()


def count() -> int:
    """How many processes train one model."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def check_share(among: int, batch_size: int) -> None:
    """Refuse processes that would find nothing to do in any batch."""
    if among > batch_size:
        raise ValueError(
            f"{among} processes cannot share a batch of {batch_size} documents: start at most {batch_size} "
            "(QRU_PROCESSES), or raise batch_size."
        )


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if count() > 1 else 0


def _device() -> torch.device:
    """Where what is sent must lie."""
    return torch.device("cpu") if dist.get_backend() == "gloo" else torch.device("cuda", torch.cuda.current_device())


def totals(values: Sequence[float]) -> list[float]:
    """Each value summed over the processes."""
    if count() == 1:
        return list(values)
    summed = torch.tensor(values, dtype=torch.float64, device=_device())
    dist.all_reduce(summed)
    return summed.tolist()


def agreed(value: T) -> T:
    """What the first process says; the others' values are dropped."""
    if count() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0, device=_device())
    return said[0]


def gathered(value: T) -> list[T]:
    """The values of all processes, by rank."""
    if count() == 1:
        return [value]
    everyone: list[Any] = [None] * count()
    dist.all_gather_object(everyone, value)
    return everyone


@contextlib.contextmanager
def first_then_others() -> Iterator[None]:
    """Run a block in the first process, then in the others: these find on disk what it made."""
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0 and count() > 1:
        dist.barrier()


# --- weights ----------------------------------------------------------------------------------------------------


def shard(model: torch.nn.Module) -> None:
    """Spread a model's parameters over the processes, in place; a layer is whole only while it computes.

    Args:
        model: the same values in every process. Its parameters become sharded ``DTensor``s, so optimizers are made
            afterwards. Tied embeddings stay tied: they are in one group, the root's.
    """
    if count() == 1:
        return
    mesh = init_device_mesh(next(model.parameters()).device.type, (count(),))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)  # bf16 gradients are rounded after the sum, not in it
    for part in (*layers(model), model):
        # The model's own group, too, is sharded again after each forward pass: what is left whole for a backward pass
        # that never comes (a reference, an evaluation) is what named_parameters() would then give.
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The decoder layers: the longest list of modules in the model, whatever its family calls it."""
    return list(max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len))


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Average the gradients of parameters that every process holds whole; sharded ones were averaged backwards."""
    if count() == 1:
        return
    whole = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    if whole:
        flat = torch.cat([gradient.flatten() for gradient in whole])
        dist.all_reduce(flat)
        flat /= count()
        for gradient, part in zip(whole, flat.split([g.numel() for g in whole]), strict=True):
            gradient.copy_(part.view_as(gradient))


@contextlib.contextmanager
def held_whole(model: torch.nn.Module) -> Iterator[None]:
    """Keep sharded layers whole between forward passes: generating a token must not gather every weight again."""
    parts = [m for m in model.modules() if isinstance(m, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


@torch.no_grad()
def whole_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's state on the CPU of the first process, one tensor after the other; empty in the other processes."""
    state = {}
    for name, value in model.state_dict().items():
        tensor = value.full_tensor() if isinstance(value, DTensor) else value
        if rank() == 0:
            state[name] = tensor.detach().cpu()
    return state


def own_part(value: Any) -> Any:
    """This process's part of a tensor, or of every tensor in nested dicts and lists."""
    if isinstance(value, dict):
        return {name: own_part(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [own_part(inner) for inner in value]
    if isinstance(value, DTensor):
        value = value.to_local()
    return value.detach() if isinstance(value, torch.Tensor) else value


def spread_again(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """``own_part(optimizer.state_dict())``, read back, with moments sharded as the optimizer's parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def as_sharded(value: Any, like: torch.Tensor) -> Any:
        if not isinstance(like, DTensor) or not isinstance(value, torch.Tensor) or value.ndim == 0:
            return value
        local = value.to(like.device)
        return DTensor.from_local(
            local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )

    moments = {
        index: {name: as_sharded(value, parameters[index]) for name, value in entry.items()}
        for index, entry in state["state"].items()
    }
    return state | {"state": moments}
