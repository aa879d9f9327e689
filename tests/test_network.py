"""What the network takes and gives: sizes, channels, precisions, layouts, masks, and its errors."""

import copy
import gc

import timm
import torch
import torch.nn.functional as F
from conftest import NARROW
from pytest import fixture, mark, raises, skip
from timm.layers import set_fused_attn, use_fused_attn
from timm.utils import AttentionExtract
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.flop_counter import FlopCounterMode

from hifuse_timm import hifuse
from hifuse_timm.hifuse import GlobalBlock, InvertedResidualMlp
from hifuse_timm.layers import attention, chunking, onednn
from hifuse_timm.layers.attention import ShiftedWindowAttention, make_window_mask
from hifuse_timm.layers.linear import linear_act, make_linear

PARAMETERS = {
    "hifuse_tiny": 54_673_217,
    "hifuse_small": 58_250_993,
    "hifuse_base": 68_984_321,
    "hifuse_tiny_dense": 118_086_497,
    "hifuse_small_dense": 121_664_273,
    "hifuse_base_dense": 132_397_601,
}

COMPILED_FOR_ONEDNN = mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="PyTorch before 2.7 compiles the plain operators"
)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_design(name):
    model = timm.create_model(name, num_classes=7, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@mark.parametrize("size", [(32, 32), (33, 47), (64, 96), (224, 130), (250, 224)])
@torch.no_grad()
def test_any_size_equals_zero_padding_to_the_next_multiple_of_32(narrow, size):
    model = narrow()
    x = randn(2, 3, *size)
    padded = F.pad(x, (0, -size[1] % 32, 0, -size[0] % 32))
    features = model.forward_features(x)
    assert features.shape == (2, 128, padded.shape[2] // 32, padded.shape[3] // 32)
    torch.testing.assert_close(features, model.forward_features(padded), rtol=0, atol=0)


@torch.no_grad()
def test_size_that_the_network_is_built_for_changes_nothing(narrow):
    x = randn(2, 3, 96, 160)
    torch.testing.assert_close(narrow(img_size=(96, 160))(x), narrow()(x), rtol=0, atol=0)


def test_attention_gives_the_same_fused_and_not():
    """The fused call where there is one, the products written out where a CPU trains."""
    block = GlobalBlock(16, 2, shift_size=3, map_size=(14, 21))
    x = randn(2, 16, 14, 21)
    trained = block(x)
    assert trained.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(block(x), trained)
        block.attn.fused_attn = False
        torch.testing.assert_close(block(x), trained)


def test_mask_adds_no_denormal_numbers():
    """Probabilities of 1e-44, which -100 leaves, slow a CPU's matrix products down by up to ten times."""
    mask = make_window_mask(2, 2, 7, 3, torch.device("cpu"), torch.float32)
    assert set(torch.unique(mask.exp()).tolist()) == {0.0, 1.0}


@torch.no_grad()
def test_padded_tokens_take_part_in_the_attention():
    block = GlobalBlock(16, 2, map_size=(7, 7)).eval()
    x = block.norm(randn(1, 16, 16))  # 4x4 tokens
    padded = F.pad(x.view(1, 4, 4, 16), (0, 0, 0, 3, 0, 3))
    expected = block.attn.attend_windows(padded.flatten(1, 2)).view(1, 7, 7, 16)[:, :4, :4]
    torch.testing.assert_close(block.attn(x, 4, 4), expected.flatten(1, 2))


@torch.no_grad()
def test_batch_of_one_in_eval_mode(narrow):
    model = narrow()
    x = randn(3, 3, 64, 64)
    torch.testing.assert_close(torch.cat([model(image[None]) for image in x]), model(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_channels_last_in_gives_the_same(narrow):
    model = narrow()
    x = randn(2, 3, 64, 96)
    expected = model(x)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected, rtol=1e-5, atol=1e-5)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected, rtol=1e-5, atol=1e-5)


@mark.parametrize("in_chans", [1, 4])
@torch.no_grad()
def test_other_numbers_of_channels(narrow, in_chans):
    assert narrow(in_chans=in_chans)(randn(2, in_chans, 64, 64)).shape == (2, 7)


@fixture(params=[True, False], ids=["onednn", "plain"])
def has_bfloat16(request, monkeypatch):
    """A CPU with instructions for bfloat16, and one without; oneDNN itself works on either, or on none at all."""
    if request.param and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        skip("this CPU has no bfloat16 that oneDNN takes")
    monkeypatch.setattr(onednn, "_HAS_BFLOAT16", request.param)
    return request.param


def autocast(enabled: bool = True) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


@mark.parametrize("fused", [False, True])
@torch.no_grad()
def test_bfloat16_and_autocast_stay_near_float32(narrow, has_bfloat16, products, fused):
    """And go through oneDNN where the CPU has bfloat16, there alone."""
    model = narrow()
    nn.init.normal_(model.head.fc.weight)  # logits whose spread is not the rounding of a bias
    model = model.fuse() if fused else model
    x = randn(3, 3, 64, 96)
    expected = model(x)
    products.clear()
    with autocast():
        mixed = model(x)
    assert {y.dtype for y in products} == ({torch.bfloat16} if has_bfloat16 else set())
    products.clear()
    low = model.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert {y.dtype for y in products} == ({torch.bfloat16} if has_bfloat16 else set())
    assert low.dtype == mixed.dtype == torch.bfloat16
    for found in (mixed.float(), low.float()):
        assert (found - expected).square().mean().sqrt() < 0.02 * expected.std()


@mark.parametrize("size", [(224, 224), (96, 160)])
def test_forward_never_waits_for_the_device(size):
    """On the meta device there are no values: whatever asks for one fails, at the built size and at any other."""
    model = timm.create_model("hifuse_tiny", **NARROW, device="meta")
    assert model(torch.empty(2, 3, *size, device="meta")).shape == (2, 7)


def test_masks_and_indices_move_with_the_module_and_stay_out_of_the_state_dict(narrow):
    model = narrow()
    shifted = [m for m in model.modules() if isinstance(m, GlobalBlock) and m.attn.shift_size]
    assert [m.attn.attn_mask.shape[:2] for m in shifted] == [(8, 8), (4, 4), (2, 2), (1, 1)]
    assert not [key for key in model.state_dict() if "mask" in key or "index" in key]
    for buffer in ("attn.attn_mask", "attn.relative_position_index"):
        assert all(m.to("meta").get_buffer(buffer).is_meta for m in shifted)
    model = narrow(dtype=torch.bfloat16)
    assert {buffer.dtype for key, buffer in model.named_buffers() if key.endswith("attn_mask")} == {torch.bfloat16}


def test_network_built_on_meta_and_filled_later_is_whole(narrow):
    model = narrow()
    other = timm.create_model("hifuse_tiny", **NARROW, device="meta").to_empty(device="cpu").eval()
    for module in other.modules():
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    other.load_state_dict(model.state_dict())
    x = randn(1, 3, 64, 64)
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)


def test_mask_splits_a_single_window_into_four_regions():
    mask = make_window_mask(1, 1, 7, 3, torch.device("cpu"), torch.float32)[0, 0]
    assert set(mask.unique().tolist()) == {-torch.inf, 0.0}
    regions = {tuple(row) for row in (mask == 0).int().tolist()}
    assert sorted(sum(region) for region in regions) == [9, 12, 12, 16]


def test_every_mask_row_matches_the_windows_of_swin():
    """timm's Swin makes the same masks, another way and with -100, where the map is larger than the window."""
    from timm.models.swin_transformer import SwinTransformerBlock

    block = SwinTransformerBlock(8, (21, 14), num_heads=1, window_size=7, shift_size=3)
    mask = make_window_mask(3, 2, 7, 3, torch.device("cpu"), torch.float32).flatten(0, 1)
    assert torch.equal(mask == 0, block.attn_mask == 0)


def test_stochastic_depth_grows_over_each_branch_and_ends_in_the_hff_block(narrow):
    model = narrow(depths=(1, 2, 1, 1), global_depths=(2, 2, 2, 2), drop_path_rate=0.4)
    rates = {
        branch: [
            getattr(block.drop_path, "drop_prob", 0.0)
            for stage in model.stages
            for block in getattr(stage, f"{branch}_blocks")
        ]
        for branch in ("local", "global")
    }
    torch.testing.assert_close(rates["local"], torch.linspace(0, 0.4, 5).tolist())
    torch.testing.assert_close(rates["global"], torch.linspace(0, 0.4, 8).tolist())
    fusion = [getattr(stage.fusion.drop_path, "drop_prob", 0.0) for stage in model.stages]
    torch.testing.assert_close(fusion[1:], [max(0.2, 1.2 / 7), max(0.3, 2 / 7), 0.4])


def test_first_stage_has_no_stochastic_depth_to_zero_a_map(narrow):
    model = narrow(drop_path_rate=0.9).train()
    torch.manual_seed(0)
    x = randn(16, 3, 32, 32)
    with torch.no_grad():
        fused = model.forward_intermediates(x, indices=[0], intermediates_only=True)[0]
    assert (fused.flatten(1).abs().amax(1) > 0).all()


def test_initialisation_is_the_papers():
    torch.manual_seed(0)
    model = timm.create_model("hifuse_tiny", **NARROW)
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        if ".fusion." in name:  # PyTorch's default for convolutions, and for Linear the same
            bound = module.weight[0].numel() ** -0.5
            assert 0.8 * bound < module.weight.abs().max() <= bound, name
            continue
        std = 0.02 if isinstance(module, nn.Linear) else 0.2
        assert 0.75 * std < module.weight.std() < 1.25 * std, name
        assert module.bias is None or not module.bias.any(), name


def test_dropout_rates_reach_their_layers(narrow):
    model = narrow(drop_rate=0.1, attn_drop_rate=0.2, proj_drop_rate=0.3)
    attention = model.stages[0].global_blocks[0].attn
    assert (model.head.drop.p, attention.attn_drop.p, attention.proj_drop.p) == (0.1, 0.2, 0.3)


@mark.parametrize(
    "shape, words",
    [
        ((3, 64, 64), ["3 dimensions", "expected 4"]),
        ((1, 1, 64, 64), ["1 channels", "expected 3", "in_chans"]),
        ((1, 3, 31, 64), ["31x64", "32"]),
        ((1, 3, 64, 16), ["64x16", "32"]),
    ],
)
def test_wrong_input_says_what_it_is_and_what_would_be_right(narrow, shape, words):
    with raises(ValueError) as error:
        narrow()(torch.zeros(shape))
    assert all(word in str(error.value) for word in words)


@mark.parametrize(
    "arguments, words",
    [
        (dict(depths=(2, 2, 2)), ["depths", "(2, 2, 2)"]),
        (dict(global_depths=(2, 2, 2)), ["global_depths", "(2, 2, 2)"]),
        (dict(dims=(16, 32, 64)), ["depths", "(16, 32, 64)"]),
        (dict(num_heads=(1, 2, 4)), ["num_heads", "(1, 2, 4)"]),
        (dict(num_heads=(3, 2, 4, 8)), ["num_heads[0]", "3", "divisor", "16"]),
        (dict(depths=(2, 0, 2, 2)), ["depths", "(2, 0, 2, 2)"]),
    ],
)
def test_wrong_architecture_says_which_argument(narrow, arguments, words):
    with raises(ValueError) as error:
        narrow(**arguments)
    assert all(word in str(error.value) for word in words)


def test_gelu_inside_the_product_is_the_exact_one():
    layer, act = nn.Linear(24, 40), nn.GELU()
    x = randn(2, 5, 5, 24)
    plain = act(layer(x))
    torch.testing.assert_close(linear_act(x, layer, act), plain, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(linear_act(x, layer, act), plain, rtol=1e-5, atol=1e-5)


@mark.parametrize("requires_grad", [False, True])
@mark.parametrize("under_autocast", [False, True])
@torch.no_grad()
def test_product_in_bfloat16_is_rounded_once(has_bfloat16, under_autocast, requires_grad):
    """Of the same factors, at most half a unit in the last place off, and the plain product as much again."""
    layer, act = nn.Linear(96, 40).requires_grad_(requires_grad), nn.GELU()
    x = randn(2, 25, 96)
    low = copy.deepcopy(layer).to(torch.bfloat16)
    expected = act(F.linear(x.to(torch.bfloat16).float(), low.weight.float(), low.bias.float()))
    with autocast(under_autocast):
        found = linear_act(x, layer, act) if under_autocast else linear_act(x.to(torch.bfloat16), low, act)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2**-7, atol=2**-8)


@mark.parametrize("bias", [True, False])
@mark.parametrize("tokens, in_features, out_features", [(90, 24, 40), (90, 40, 24), (9, 24, 40), (9, 40, 24)])
def test_gradients_of_a_linear_are_those_of_the_plain_one(tokens, in_features, out_features, bias):
    """Each order in which the weight's gradient may be computed."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    x, grad = randn(tokens // 9, 3, 3, in_features).requires_grad_(), randn(tokens // 9, 3, 3, out_features)
    inputs = [x, *layer.parameters()]
    found = torch.autograd.grad(linear_act(x, layer), inputs, grad)
    expected = torch.autograd.grad(layer(x), inputs, grad)
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-5)


@mark.parametrize("master", [torch.float32, torch.bfloat16])
@mark.parametrize("tokens, in_features, out_features", [(9000, 24, 40), (90, 24, 1200), (9, 24, 1200), (90, 1200, 24)])
def test_gradients_in_bfloat16_are_as_near_as_the_plain_ones(tokens, in_features, out_features, master):
    """Each order in which the weight's gradient may be computed; weights of float32, which autocast lowers, or not."""
    layer = nn.Linear(in_features, out_features).to(master)
    x, grad = randn(tokens // 9, 3, 3, in_features).to(master), randn(tokens // 9, 3, 3, out_features).bfloat16()
    inputs = [x.requires_grad_(), *layer.parameters()]
    doubles = [tensor.detach().double().requires_grad_() for tensor in inputs]
    with autocast(master == torch.float32):
        found, plain = linear_act(x, layer), layer(x)
    assert found.dtype == torch.bfloat16 and type(found.grad_fn).__name__ == "_LinearBackward"
    gradients = (
        torch.autograd.grad(y, tensors, grad.to(y.dtype))
        for y, tensors in ((found, inputs), (plain, inputs), (F.linear(*doubles), doubles))
    )
    for gradient, other, exact in zip(*gradients, strict=True):
        assert gradient.dtype == other.dtype == master
        assert (gradient - exact).norm() <= 1.05 * (other - exact).norm() + 1e-6 * exact.norm()


def test_gradients_of_chunks_are_added_up_in_float32(monkeypatch, products):
    """A hundred roundings to bfloat16 would add up; of weights in bfloat16, whose gradients are, nothing is cut."""
    irmlp = InvertedResidualMlp(24, 8)
    x = randn(3, 24, 28, 25)
    weights = [irmlp.fc1.weight, irmlp.fc2.weight]

    def gradients(chunk_bytes, master=torch.float32, low=True):
        monkeypatch.setattr(onednn, "_CHUNK_BYTES", chunk_bytes)
        irmlp.to(master)
        products.clear()
        with autocast(low and master == torch.float32):
            y = irmlp(x.to(master))
        return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(y.float().square().sum(), weights)])

    if not onednn._HAS_BFLOAT16:
        skip("this CPU has no bfloat16")
    exact = gradients(2**40, low=False)
    whole = gradients(2**40)
    assert len(products) == 2
    lowered, lower = [], onednn.lower_weight
    monkeypatch.setattr(onednn, "lower_weight", lambda x, weight: (lowered.append(weight), lower(x, weight))[1])
    cut = gradients(2 * 96 * 21)
    assert len(products) == 2 * 100 and len(lowered) == 2
    assert cut.dtype == torch.float32
    assert (cut - exact).norm() < 1.1 * (whole - exact).norm()
    gradients(2 * 96 * 21, torch.bfloat16)
    assert len(products) == 2


