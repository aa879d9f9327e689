"""What timm and torch ask of a model beside what timm's own test suite (test_conformance.py) covers."""

import copy

import timm
import torch
import torch._dynamo.testing
from conftest import NARROW
from pytest import mark, raises
from timm.models._manipulate import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

import hifuse_timm

NAMES = [f"hifuse_{size}{form}" for form in ("", "_dense") for size in ("tiny", "small", "base")]


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_import_registers_the_models_and_their_pretrained_tags():
    assert sorted(timm.list_models("hifuse*")) == sorted(NAMES)
    tags = sorted(f"hifuse_{size}.{tag}" for size in ("tiny", "small", "base") for tag in hifuse_timm.DATASETS)
    assert sorted(timm.list_models("hifuse*", pretrained=True)) == tags
    assert sorted(timm.list_pretrained("hifuse*")) == tags


@mark.parametrize("tag, num_classes", [("isic2018", 7), ("covid19ct", 2), ("kvasir", 8)])
def test_tag_sets_classes_and_transforms(tag, num_classes):
    model = timm.create_model(f"hifuse_small.{tag}", device="meta")
    config = timm.data.resolve_model_data_config(model)
    assert model.num_classes == num_classes
    assert (config["input_size"], config["mean"], config["std"]) == ((3, 224, 224), (0.5,) * 3, (0.5,) * 3)
    assert (config["interpolation"], config["crop_pct"]) == ("bilinear", 0.875)


def test_untagged_name_is_isic2018():
    assert timm.get_pretrained_cfg("hifuse_small").tag == "isic2018"


@mark.parametrize("pool", ["avg", "max", "avgmax"])
@torch.no_grad()
def test_head_pools_norms_and_classifies(narrow, pool):
    model = narrow(global_pool=pool, num_classes=5)
    x = randn(2, 3, 64, 64)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 2, 2)
    pre_logits = model.forward_head(features, pre_logits=True)
    assert pre_logits.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.get_classifier()(pre_logits), model(x))
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pre_logits)
    model.reset_classifier(3, "")
    assert model(x).shape == (2, 3, 2, 2)


@torch.no_grad()
def test_forward_intermediates_gives_the_fused_maps(narrow):
    model = narrow()
    x = randn(2, 3, 64, 96)
    features, maps = model.forward_intermediates(x)
    torch.testing.assert_close(features, model.forward_features(x), rtol=0, atol=0)
    torch.testing.assert_close(maps[-1], features, rtol=0, atol=0)
    for fused, info in zip(maps, model.feature_info, strict=True):
        assert fused.shape == (2, info["num_chs"], 64 // info["reduction"], 96 // info["reduction"])

    taken = model.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
    last_two = model.forward_intermediates(x, indices=2, norm=True, intermediates_only=True)
    early, stopped = model.forward_intermediates(x, indices=[1], stop_early=True)
    for found, expected in zip(
        [*taken, *last_two, early, *stopped], [*maps[::2], *maps[2:], *maps[1:2] * 2], strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with raises(AssertionError, match="NLC"):
        model.forward_intermediates(x, output_fmt="NLC")
    with raises(AssertionError):
        model.forward_intermediates(x, indices=[4])


@mark.parametrize("feature_cls", ["getter", "fx"])
@torch.no_grad()
def test_features_only(narrow, feature_cls):
    x = randn(2, 3, 64, 64)
    maps = narrow().forward_intermediates(x, intermediates_only=True)
    model = narrow(features_only=True, out_indices=(1, 3), feature_cls=feature_cls)
    assert model.feature_info.channels() == [32, 128]
    assert model.feature_info.reduction() == [8, 32]
    for found, index in zip(model(x), (1, 3), strict=True):
        torch.testing.assert_close(found, maps[index])


@mark.parametrize("indices, prune_norm", [([0], False), ([3], False), ([0, 1, 2, 3], True), (2, True)])
def test_pruned_network_keeps_only_what_its_maps_need(narrow, indices, prune_norm):
    model = narrow()
    x = randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_intermediates(x, indices=indices, intermediates_only=True)
    taken = model.prune_intermediate_layers(indices, prune_norm=prune_norm)
    maps = model.train().forward_intermediates(x, indices=taken, intermediates_only=True)
    sum(fused.sum() for fused in maps).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    model.eval()
    with torch.no_grad():
        for found, fused in zip(model.forward_intermediates(x, indices=taken)[1], expected, strict=True):
            torch.testing.assert_close(found, fused, atol=0.2, rtol=0.2)  # the train-mode pass moved the statistics
        model.reset_classifier(5, "avg")
        assert model(x).shape == (2, 5)
        assert model.forward_head(model.forward_features(x), pre_logits=True).shape[1] == model.head_hidden_size


def test_parameter_groups_run_from_the_stems_to_the_head(narrow):
    model = narrow()
    groups = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    order = [
        "local_stem.0.weight",
        "stages.0.local_blocks.0.fc.weight",
        "stages.0.global_blocks.1.fc.weight",
        "stages.0.fusion.irmlp.fc1.weight",
        "stages.1.global_downsample.reduction.weight",
        "stages.3.fusion.irmlp.fc1.weight",
        "head.fc.weight",
    ]
    layers = [groups[name] for name in order]
    assert layers == sorted(set(layers))
    assert groups["global_stem.0.weight"] == groups["local_stem.0.weight"]
    assert groups["stages.2.local_blocks.1.fc.weight"] == groups["stages.2.global_blocks.1.fc.weight"]
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert len(set(coarse.values())) == 6  # stems, four stages, head


def test_layer_decay_and_weight_decay_reach_the_optimizer(narrow):
    model = narrow()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5)
    decayed = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    block = model.stages[0].global_blocks[0]
    assert decayed[id(block.attn.relative_position_bias_table)] == 0
    assert decayed[id(block.attn.qkv.weight)] == 0.05
    assert scales[id(model.local_stem[0].weight)] < scales[id(block.attn.qkv.weight)] < scales[id(model.head.fc.weight)]


def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(narrow):
    x = randn(4, 3, 64, 64)
    networks = [narrow(drop_path_rate=0.3).train() for _ in range(2)]
    networks[1].set_grad_checkpointing()
    for model in networks:
        torch.manual_seed(2)
        model(x).square().mean().backward()
    plain, checkpointed = networks
    for (name, expected), found in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=name)
    for (name, expected), found in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


