"""The rows of Table 3 as registered models, narrow and shallow, for timm's test suite to find by TORCH_BACKEND."""

from timm.models import generate_default_cfgs, register_model

from benchmarks.networks.specs import parse_model_kwargs
from benchmarks.networks.table3 import CONFIGURATIONS
from hifuse_timm.hifuse import _cfg, _create_hifuse

SMALL = dict(dims=(16, 32, 64, 128), num_heads=(1, 2, 4, 8), depths=(1, 1, 1, 1))

default_cfgs = generate_default_cfgs({f"ablation_{row.slug}": _cfg() for row in CONFIGURATIONS})


def _register(name: str, **row) -> None:
    def entrypoint(pretrained=False, **kwargs):
        return _create_hifuse(name, pretrained, **(SMALL | row | kwargs))

    entrypoint.__name__ = name
    register_model(entrypoint)


for row in CONFIGURATIONS:
    _register(f"ablation_{row.slug}", **parse_model_kwargs(row.arguments))