@mark.parametrize("low", [False, True])
def test_gradients_can_be_differentiated_again(low):
    layer = nn.Linear(24, 40)
    x = randn(9, 24).requires_grad_()

    def penalty(forward):
        with autocast(low):
            y = forward(x)
        (gradient,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), [x, layer.weight])

    for found, expected in zip(penalty(lambda x: linear_act(x, layer)), penalty(layer), strict=True):
        assert (found - expected).norm() < (0.03 if low else 1e-5) * expected.norm()


def test_function_transforms_go_through_the_network(narrow):
    """As ensembles by vmap, products with Jacobians and second derivatives do."""
    models = [narrow(), narrow()]
    with torch.no_grad():
        models[1].head.fc.bias += 1
    x = randn(2, 3, 64, 64)
    parameters, buffers = torch.func.stack_module_state(models)
    outputs = torch.func.vmap(
        lambda parameters, buffers: torch.func.functional_call(models[0], (parameters, buffers), (x,))
    )(parameters, buffers)
    for output, model in zip(outputs, models, strict=True):
        torch.testing.assert_close(output, model(x), rtol=1e-4, atol=1e-5)

    model, step = models[1].double(), 1e-5
    x, direction = x.double(), randn(2, 3, 64, 64).double()
    along = torch.func.jvp(model, (x,), (direction,))[1]
    torch.testing.assert_close(
        along, (model(x + step * direction) - model(x - step * direction)) / (2 * step), rtol=1e-4, atol=1e-6
    )

    def slope(scale):
        return torch.func.grad(lambda scale: model(x * scale).square().sum())(scale)

    one = torch.tensor(1.0, dtype=torch.float64)
    expected = (slope(one + step) - slope(one - step)) / (2 * step)
    torch.testing.assert_close(torch.func.grad(slope)(one), expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_types_that_do_not_fit_are_refused_as_by_a_plain_linear(has_bfloat16):
    layer = nn.Linear(24, 40).requires_grad_(False)
    for module, x in ((layer, randn(5, 24).bfloat16()), (copy.deepcopy(layer).bfloat16(), randn(5, 24))):
        with raises(RuntimeError, match="same dtype"):
            linear_act(x, module)
    with torch.autocast("cpu", torch.float16):
        assert linear_act(randn(5, 24), layer).dtype == torch.float16
    with autocast():  # which leaves float64 alone
        assert linear_act(randn(5, 24).double(), copy.deepcopy(layer).double()).dtype == torch.float64


@fixture
def products(monkeypatch):
    """Collects the inputs of the products that go through oneDNN."""
    inputs, product = [], onednn.linear
    monkeypatch.setattr(onednn, "linear", lambda x, *args: (inputs.append(x), product(x, *args))[1])
    return inputs


@mark.parametrize("checkpointing", [False, True])
def test_irmlp_in_chunks_is_the_irmlp(monkeypatch, products, checkpointing):
    irmlp = InvertedResidualMlp(24, 8)
    x = randn(3, 24, 7, 5).requires_grad_()
    inputs = [x, *irmlp.parameters()]
    whole = irmlp(x)
    expected = torch.autograd.grad(whole.square().sum(), inputs)
    products.clear()
    monkeypatch.setattr(onednn, "_CHUNK_BYTES", 4 * 96 * 20)  # 20 of 105 tokens
    irmlp.grad_checkpointing = checkpointing
    found = irmlp(x)
    assert len(products) == 12  # two for each of 6 chunks
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    for gradient, other in zip(torch.autograd.grad(found.square().sum(), inputs), expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-4)
    assert len(products) == (24 if checkpointing else 12)


@COMPILED_FOR_ONEDNN
@mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
@torch.no_grad()
def test_compiled_irmlp_runs_in_chunks(monkeypatch, precision):
    monkeypatch.setattr(onednn, "_HAS_BFLOAT16", True)
    irmlp = InvertedResidualMlp(24, 8).eval().requires_grad_(False)
    x = randn(3, 24, 7, 5)
    expected = irmlp(x)
    graphs = []

    def backend(graph, inputs):
        graphs.append(str(graph.graph))
        return graph

    monkeypatch.setattr(onednn, "_CHUNK_BYTES", 4 * 96 * 20)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    torch._dynamo.reset()
    with autocast(precision == "autocast"):
        found = torch.compile(irmlp.to(dtype), backend=backend, fullgraph=True)(x.to(dtype))
        assert found.dtype == irmlp(x.to(dtype)).dtype
    atol = 1e-5 if precision == "float32" else 0.02
    torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=atol)
    assert len(graphs) == 1 and "hifuse_timm.mlp" in graphs[0]


