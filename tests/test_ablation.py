"""The ablation of Table 3: five networks, each what the paper and its silence make of it, and each a timm model."""

import argparse
import os

import timm
import torch
import torch._dynamo.testing
from conformance import ROOT, run
from conftest import NARROW
from pytest import mark, raises
from test_timm import randomize_statistics
from torch import nn

from benchmarks.ablation import CONFIGURATIONS, parse_arguments
from hifuse_timm.__main__ import main as hifuse_timm_main
from hifuse_timm.checkpoint import Architecture

DIMS = (96, 192, 384, 768)
ROWS = {row.slug: parse_arguments(row.arguments) for row in CONFIGURATIONS}
REDUCED = {slug: kwargs for slug, kwargs in ROWS.items() if kwargs}
reduced = mark.parametrize("kwargs", REDUCED.values(), ids=REDUCED)
x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def test_rows_are_the_papers():
    assert [row.name.removeprefix("+ ") for row in CONFIGURATIONS] == [
        "Local Path",
        "Global Block",
        "Channel&Spatial Attn",
        "IRMLP",
        "Shortcut (HiFuse-Tiny)",
    ]
    gains = [round(b.accuracy - a.accuracy, 2) for a, b in zip(CONFIGURATIONS, CONFIGURATIONS[1:], strict=False)]
    assert gains[0] == 2.47 and CONFIGURATIONS[-1].accuracy == 82.99  # as section 4.4 says
    assert ROWS["local"] == dict(branches="local") and ROWS["shortcut"] == {}
    assert ROWS["global"] == dict(branch_attention=False, irmlp=False, shortcut=False)


def test_each_row_adds_the_parameters_of_its_part():
    counts = {
        slug: sum(p.numel() for p in timm.create_model("hifuse_tiny", device="meta", **kwargs).parameters())
        for slug, kwargs in ROWS.items()
    }
    attention = sum(2 * 49 + 2 + 2 * dim * (dim // 16) for dim in DIMS)
    irmlp = sum(3 * dim * (2 + 9 + 2) + 3 * dim * 12 * dim + 12 * dim * dim + 2 * dim for dim in DIMS)
    conv = sum(3 * dim * dim + dim + 2 * dim for dim in DIMS)
    assert counts["attention"] - counts["global"] == attention
    assert counts["irmlp"] - counts["attention"] == irmlp - conv
    assert counts["shortcut"] == counts["irmlp"] == 54_673_217  # adding needs no weights
    stem = 3 * 16 * DIMS[0] + 3 * DIMS[0]
    downsampling = sum(2 * a + 4 * a * b + b for a, b in zip(DIMS, DIMS[1:], strict=False))
    blocks = sum(2 * (10 * dim + 2 * dim + dim * dim + dim) for dim in DIMS)
    assert counts["local"] == stem + downsampling + blocks + 2 * DIMS[-1] + 7 * DIMS[-1] + 7


def test_whole_network_is_the_default(narrow):
    explicit = narrow(branches="local+global", branch_attention=True, irmlp=True, shortcut=True).state_dict()
    default = narrow().state_dict()
    assert list(explicit) == list(default)
    assert all(torch.equal(explicit[key], value) for key, value in default.items())


@mark.parametrize(
    "kwargs",
    [*REDUCED.values(), dict(branch_attention=False), dict(irmlp=False), dict(branch_attention=False, irmlp=False)],
    ids=str,
)
def test_every_parameter_trains(narrow, kwargs):
    model = narrow(**kwargs, drop_path_rate=0.1).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(x).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    optimizer.step()
    # a bias before a BatchNorm has a gradient that is zero but for rounding
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert [name for name in still if not name.endswith("bias")] == []


@torch.no_grad()
def test_local_path_alone_gives_the_local_maps_of_the_whole_network(narrow):
    whole, alone = narrow(), narrow(branches="local")
    alone.load_state_dict({key: whole.state_dict()[key] for key in alone.state_dict()})
    maps = []
    for stage in whole.stages:
        stage.local_blocks.register_forward_hook(lambda module, inputs, output: maps.append(output))
    whole(x)
    features, found = alone.forward_intermediates(x)
    for ours, expected in zip(found, maps, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    torch.testing.assert_close(alone(x), alone.forward_head(features), rtol=0, atol=0)
    assert alone.feature_info[2]["module"] == "stages.2.local_blocks"
    assert alone.pretrained_cfg["first_conv"] == "local_stem.0"


@torch.no_grad()
def test_without_attention_the_branch_maps_pass_unchanged(narrow):
    plain, attending = narrow(branch_attention=False), narrow()
    for model, unchanged in ((plain, True), (attending, False)):
        seen = []
        fusion = model.stages[1].fusion
        hooks = [fusion.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.extend(inputs[:2]))]
        hooks += [fusion.irmlp.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))]
        model(x)
        local_map, global_map, concatenated = seen
        assert torch.equal(concatenated[:, :64], torch.cat([global_map, local_map], dim=1)) == unchanged


@torch.no_grad()
def test_without_irmlp_a_1x1_convolution_with_batch_norm_fuses(narrow):
    fusion = randomize_statistics(narrow(irmlp=False)).stages[0].fusion
    maps = torch.randn(2, 48, 5, 6)
    conv = nn.Conv2d(48, 16, kernel_size=1)
    conv.weight.copy_(fusion.irmlp.fc.weight[:, :, None, None])
    conv.bias.copy_(fusion.irmlp.fc.bias)
    torch.testing.assert_close(fusion.irmlp(maps), fusion.irmlp.bn(conv(maps)))


