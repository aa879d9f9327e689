"""One network with the hifuse_timm of some checkout, which takes its turns when it is told to.

`python -m benchmarks.measure.worker CHECKOUT CONFIG`, with CONFIG in JSON, is what `benchmarks.versus` starts. It
writes the network's first logits on a line when it is warm; then, for each line that it reads, it takes a turn and
writes the seconds of a call. Of this package it imports only what imports no hifuse_timm: an older checkout lacks what
the rest needs.
"""

import json
import sys
from pathlib import Path

import timm
import torch

from .runner import NetworkRunner, prepare_device


def make_runner(checkout: str, config: dict) -> NetworkRunner:
    """Build a network with the hifuse_timm of a checkout; weights and images are the same in any that draws the same.

    Args:
        checkout: Folder of the checkout.
        config: See `benchmarks.versus.worker_config`.

    Raises:
        ImportError: If hifuse_timm comes from elsewhere.
    """
    sys.path.insert(0, checkout)
    import hifuse_timm

    if not Path(hifuse_timm.__file__).is_relative_to(checkout):
        raise ImportError(f"hifuse_timm comes from {hifuse_timm.__file__}, expected {checkout}")
    arguments = config["runner"] | dict(dtype=getattr(torch, config["runner"]["dtype"]))
    prepare_device(torch.device(arguments["device"]), config["tf32"])
    torch.manual_seed(0)
    network = timm.create_model(**config["network"]).eval()
    if config["fuse"]:
        network = network.fuse()
    if config["grad_checkpointing"]:
        network.set_grad_checkpointing()
    torch.manual_seed(0)
    return NetworkRunner(network, **arguments)


def main(checkout: str, config: str) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed is no answer
    runner = make_runner(checkout, json.loads(config))
    logits = torch.cat([output.detach().flatten() for output in runner.forward()])
    runner.warm_up()
    print(json.dumps(logits.double().tolist()), file=answers, flush=True)
    for _ in sys.stdin:
        (seconds,) = runner.take_turn()
        print(json.dumps(seconds), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