class Doubled(nn.Linear):
    """A Linear with an adapter."""

    def forward(self, x):
        return 2 * super().forward(x)


def double(module, args, output):
    return 2 * output


ADAPTERS = dict(
    subclass=lambda fc: setattr(fc, "__class__", Doubled),
    hook=lambda fc: fc.register_forward_hook(double),
    forward=lambda fc: setattr(fc, "forward", lambda x: 2 * F.linear(x, fc.weight, fc.bias)),
)


@mark.parametrize("way", ["eager", "autocast", "compiled"])
@mark.parametrize("adapter", ADAPTERS)
@mark.parametrize("name", ["fc1", "fc2"])
@torch.no_grad()
def test_adapters_and_hooks_on_the_layers_take_effect(name, adapter, way):
    """Eager and compiled, with the weights packed or not, as in a network of plain layers."""
    irmlp = InvertedResidualMlp(24, 8).eval().requires_grad_(False)
    x = randn(1, 24, 7, 5)
    fc1, fc2 = (2.0 if name == other else 1.0 for other in ("fc1", "fc2"))
    hidden = irmlp.norm(x)
    hidden = irmlp.bn1(hidden + irmlp.act(irmlp.conv(hidden))).permute(0, 2, 3, 1)
    expected = irmlp.bn2((fc2 * irmlp.fc2(irmlp.act(fc1 * irmlp.fc1(hidden)))).permute(0, 3, 1, 2))
    ADAPTERS[adapter](getattr(irmlp, name))
    torch._dynamo.reset()
    run = torch.compile(irmlp, backend="eager", fullgraph=True) if way == "compiled" else irmlp
    with autocast(way == "autocast"):
        found = run(x).float()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.02 if way == "autocast" else 1e-5)


