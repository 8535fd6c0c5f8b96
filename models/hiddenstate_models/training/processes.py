"""The processes of a run: one, or those that torchrun starts, and starts again when one of them dies."""

import os

import torch.distributed
from lightning_fabric import Fabric
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from hiddenstate_models.training.options import TrainingOptions


def make_fabric(options: TrainingOptions) -> Fabric:
    """One process, or under torchrun as many as it started, each on its own device."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    everywhere = int(os.environ.get("WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator=options.accelerator,
        devices=here,
        num_nodes=max(everywhere // here, 1),
        strategy="ddp" if everywhere > 1 else "auto",
        precision=options.precision,
    )
    if restarts() and here == everywhere:
        _meet_again("nccl" if options.accelerator != "cpu" and torch.cuda.is_available() else "gloo")
    fabric.launch()
    return fabric


def restarts() -> int:
    """How often torchrun has started this process again (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _meet_again(backend: str) -> None:
    """Joins the other processes of this machine where none of those before them has left an address.

    torchrun's store outlives its workers (pytorch/pytorch#135712), so one that starts sooner than the others would look
    for them where they died. On several machines counts of restarts can differ; there torchrun has to be told not to
    share its store.
    """
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    torch.distributed.init_process_group(
        backend,
        store=PrefixStore(f"restart-{restarts()}", store),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
