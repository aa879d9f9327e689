"""Other people's software takes HiFuse as it takes timm's own models, as docs/other-software.md says, or does not."""

import json

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import transformers
from captum.attr import LRP, DeepLift, IntegratedGradients, LayerAttribution, LayerGradCam
from conftest import NARROW
from PIL import Image
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from hifuse_timm.checkpoint import save_weights
from hifuse_timm.datasets import DATASETS

LABELS = list(DATASETS["isic2018"].labels)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def disks(count: int, height: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy grey images of one bright disk each, (count, 1, height, width), and the disks as masks."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at_y, at_x, radius = torch.rand(3, count, 1, 1, 1, generator=generator)
    mask = ((y - at_y * height) ** 2 + (x - at_x * width) ** 2 < (6 + 10 * radius) ** 2).float()
    return mask - 0.5 + 0.3 * torch.randn(mask.shape, generator=generator), mask


@pytest.fixture(scope="module")
def publish_narrow(tmp_path_factory):
    """Writes a narrow hifuse_tiny as `publish --dry-run` writes a full one; gives the directory and the network."""

    def write(in_chans: int = 3):
        torch.manual_seed(0)
        cfg = dict(input_size=(in_chans, 224, 224), mean=(0.5,) * in_chans, std=(0.5,) * in_chans)
        model = timm.create_model("hifuse_tiny", in_chans=in_chans, pretrained_cfg_overlay=cfg, **NARROW).eval()
        directory = tmp_path_factory.mktemp("published")
        save_weights(model.state_dict(), directory / "model.safetensors")
        config = dict(
            architecture="hifuse_tiny",
            num_classes=7,
            label_names=LABELS,
            model_args=dict(NARROW, in_chans=in_chans),
            pretrained_cfg=model.pretrained_cfg,
        )
        (directory / "config.json").write_text(json.dumps(config))
        return directory, model

    return write


@pytest.fixture(scope="module")
def published(publish_narrow):
    return publish_narrow()


# the maps that all of these take


@torch.no_grad()
def test_maps_of_any_size_are_those_of_the_image_without_its_padding(narrow):
    model = narrow(features_only=True)
    x = randn(2, 3, 100, 70)
    maps = model(x)
    padded = model(torch.nn.functional.pad(x, (0, 26, 0, 28)))
    assert [tuple(m.shape[-2:]) for m in maps] == [(25, 18), (13, 9), (7, 5), (4, 3)]
    for found, whole in zip(maps, padded, strict=True):
        torch.testing.assert_close(found, whole[:, :, : found.shape[2], : found.shape[3]], rtol=0, atol=0)


@pytest.mark.parametrize("size", [(64, 64), (100, 70)])
@torch.no_grad()
def test_features_script_and_compile(narrow, size):
    torch._dynamo.reset()
    model = narrow(features_only=True, out_indices=(1, 3))
    x = randn(1, 3, *size)
    for other in (torch.jit.script(model), torch.compile(model, fullgraph=True, backend="aot_eager")):
        for found, expected in zip(other(x), model(x), strict=True):
            torch.testing.assert_close(found, expected)


# segmentation_models_pytorch


@pytest.mark.parametrize("size", [(96, 64), (100, 70)])
def test_unet_learns_to_segment(size):
    torch.manual_seed(0)
    widths = dict(NARROW, decoder_channels=(64, 32, 16, 16, 8))
    model = smp.Unet("tu-hifuse_tiny", encoder_weights=None, in_channels=1, classes=1, **widths)
    assert model.encoder.out_channels == [1, 0, 16, 32, 64, 128] and model.encoder.output_stride == 32
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    cross_entropy, dice = torch.nn.BCEWithLogitsLoss(), smp.losses.DiceLoss("binary")
    losses = []
    for step in range(40):
        images, masks = disks(8, *size, seed=step)
        logits = model(images)
        loss = cross_entropy(logits, masks) + dice(logits, masks)
        optimizer.zero_grad()
        loss.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
        optimizer.step()
        losses.append(loss.item())
    images, masks = disks(32, *size, seed=100)
    with torch.no_grad():
        found = model.eval()(images) > 0
    assert losses[-1] < 0.3 * losses[0]
    intersection, union = found & (masks > 0), found | (masks > 0)
    assert intersection.sum() / union.sum() > 0.8  # 0.4 at 100x70 with maps that cover the padding too


@pytest.mark.parametrize("decoder", ["UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "UPerNet", "Segformer"])
@torch.no_grad()
def test_decoders_take_sides_that_are_multiples_only(decoder):
    model = getattr(smp, decoder)("tu-hifuse_tiny", encoder_weights=None, classes=2, **NARROW).eval()
    assert model(randn(1, 3, 96, 64)).shape == (1, 2, 96, 64)
    with pytest.raises(RuntimeError, match="divisible"):
        model(randn(1, 3, 100, 70))


@pytest.mark.parametrize("decoder", ["PAN", "DeepLabV3", "DeepLabV3Plus"])
def test_decoders_that_dilate_the_encoder_do_not_work(decoder):
    with pytest.raises(TypeError, match="output_stride"):
        getattr(smp, decoder)("tu-hifuse_tiny", encoder_weights=None, **NARROW)


@torch.no_grad()
def test_encoder_starts_from_a_published_directory_or_a_checkpoint(published, tmp_path):
    directory, source = published
    overlay = dict(file=str(directory / "model.safetensors"))
    expected = source.forward_intermediates(randn(1, 3, 64, 64), intermediates_only=True)
    for name, options in ((f"tu-local-dir:{directory}", {}), ("tu-hifuse_tiny", dict(pretrained_cfg_overlay=overlay))):
        model = smp.Unet(name, encoder_weights=True, **options, **(NARROW if options else {})).eval()
        for found, fused in zip(model.encoder(randn(1, 3, 64, 64))[2:], expected, strict=True):
            torch.testing.assert_close(found, fused)
    grey = smp.Unet(f"tu-local-dir:{directory}", encoder_weights=True, in_channels=1)
    torch.testing.assert_close(
        grey.encoder.model.model.local_stem[0].weight, source.local_stem[0].weight.sum(1, keepdim=True)
    )
    assert smp.encoders.get_preprocessing_params("tu-hifuse_tiny")["mean"] == [0.5, 0.5, 0.5]

    model.save_pretrained(tmp_path / "unet")
    torch.testing.assert_close(
        smp.from_pretrained(tmp_path / "unet").eval()(randn(1, 3, 64, 64)), model(randn(1, 3, 64, 64))
    )


# transformers


@pytest.mark.parametrize("mode", ["RGB", "L"])
@torch.no_grad()
def test_pipeline_answers_with_the_labels_and_probabilities_of_timm(published, mode):
    directory, source = published
    pixels = np.random.default_rng(0).integers(0, 255, (300, 260, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    classify = transformers.pipeline("image-classification", model=str(directory))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(source))
    probabilities = source(transform(image.convert("RGB"))[None]).softmax(dim=1)[0]
    answer = {entry["label"]: entry["score"] for entry in classify(image, top_k=7)}
    assert answer == pytest.approx(dict(zip(LABELS, probabilities.tolist(), strict=True)), abs=1e-5)


@torch.no_grad()
def test_network_of_grey_images_takes_them_from_its_processor(publish_narrow):
    directory, source = publish_narrow(in_chans=1)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 260), dtype=np.uint8))
    processor = transformers.AutoImageProcessor.from_pretrained(directory)
    model = transformers.AutoModelForImageClassification.from_pretrained(directory).eval()
    inputs = processor(image)
    assert inputs["pixel_values"].shape == (1, 1, 224, 224)
    torch.testing.assert_close(model(**inputs).logits, source(inputs["pixel_values"]))
    with pytest.raises(ValueError, match="input has 3 channels, expected 1"):  # a pipeline makes every image RGB
        transformers.pipeline("image-classification", model=str(directory))(image)


def test_fine_tuned_for_other_classes_and_saved_it_loads_in_transformers_and_timm(published, tmp_path):
    directory, _ = published
    labels = ["benign", "malignant"]
    auto = transformers.AutoModelForImageClassification
    model = auto.from_pretrained(
        directory,
        num_labels=2,
        id2label=dict(enumerate(labels)),
        label_names=labels,
        ignore_mismatched_sizes=True,
    )
    x = randn(4, 3, 64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = model.train()(x, labels=torch.tensor([0, 1, 0, 1])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    model.eval().save_pretrained(tmp_path / "tuned")
    again = auto.from_pretrained(tmp_path / "tuned").eval()
    ours = timm.create_model(f"local-dir:{tmp_path / 'tuned'}", pretrained=True).eval()
    assert again.config.id2label == dict(enumerate(labels)) and ours.num_classes == 2
    with torch.no_grad():
        expected = model(x).logits
        torch.testing.assert_close(again(x).logits, expected)
        torch.testing.assert_close(ours(x), expected)


def test_timm_backbone_carries_a_segmentation_network():
    config = transformers.TimmBackboneConfig(backbone="hifuse_tiny", out_indices=[0, 1, 2, 3])
    backbone = transformers.TimmBackbone(config, **NARROW).eval()
    maps = backbone(randn(1, 3, 100, 70)).feature_maps
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 25, 18), (32, 13, 9), (64, 7, 5), (128, 4, 3)]
    assert backbone.channels == [16, 32, 64, 128]
    assert len(backbone(randn(1, 3, 64, 64), output_hidden_states=True).hidden_states) == 4
    config = transformers.UperNetConfig(
        backbone_config=config, hidden_size=16, num_labels=2, use_auxiliary_head=False, pool_scales=[1, 2]
    )
    model = transformers.UperNetForSemanticSegmentation(config)
    output = model(randn(2, 3, 100, 70), labels=torch.zeros(2, 100, 70, dtype=torch.long))
    assert output.logits.shape == (2, 2, 100, 70)
    output.loss.backward()
    assert model.backbone._backbone.model.local_stem[0].weight.grad.any()


# torchvision


@torch.no_grad()
def test_feature_extractor_takes_every_branch_of_every_stage(narrow):
    model = narrow()
    train_nodes, eval_nodes = get_graph_node_names(model)
    assert train_nodes == eval_nodes
    extract = create_feature_extractor(
        model,
        {
            "stages.1.fusion": "fused",
            "stages.3.local_blocks": "local",
            "stages.3.global_blocks": "global",
            "head.fc": "y",
        },
    )
    for size in ((64, 64), (70, 96)):
        x = randn(2, 3, *size)
        found = extract(x)
        rows, cols = -(-size[0] // 32), -(-size[1] // 32)
        assert found["local"].shape == (2, 128, rows, cols)
        assert found["global"].shape == (2, 128, rows, cols)
        assert found["fused"].shape == (2, 32, 4 * rows, 4 * cols)  # of the padded image
        fused = model.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
        torch.testing.assert_close(found["fused"][:, :, : fused.shape[2], : fused.shape[3]], fused)
        torch.testing.assert_close(found["y"], model(x))


# captum


def test_integrated_gradients_add_up_from_a_black_image(narrow):
    model = narrow()
    x = randn(2, 3, 64, 64).clamp(-1, 1)
    black = torch.full_like(x, -1)
    attributions = IntegratedGradients(model).attribute(x, black, target=4, n_steps=50, internal_batch_size=20)
    with torch.no_grad():
        difference = (model(x) - model(black))[:, 4]
    torch.testing.assert_close(attributions.sum(dim=(1, 2, 3)).float(), difference, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("layer", ["fusion", "local_blocks", "global_blocks"])
def test_grad_cam_maps_the_last_stage(narrow, layer):
    model = narrow()
    x = randn(2, 3, 96, 64)
    cam = LayerGradCam(model, model.get_submodule(f"stages.3.{layer}")).attribute(x, target=4)
    assert cam.shape == (2, 1, 3, 2) and cam.any()
    assert LayerAttribution.interpolate(cam, (96, 64)).shape == (2, 1, 96, 64)


@pytest.mark.parametrize("method, error", [(DeepLift, RuntimeError), (LRP, TypeError)])
def test_methods_with_a_rule_for_each_layer_do_not_work(narrow, method, error):
    with pytest.raises(error):
        method(narrow()).attribute(randn(1, 3, 64, 64), target=4)