def test_attention_maps_are_there_for_hooks_and_tracers(narrow):
    """As timm's Swin has them: without fused attention the attention calls its own softmax and dropout."""
    before = use_fused_attn()
    set_fused_attn(False)
    try:
        model = narrow()
    finally:
        set_fused_attn(bool(before))
    x = randn(2, 3, 64, 64)
    for method, layer in (("fx", "softmax"), ("hook", "attn_drop")):
        maps = AttentionExtract(model, method=method)(x)
        assert list(maps) == [f"stages.{i}.global_blocks.{j}.attn.{layer}" for i in range(4) for j in range(2)]
        for name, map in maps.items():
            num_heads = model.get_submodule(name.rpartition(".")[0]).num_heads
            assert map.shape[1:] == (num_heads, 49, 49)
            torch.testing.assert_close(map.sum(-1), torch.ones(map.shape[:-1]))


def test_layers_are_plain_ones(narrow):
    """So that what swaps, adapts, counts or quantizes layers by their type finds all of them."""
    model = narrow()
    weights = {name for name, p in model.named_parameters() if p.dim() == 2 and not name.endswith("_table")}
    assert {f"{name}.weight" for name, module in model.named_modules() if type(module) is nn.Linear} == weights
    with torch.no_grad():
        x = randn(1, 3, 64, 64)
        expected = model(x)
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        assert not any(type(module) is nn.Linear for module in quantized.modules())
        assert (quantized(x) - expected).abs().max() < 0.1 * expected.abs().max()


