"""The numbers of the released network in tests/data, and the weights and images that they were made with.

`models.json` holds what the authors' network gives at full width, `blocks.safetensors` inputs, weights and outputs of
its blocks, small. Weights of a whole network are too large to keep, so both sides make them by one rule.
"""

import functools
import json
import zlib
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent / "data"
MODELS = json.loads((DATA / "models.json").read_text())
NAMES = list(MODELS["variants"])


@functools.cache
def images() -> torch.Tensor:
    """The two images, (2, 3, 224, 224), of every number in models.json."""
    return torch.from_numpy(np.random.RandomState(2022).standard_normal((2, 3, 224, 224)).astype(np.float32))


def authors_state_dict(name: str) -> dict[str, torch.Tensor]:
    """Weights for a whole network under the authors' key names, each tensor seeded by its key.

    Args:
        name: Key of `variants` in models.json, as tiny or base_dense.
    """
    size, _, dense = name.partition("_")
    state_dict = {}
    for key, shape in MODELS["state_dict_shapes"][size].items():
        if dense and key.endswith("residual.conv1.conv.weight"):
            shape = [shape[0], shape[0], 3, 3]
        state_dict[key] = authors_tensor(key, shape)
    return state_dict


def narrow_authors_state_dict() -> dict[str, torch.Tensor]:
    """Weights of the authors' hifuse_tiny at a sixth of its widths and a third of its heads, as conftest's NARROW."""

    def narrow(key: str, shape: list[int]) -> list[int]:
        if key.endswith("relative_position_bias_table"):
            return [shape[0], shape[1] // 3]
        return [size // 6 if size % 6 == 0 else size for size in shape]

    return {key: authors_tensor(key, narrow(key, shape)) for key, shape in MODELS["state_dict_shapes"]["tiny"].items()}


def authors_tensor(key: str, shape: list[int]) -> torch.Tensor:
    """The tensor that the rule of the parity data gives for one key."""
    if key.endswith(("relative_position_index", "num_batches_tracked")):
        return torch.zeros(shape, dtype=torch.long)  # counts and indices of the network's own, which no rule sets
    values = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if key.endswith("running_var"):
        values = 1 + 0.1 * np.abs(values)
    elif key.endswith("running_mean"):
        values = 0.1 * values
    elif key.endswith("relative_position_bias_table"):
        values = 0.5 * values
    elif len(shape) == 1:
        values = 1 + 0.1 * values if key.endswith("weight") else 0.1 * values
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))
