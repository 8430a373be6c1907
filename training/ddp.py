"""The process group: one process, torchrun or Ray Train; the only use of torch.distributed."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_TIMEOUT = timedelta(minutes=5)  # The default of 30 makes a lost rank look like slow training.


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train together."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes what is written once."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> "Replica":
        """Average gradients over ranks; BatchNorm statistics stay per rank."""
        return Replica(model, self)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        """Return every rank's 1-dimensional tensor, on every rank; lengths may differ."""
        if self.world_size == 1:
            return [values]
        lengths = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in self._all]
        dist.all_gather(lengths, torch.tensor([len(values)], device=self.device))
        sizes = [int(length) for length in lengths]
        padded = values.new_zeros(max(sizes))
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in self._all]
        dist.all_gather(parts, padded)
        return [part[:size] for part, size in zip(parts, sizes, strict=True)]

    @property
    def _all(self) -> range:
        return range(self.world_size)

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            dist.barrier()


class Replica:
    """A model on this rank, and numbers that ride along with its gradients to every rank."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self._world_size = ranks.world_size
        self._module: nn.Module = model
        if ranks.world_size > 1:
            riding = _Riding(model).to(ranks.device)
            ids = [ranks.device.index] if ranks.device.type == "cuda" else None
            self._riders = riding.riders
            self._module = DistributedDataParallel(riding, device_ids=ids, broadcast_buffers=False)

    def __call__(self, *inputs: Tensor) -> Any:
        """Run the model."""
        return self._module(*inputs)

    def backward(self, loss: Tensor, riders: Sequence[float] = (0.0, 0.0)) -> list[float]:
        """Average the gradients of `loss` over ranks; return the sums of two numbers over ranks.

        The numbers cost no collective of their own: they are the gradient of a parameter that the
        model does not have. They travel in fp32, and must be finite.
        """
        if self._world_size == 1:
            torch.autograd.backward(loss)
            return list(riders)
        self._riders.grad = None
        torch.autograd.backward([loss, self._riders @ self._riders.new_tensor(riders)])
        assert self._riders.grad is not None
        sums: list[float] = (self._riders.grad * self._world_size).tolist()
        return sums


class _Riding(nn.Module):
    """A model and one more parameter, never trained nor saved."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.riders = nn.Parameter(torch.zeros(2))

    def forward(self, *inputs: Tensor) -> Any:
        return self.model(*inputs)


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the existing process group: Ray Train's, torchrun's, or none.

    A group created here is destroyed at the end; an existing one is left alone.
    """
    ours = not dist.is_initialized() and "RANK" in os.environ and "WORLD_SIZE" in os.environ
    device = _device()
    if ours:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        if dist.is_initialized():
            yield Ranks(dist.get_rank(), dist.get_world_size(), device)
        else:
            yield Ranks(0, 1, device)
    finally:
        if ours:
            dist.destroy_process_group()


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Ray Train shows a worker only its own GPU; torchrun shows all and sets LOCAL_RANK.
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