@torch.no_grad()
def test_flop_counters_see_every_product():
    """Whoever intercepts operators gets plain ones, of which counters know the FLOPs."""
    layer = nn.Linear(24, 40, bias=False)
    with FlopCounterMode(display=False) as counter:
        linear_act(randn(10, 24), layer, nn.GELU())
    assert counter.get_total_flops() == 2 * 10 * 24 * 40


@fixture
def count_chunks(monkeypatch):
    """Has every stage take one image at a time, and gives the numbers of chunks of the batches that were cut."""
    monkeypatch.setattr(chunking, "_MAP_BYTES", 1)
    cut = []

    def counted(function, num_chunks, *maps):
        cut.append(num_chunks)
        return chunking.run_in_chunks(function, num_chunks, *maps)

    monkeypatch.setattr(hifuse, "run_in_chunks", counted)
    return cut


@mark.parametrize("kwargs", [{}, dict(branches="local"), dict(shortcut=False)])
@mark.parametrize("fused", [False, True])
def test_batch_in_chunks_gives_what_the_whole_gives(narrow, count_chunks, kwargs, fused):
    model = narrow(**kwargs)
    if fused:
        model.fuse()
    x = randn(3, 3, 70, 64)
    whole = model(x)  # with gradients nothing is cut
    assert not count_chunks
    with torch.no_grad():
        torch.testing.assert_close(model(x), whole, rtol=1e-5, atol=1e-5)
        assert count_chunks == [3, 3, 3, 3]
        model(x[:1])
    assert count_chunks == [3, 3, 3, 3]