def test_gradient_checkpointing_keeps_fewer_maps(narrow):
    def kept(model: nn.Module) -> int:
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.setdefault(t.data_ptr(), t.nbytes) and t, lambda t: t
        ):
            model(randn(2, 3, 64, 64))
        return sum(sizes.values()) - sum(p.nbytes for p in model.parameters() if p.data_ptr() in sizes)

    plain, checkpointed = narrow().train(), narrow().train()
    checkpointed.set_grad_checkpointing()
    assert kept(checkpointed) < 0.6 * kept(plain)


def test_scripted_network_gives_the_same(narrow):
    model = narrow()
    scripted = torch.jit.script(model)
    for size in ((64, 64), (70, 96)):
        x = randn(2, 3, *size)
        torch.testing.assert_close(scripted(x), model(x))


@torch.no_grad()
def test_symbolic_trace_works_for_every_size(narrow):
    """torch's own tracer, which knows nothing of timm's leaf functions."""
    model = narrow()
    traced = torch.fx.symbolic_trace(model)
    for size in ((64, 64), (70, 96)):
        x = randn(2, 3, *size)
        torch.testing.assert_close(traced(x), model(x))


@mark.long
@torch.no_grad()
def test_compiles_whole_with_a_dynamic_batch(narrow):
    torch._dynamo.reset()
    model = narrow()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    # from 4 images up in halves, where torch.compile can be told from torch.export
    num_graphs_below = 2 if hasattr(torch.compiler, "is_exporting") else 1
    for batch, num_graphs in ((5, 1), (4, 1), (9, 1), (2, num_graphs_below), (3, num_graphs_below)):
        x = randn(batch, 3, 64, 96)
        torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(compiled(x), model(x))
        assert counter.frame_count == num_graphs


@torch.no_grad()
def test_exports_with_a_dynamic_batch(narrow):
    model = narrow()
    x = randn(2, 3, 224, 224)
    exported = torch.export.export(model, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", max=64)}}).module()
    for batch in (1, 2, 5):
        x = randn(batch, 3, 224, 224)
        torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


def test_copies_are_independent(narrow):
    model = narrow()
    other = copy.deepcopy(model)
    other.stages[1].global_blocks[1].attn.attn_mask.zero_()
    assert model.stages[1].global_blocks[1].attn.attn_mask.any()


@mark.parametrize("name", NAMES)
def test_entrypoint_takes_other_depths_and_widths(name):
    model = timm.create_model(name, device="meta", **NARROW, depths=(1, 1, 1, 1), global_depths=(1, 2, 1, 1))
    assert [len(stage.local_blocks) for stage in model.stages] == [1, 1, 1, 1]
    assert [len(stage.global_blocks) for stage in model.stages] == [1, 2, 1, 1]


def randomize_statistics(model: nn.Module) -> nn.Module:
    """Give the BatchNorms statistics and weights as after training, so that folding them is no identity."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.normal_(0, 0.1)
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 1.5)
    return model


@mark.parametrize("name", ["hifuse_tiny", "hifuse_tiny_dense"])
@torch.no_grad()
def test_fuse_keeps_the_outputs_and_leaves_no_batch_norm(narrow, name):
    model = randomize_statistics(narrow(name))
    x = randn(2, 3, 64, 96)
    expected = model(x)
    assert model.fuse() is model
    assert not [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-4)
    keys = list(model.state_dict())
    fused = model(x)
    assert list(model.fuse().state_dict()) == keys
    torch.testing.assert_close(model(x), fused, rtol=0, atol=0)


@torch.no_grad()
def test_timm_reparameterizes_a_network_in_any_mode(narrow):
    model = randomize_statistics(narrow())
    x = randn(2, 3, 64, 64)
    expected = model(x)
    for mode in (True, False):
        fused = timm.utils.reparameterize_model(model.train(mode))
        assert not [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
        torch.testing.assert_close(fused.eval()(x), expected, rtol=0, atol=1e-4)
    assert [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]  # it works on a copy


def test_fuse_refuses_a_network_in_training_mode(narrow):
    with raises(RuntimeError, match="eval"):
        narrow().train().fuse()


def test_fused_weights_load_into_fused_networks_only(narrow, tmp_path):
    fused = randomize_statistics(narrow()).fuse()
    with raises(RuntimeError, match="Missing key"):
        narrow().load_state_dict(fused.state_dict())
    with raises(RuntimeError, match="Unexpected key"):
        fused.load_state_dict(narrow().state_dict())
    file = tmp_path / "fused.pth"
    torch.save(fused.state_dict(), file)
    with raises(ValueError, match=r"fuse\(\)"):
        timm.create_model("hifuse_tiny", pretrained=True, pretrained_cfg_overlay=dict(file=str(file)), **NARROW)
    narrow().fuse().load_state_dict(fused.state_dict())


@torch.no_grad()
def test_fused_network_scripts_compiles_and_exports(narrow):
    torch._dynamo.reset()
    model = randomize_statistics(narrow()).fuse()
    x = randn(2, 3, 64, 96)
    expected = model(x)
    torch.testing.assert_close(torch.jit.script(model)(x), expected)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
