"""Lets timm's train.py run under torchrun without a GPU: `--device-modules hifuse_timm ddp_on_cpu`, tests/ on the path.

train.py hands DistributedDataParallel the device as device_ids, which PyTorch refuses on the CPU, for every model.
"""

from torch.nn.parallel import DistributedDataParallel

_init = DistributedDataParallel.__init__


def _init_without_cpu_ids(self, module, device_ids=None, **kwargs):
    if next(module.parameters()).device.type == "cpu":
        device_ids = None
    _init(self, module, device_ids=device_ids, **kwargs)


DistributedDataParallel.__init__ = _init_without_cpu_ids