@torch.no_grad()
def test_map_of_a_chunk_has_twice_the_images_in_bfloat16(monkeypatch, has_bfloat16):
    monkeypatch.setattr(chunking, "_MAP_BYTES", 2 * 4 * 8 * 16)
    module, x = nn.Identity(), randn(8, 8, 4, 4)
    assert chunking.count_chunks(module, x, 8) == 4
    chunks = 2 if has_bfloat16 else 1
    assert chunking.count_chunks(module, x.bfloat16(), 8) == chunks
    with autocast():
        assert chunking.count_chunks(module, x.bfloat16(), 8) == chunks


@COMPILED_FOR_ONEDNN
@mark.parametrize("kwargs", [{}, dict(branches="local")])
@torch.no_grad()
def test_compiled_batch_of_any_size_goes_through_the_first_stage_in_halves(narrow, kwargs):
    model = narrow(**kwargs)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for batch_size in (5, 4, 7, 2, 3):
        x = randn(batch_size, 3, 64, 64)
        torch._dynamo.maybe_mark_dynamic(x, 0)  # the batch alone: symbols for height and width take minutes
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
    halves, whole = graphs  # from 4 images up, and below

    def count_blocks(graph):
        return sum("conv2d" in str(node.target) and node.args[-1] == 16 for node in graph.graph.nodes)

    assert count_blocks(whole) == len(model.stages[0].local_blocks)
    assert count_blocks(halves) == 2 * count_blocks(whole)