@torch.no_grad()
def test_without_shortcut_the_term_u_is_not_added(narrow):
    fusions = [narrow(shortcut=shortcut, drop_path_rate=0.5).stages[2].fusion for shortcut in (True, False)]
    fusions[1].load_state_dict(fusions[0].state_dict())
    local_map, global_map, previous = torch.randn(2, 64, 4, 6), torch.randn(2, 64, 4, 6), torch.randn(2, 32, 8, 12)
    with_u, without_u = (fusion(local_map, global_map, previous) for fusion in fusions)
    torch.testing.assert_close(with_u - without_u, fusions[0].previous_proj(previous))
    # and so stochastic depth, which would zero a whole map, has nothing to act on
    torch.manual_seed(0)
    dropped = fusions[1].train()(
        local_map.repeat(8, 1, 1, 1), global_map.repeat(8, 1, 1, 1), previous.repeat(8, 1, 1, 1)
    )
    assert (dropped.flatten(1).abs().amax(1) > 0).all()


def test_timm_suite_passes_on_every_reduced_network():
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    assert run("ablation_ and not shortcut", TORCH_BACKEND="ablated_models", PYTHONPATH=path) == 0


@reduced
@torch.no_grad()
def test_reduced_network_fuses_and_compiles_whole(narrow, kwargs):
    torch._dynamo.reset()
    model = randomize_statistics(narrow(**kwargs, depths=(1, 1, 1, 1)))
    expected = model(x)
    for _ in range(2):  # before and after fuse()
        torch.testing.assert_close(
            torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected, rtol=0, atol=1e-4
        )
        model.fuse()
    assert not [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.jit.script(model)(x), expected, rtol=0, atol=1e-4)


@reduced
def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(narrow, kwargs):
    plain, checkpointed = (narrow(**kwargs, drop_path_rate=0.3).train() for _ in range(2))
    checkpointed.set_grad_checkpointing()
    for model in (plain, checkpointed):
        torch.manual_seed(2)
        model(x).square().mean().backward()
    for (name, expected), found in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=name)
    for (name, expected), found in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


@mark.parametrize(
    "arguments, words",
    [
        ("branches=global", ["branches is 'global'", "'local' or 'local+global'"]),
        ("shortcut=false", ["shortcut is 'false'", "True or False"]),
        ("branches=local shortcut=True irmlp=True", ["branches is 'local'", "leave irmlp, shortcut out"]),
        ("branches=local global_depths=(1,1,1,1)", ["branches is 'local'", "leave global_depths out"]),
        ("branches=local dense=True", ["branches is 'local'", "leave dense out"]),
        ("irmlp=False dense=True", ["dense is True and irmlp is False"]),
        ("branches=local depths=(2,2,2)", ["depths", "(2, 2, 2)"]),
    ],
)
def test_settings_that_do_not_go_together_are_one_clear_error(arguments, words):
    with raises(ValueError) as error:
        timm.create_model("hifuse_tiny", **NARROW | parse_arguments(arguments.split()))
    assert all(word in str(error.value) for word in words)


def test_arguments_work_as_typed_to_train_py():
    typed = parse_arguments("branches=local shortcut=False depths=(1,1,1) dims=(8,16,24)".split())
    model = timm.create_model("hifuse_tiny", **typed)
    assert len(model.stages) == 3 and model.global_stem is None
    assert model(x).shape == (2, 7)


@reduced
def test_checkpoint_loads_into_its_own_network_and_no_other(narrow, kwargs, tmp_path):
    trained = randomize_statistics(narrow(**kwargs))
    file = tmp_path / "model_best.pth.tar"
    torch.save(dict(state_dict=trained.state_dict()), file)
    loaded = narrow(pretrained=True, pretrained_cfg_overlay=dict(file=str(file)), **kwargs)
    assert torch.equal(loaded(x), trained(x))
    adapted = narrow(pretrained=True, pretrained_cfg_overlay=dict(file=str(file)), in_chans=1, num_classes=3, **kwargs)
    assert adapted(x[:, :1]).shape == (2, 3)
    torch.testing.assert_close(adapted.local_stem[0].weight, trained.local_stem[0].weight.sum(1, keepdim=True))
    if kwargs != dict(shortcut=False):  # which has no weights that could be missing
        with raises(ValueError, match="the model is a HiFuse of .* IRMLP"):
            narrow(pretrained=True, pretrained_cfg_overlay=dict(file=str(file)))


def test_published_network_is_the_one_that_was_trained(tmp_path):
    kwargs = NARROW | dict(shortcut=False)
    trained = timm.create_model("hifuse_tiny", **kwargs).eval()
    file, out = tmp_path / "model_best.pth.tar", tmp_path / "out"
    torch.save(dict(state_dict=trained.state_dict(), args=argparse.Namespace(model_kwargs=kwargs)), file)
    command = ["publish", "--model", "hifuse_tiny", "--checkpoint", file, "--dataset", "isic2018", "--dry-run", out]
    assert hifuse_timm_main([str(word) for word in command]) == 0
    assert torch.equal(timm.create_model(f"local-dir:{out}", pretrained=True).eval()(x), trained(x))


def test_architecture_tells_the_parts_that_have_weights(narrow):
    found = {slug: Architecture.of(narrow(**kwargs).state_dict()) for slug, kwargs in ROWS.items()}
    assert "local branch alone" in str(found["local"])
    assert "no branch attention, no IRMLP" in str(found["global"])
    assert "global, no IRMLP" in str(found["attention"]) and found["irmlp"] == found["shortcut"]
    assert found["shortcut"].branch_attention and found["shortcut"].irmlp
    assert Architecture.of(narrow().fuse().state_dict()).branch_attention
