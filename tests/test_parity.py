"""The networks and their blocks give the numbers of the released network (tests/data)."""

import timm
import torch
from parity import DATA, MODELS, NAMES, authors_state_dict, images
from pytest import mark
from safetensors.torch import load_file
from torch import nn

import hifuse_timm  # noqa: F401
from hifuse_timm.convert import convert_state_dict
from hifuse_timm.hifuse import GlobalBlock, HierarchicalFeatureFusion, LocalBlock
from hifuse_timm.layers.maps import PatchMerging2d, to_map, to_tokens

BLOCKS = load_file(DATA / "blocks.safetensors")


def our_key(key: str) -> str:
    """Our name for a parameter of the authors' network."""
    marker = torch.full((), torch.nan)
    stub = {"patch_embed.proj.weight": torch.zeros(()), "fu1.residual.conv1.conv.weight": torch.zeros(())}
    stub |= {f"fu{i}.residual.conv1.conv.weight": torch.zeros(()) for i in range(1, 5)}
    converted, _ = convert_state_dict(stub | {key: marker})
    return next(name for name, value in converted.items() if value.isnan())


@mark.parametrize("name", NAMES)
def test_network_gives_the_numbers_of_the_released_one(name):
    expected = MODELS["variants"][name]
    model = timm.create_model(f"hifuse_{name}", num_classes=expected["num_classes"])
    model.load_state_dict(convert_state_dict(authors_state_dict(name))[0])
    assert sum(p.numel() for p in model.parameters()) == expected["live_parameters"]

    model.eval()
    features, maps = model.forward_intermediates(images())
    logits = model.forward_head(features)
    torch.testing.assert_close(logits, torch.tensor(expected["logits"]), rtol=0, atol=1e-4)
    for fused, stage in zip(maps, expected["stage_outputs"], strict=True):
        assert list(fused.shape) == stage["shape"]
        found = torch.stack([fused.mean(), fused.std(), *fused[0, :8, 0, 0]])
        figures = torch.tensor([stage["mean"], stage["std"], *stage["first_8_channels_at_0_0"]])
        torch.testing.assert_close(found, figures, rtol=0, atol=1e-4)

    loss = logits.square().mean()
    torch.testing.assert_close(loss.item(), expected["loss"], rtol=1e-4, atol=0)
    loss.backward()
    gradients = {key: p.grad.norm().item() for key, p in model.named_parameters()}
    for key, norm in expected["grad_norms"].items():
        torch.testing.assert_close(gradients[our_key(key)], norm, rtol=5e-3, atol=0)

    model.zero_grad()
    logits = model.train()(images())
    torch.testing.assert_close(logits, torch.tensor(expected["train_mode_logits"]), rtol=0, atol=1e-3)
    logits.square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


def block_case(case: str) -> tuple[dict[str, torch.Tensor], list[torch.Tensor], torch.Tensor]:
    params = {k.removeprefix(f"{case}.param."): v for k, v in BLOCKS.items() if k.startswith(f"{case}.param.")}
    inputs = [BLOCKS[f"{case}.input.{i}"] for i in range(3) if f"{case}.input.{i}" in BLOCKS]
    return params, inputs, BLOCKS[f"{case}.output"]


def load_block(block: nn.Module, params: dict[str, torch.Tensor], authors_prefix: str, our_prefix: str) -> nn.Module:
    """Load a block's weights through the conversion of whole networks, of which the block is one part."""
    whole = {"patch_embed.proj.weight": torch.zeros(1)}
    whole |= {f"fu{i}.residual.conv1.conv.weight": torch.zeros(1) for i in range(1, 5)}
    whole |= {authors_prefix + key: value for key, value in params.items()}
    converted, _ = convert_state_dict(whole)
    state_dict = {k.removeprefix(our_prefix): v for k, v in converted.items() if k.startswith(our_prefix)}
    missing, unexpected = block.load_state_dict(state_dict, strict=False)
    assert not unexpected
    assert [key for key in missing if not key.endswith("num_batches_tracked")] == []
    return block.eval()


def check(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_local_block():
    params, (x,), output = block_case("local_block")
    block = load_block(LocalBlock(16), params, "stages.0.0.", "stages.0.local_blocks.0.")
    check(block(x), output)


@mark.parametrize("size", ["14x14", "7x7", "10x12_padded", "4x4_padded"])
@torch.no_grad()
def test_global_blocks(size):
    params, (x,), output = block_case(f"global_stage_{size}")
    height, width = map(int, size.removesuffix("_padded").split("x"))
    blocks = nn.Sequential(*[GlobalBlock(32, 4, shift_size=shift, map_size=(height, width)) for shift in (0, 3)])
    load_block(blocks, params, "layers1.", "stages.0.global_blocks.")
    x = to_map(x, height, width)
    check(to_tokens(blocks(x)), output)
    other_size = nn.Sequential(*[GlobalBlock(32, 4, shift_size=shift, map_size=(21, 28)) for shift in (0, 3)])
    other_size.load_state_dict(blocks.state_dict())
    check(to_tokens(other_size.eval()(x)), output)


@mark.parametrize("size", ["8x6", "7x9_padded"])
@torch.no_grad()
def test_patch_merging(size):
    params, (x,), output = block_case(f"patch_merging_{size}")
    height, width = map(int, size.removesuffix("_padded").split("x"))
    merging = load_block(PatchMerging2d(16, 32), params, "layers2.downsample.", "stages.1.global_downsample.")
    check(to_tokens(merging(to_map(x, height, width))), output)


@mark.parametrize("case", ["hff_first", "hff_next", "hff_first_dense", "hff_next_dense"])
@torch.no_grad()
def test_hff_block(case):
    params, inputs, output = block_case(case)
    first = "first" in case
    block = HierarchicalFeatureFusion(32, None if first else 16, dense=case.endswith("dense"))
    load_block(block, params, "fu1." if first else "fu2.", "stages.0.fusion." if first else "stages.1.fusion.")
    check(block(*inputs), output)