@torch.no_grad()
def test_hooks_see_the_map_of_the_whole_batch(narrow, count_chunks):
    model = narrow()
    x = randn(3, 3, 64, 64)
    seen = []
    handle = model.stages[1].fusion.irmlp.register_forward_hook(lambda module, args, output: seen.append(output))
    model(x)
    assert [map.shape for map in seen] == [(3, 32, 8, 8)] and count_chunks == [3, 3, 3]
    handle.remove()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    model(x)
    handle.remove()
    assert len(count_chunks) == 3


@torch.no_grad()
def test_batchnorm_in_training_counts_the_whole_batch(narrow, count_chunks):
    """As where the statistics alone are adapted to new images."""
    x = randn(3, 3, 64, 64)
    outputs, statistics = [], []
    for map_bytes in (2**40, 1):
        chunking._MAP_BYTES = map_bytes
        model = narrow()
        norm = model.stages[0].fusion.irmlp.bn2.train()
        outputs.append(model(x))
        statistics.append(norm.running_var)
    assert count_chunks == [3, 3, 3]  # all stages but the one
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*statistics)


@mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
def test_packed_weight_follows_the_weight(monkeypatch, precision):
    if precision != "float32" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        skip("this CPU has no bfloat16 that oneDNN takes")
    monkeypatch.setattr(onednn, "_HAS_BFLOAT16", True)
    own = torch.bfloat16 if precision == "bfloat16" else torch.float32
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    layer = make_linear(randn(40, 24), randn(40)).to(own)
    x = randn(5, 24).to(own)

    @torch.no_grad()
    def check(layer):
        tolerance = 1e-5 if precision == "float32" else 2**-6
        with autocast(precision == "autocast"):
            plain = F.linear(x, layer.weight, layer.bias)
            torch.testing.assert_close(linear_act(x, layer), plain, rtol=tolerance, atol=tolerance)

    check(layer)
    packed = onednn.pack_weight(layer.weight, dtype)
    assert packed.is_mkldnn and packed.dtype == dtype
    check(layer)
    assert onednn.pack_weight(layer.weight, dtype) is packed
    layer.load_state_dict(nn.Linear(24, 40).state_dict())
    check(layer)
    for _ in range(3):  # of which the second could get the memory that the first left
        layer.weight.data = torch.rand(40, 24).to(own)
        check(layer)
    layer.weight.data.neg_()
    layer.weight.mul_(2)
    check(layer)
    layer.double().to(own)
    check(layer)
    copied = copy.deepcopy(layer)
    copied.weight.data.neg_()
    check(copied)
    check(layer)


