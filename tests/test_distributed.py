"""Several processes train a HiFuse together: every parameter takes part, so DistributedDataParallel needs no search."""

import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel


def train(rank: int, world_size: int, port: int) -> None:
    import timm
    from conftest import NARROW

    import hifuse_timm  # noqa: F401

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    torch.manual_seed(rank)
    for checkpointing in (False, True):
        model = timm.create_model("hifuse_tiny", **NARROW, drop_path_rate=0.1)
        model.set_grad_checkpointing(checkpointing)
        parallel = DistributedDataParallel(model)
        for _ in range(2):  # an unused parameter fails the second step
            parallel(torch.randn(2, 3, 64, 64)).square().mean().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        others = gradients.clone()
        dist.broadcast(others, src=0)
        torch.testing.assert_close(gradients, others)
    dist.destroy_process_group()


def test_two_processes_train_without_unused_parameters():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(train, args=(2, port), nprocs=2)
