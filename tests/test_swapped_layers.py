"""What swaps, adapts, quantizes or counts layers by their type finds HiFuse's, and each computes what it says."""

import copy
from collections import Counter

import peft
import pytest
import timm
import torch
from optimum.quanto import freeze, qint8, quantize
from ptflops import get_model_complexity_info
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

SWIN = dict(embed_dim=32, depths=(1, 1), num_heads=(1, 2), img_size=64)


@pytest.fixture
def small(narrow):
    """Builds a HiFuse of two stages, none of whose layers has a single input."""
    return lambda: narrow(dims=(32, 64), depths=(1, 1), num_heads=(1, 2))


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def count_linear(model: nn.Module) -> int:
    return sum(type(module) is nn.Linear for module in model.modules())


# peft


@pytest.fixture(params=[["fc"], ["fc1"], "all-linear"], ids=str)
def adapted(small, request):
    """A network with LoRA adapters, as they are after some training."""
    names = [name for name, module in small().named_modules() if type(module) is nn.Linear]
    if request.param != "all-linear":
        names = [name for name in names if name.endswith(f".{request.param[0]}")]
    model = peft.get_peft_model(small(), peft.LoraConfig(r=4, target_modules=request.param)).eval()
    assert [name for name, m in model.model.named_modules() if isinstance(m, peft.tuners.lora.Linear)] == names
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


@torch.no_grad()
def test_lora_takes_effect_and_merges_without_a_change(adapted, small):
    x = randn(2, 3, 64, 64)
    logits = adapted(x)
    assert (logits - small()(x)).abs().max() > 1e-2
    torch.testing.assert_close(adapted.merge_and_unload()(x), logits, rtol=0, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("adapted", ["all-linear"], indirect=True)
@torch.no_grad()
def test_lora_takes_effect_compiled(adapted):
    x = randn(2, 3, 64, 64)
    torch.testing.assert_close(torch.compile(adapted)(x), adapted(x), rtol=0, atol=1e-4)


def test_lora_trains_its_adapters_alone(adapted):
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    nn.functional.cross_entropy(adapted.train()(randn(2, 3, 64, 64)), torch.tensor([0, 1])).backward()
    optimizer.step()
    changed = {name for name, p in adapted.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora_" in name}


# Quantizers


def quanto(model: nn.Module) -> None:
    quantize(model, weights=qint8)
    freeze(model)


def torchao(model: nn.Module) -> None:
    quantize_(model, Int8WeightOnlyConfig())


@pytest.mark.parametrize("quantize_model", [quanto, torchao])
@torch.no_grad()
def test_weights_of_8_bits_change_the_logits_as_little_as_those_of_swin(small, quantize_model):
    errors = {}
    for model in (small(), timm.create_model("swin_tiny_patch4_window7_224", **SWIN).eval()):
        torch.manual_seed(0)
        nn.init.normal_(model.get_classifier().weight, std=0.1)  # Swin's starts near zero
        x, quantized = randn(2, 3, 64, 64), copy.deepcopy(model)
        quantize_model(quantized)
        expected = model(x)
        errors[type(model).__name__] = ((quantized(x) - expected).norm() / expected.norm()).item()
        weights = [m.weight for m in quantized.modules() if isinstance(m, nn.Linear)]
        assert len(weights) == count_linear(model)
        assert not any(type(weight) is nn.Parameter for weight in weights)
    assert 0 < errors["HiFuse"] < max(0.02, 2 * errors["SwinTransformer"]), errors


# Counters


@torch.no_grad()
def test_counter_of_modules_finds_the_products_of_linear_layers(small):
    model, macs = small(), Counter()
    hook = lambda layer, _, y: macs.update({layer: y.numel() * layer.in_features})  # noqa: E731
    handles = [m.register_forward_hook(hook) for m in model.modules() if type(m) is nn.Linear]
    model(randn(1, 3, 64, 64))
    for handle in handles:
        handle.remove()
    found, parameters = get_model_complexity_info(
        model, (3, 64, 64), as_strings=False, print_per_layer_stat=False, backend="pytorch"
    )
    assert parameters == sum(p.numel() for p in model.parameters())
    assert len(macs) == count_linear(model) and found > macs.total() > 0.5 * found