@torch.no_grad()
def test_weight_is_packed_for_each_type_and_follows_in_each(monkeypatch):
    """As where a network answers in float32 and under autocast in turns."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        skip("this CPU has no bfloat16 that oneDNN takes")
    monkeypatch.setattr(onednn, "_HAS_BFLOAT16", True)
    layer, x = make_linear(randn(40, 24), randn(40)), randn(5, 24)
    for _ in range(2):
        for enabled in (False, True, True, False):
            with autocast(enabled):
                found = linear_act(x, layer)
            assert found.dtype == (torch.bfloat16 if enabled else torch.float32)
            expected, tolerance = F.linear(x, layer.weight, layer.bias), 0.05 if enabled else 1e-5
            torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)
        layer.weight.neg_()


def test_weight_that_trains_is_never_packed():
    """The fused AdamW changes weights without counting the change, and so does NumPy."""
    layer = nn.Linear(24, 40)
    x = randn(5, 24)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(linear_act(x, layer), layer(x), rtol=1e-5, atol=1e-5)
        assert layer.weight not in onednn._packed_weights
        linear_act(x, layer).square().sum().backward()
        optimizer.step()
    layer.weight.detach().numpy()[:] = 1
    with torch.no_grad():
        torch.testing.assert_close(linear_act(x, layer), layer(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_packed_weights_go_with_their_network(narrow):
    torch._dynamo.reset()
    gc.collect()  # what other tests left would go on its own
    model = narrow().fuse()
    x = randn(1, 3, 64, 64)
    model(x)
    kept = len(onednn._packed_weights)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
    assert len(onednn._packed_weights) == kept  # compiled as eager
    own = sum(weight in onednn._packed_weights for weight in model.parameters())
    assert own
    with torch.inference_mode():
        torch.testing.assert_close(narrow().fuse()(x), model(x), rtol=1e-5, atol=1e-5)  # weights without versions
    del model, compiled
    torch._dynamo.reset()
    gc.collect()
    assert len(onednn._packed_weights) <= kept - own


@torch.no_grad()
def test_weights_of_classes_of_their_own_multiply_themselves():
    """As quantized ones do, which have no memory that oneDNN could read."""
    layer, act = nn.Linear(24, 40), nn.GELU()
    x = randn(5, 24)
    expected = linear_act(x, layer, act)
    layer.weight = nn.Parameter(TwoTensor(layer.weight.detach(), layer.weight.detach()))
    torch.testing.assert_close(linear_act(x, layer, act).a, expected, rtol=1e-5, atol=1e-5)


@mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batchnorm_goes_back_over_whole_maps(narrow, dtype):
    """A gradient that is a slice of a concatenation's takes a CPU's BatchNorm ten times as long in bfloat16."""
    model = narrow(depths=(1, 1, 1, 1)).train()
    is_map = {}
    for name, norm in model.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.register_full_backward_hook(
                lambda _, grads_in, grads_out, name=name: is_map.update(
                    {name: grads_out[0].is_contiguous(memory_format=torch.channels_last)}
                )
            )
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        model(torch.rand(2, 3, 64, 64)).float().sum().backward()
    del is_map["stages.3.fusion.irmlp.bn2"]  # whose gradient the head's average gives, the same at every pixel
    assert len(is_map) > 20 and all(is_map.values())


@torch.no_grad()
def test_kept_biases_follow_what_they_are_made_of(narrow):
    """As if they were added up at every call: they are kept in fused networks, whose tables require no gradient."""
    model, x = narrow(img_size=64).fuse(), randn(1, 3, 64, 64)
    model(x)
    attns = [m for m in model.modules() if isinstance(m, ShiftedWindowAttention)]
    assert all(attn.relative_position_bias_table in attention._kept_biases for attn in attns)
    shifted = next(attn for attn in attns if attn.shift_size)
    table = shifted.relative_position_bias_table
    for change in (
        lambda: table.mul_(-50),
        lambda: setattr(table, "data", randn(*table.shape)),
        lambda: shifted.attn_mask.zero_(),
        lambda: setattr(shifted, "attn_mask", make_window_mask(3, 3, 7, 2, table.device, table.dtype)),
        lambda: model.load_state_dict(narrow(img_size=64).fuse().state_dict()),
    ):
        before = model(x)
        change()
        assert torch.equal(model(x), copy.deepcopy(model)(x)) and not torch.equal(model(x), before)
    with torch.inference_mode():
        table.mul_(2)
        model(x)  # what is kept serves gradients of the image too
    with torch.enable_grad():
        model(x.requires_grad_()).square().sum().backward()
    assert x.grad.isfinite().all()


@mark.parametrize("size", [(28, 21), (10, 16)])  # windows that fit, and with padding
def test_gathered_windows_are_shifted_windows(size):
    attn = ShiftedWindowAttention(8, 2, shift_size=3, map_size=size).eval()
    x = randn(2, size[0] * size[1], 8)
    with torch.no_grad():
        gathered = attn(x, *size)
        attn.window_order = attn.token_order = None
        torch.testing.assert_close(gathered, attn(x, *size), rtol=0, atol=0)
