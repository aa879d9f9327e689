"""`hifuse_timm.explain` and `python -m hifuse_timm explain` show where a network looks."""

import argparse
import json
import sys
from types import SimpleNamespace

import blobs
import numpy as np
import pytest
import timm
import torch
from dicoms import write_dicom
from matplotlib import colormaps
from PIL import Image
from torch import nn

from hifuse_timm.__main__ import main
from hifuse_timm.explain import draw_heat_map, explain, find_layer, grad_cam, heat_map

SIZE, BLOB, STRIDE = 96, 12, 16  # pixels of an image, of its blob, and for a token of the last map
# A HiFuse of three stages: its last map has 6x6 tokens of such an image.
SMALL = dict(dims=(16, 32, 64), depths=(1, 1, 1), num_heads=(1, 2, 4), num_classes=len(blobs.CLASSES))
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def to_batch(samples) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1 for image, _, _ in samples])


@pytest.fixture(scope="module")
def samples():
    return blobs.make(30, SIZE, BLOB, seed=1)


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(2)
    return timm.create_model("hifuse_tiny", **SMALL).eval()


@pytest.fixture(scope="module")
def trained(samples):
    """A network that has learnt the colour of the blob; tests must leave it as they find it."""
    torch.manual_seed(2)
    model = timm.create_model("hifuse_tiny", **SMALL)
    train = blobs.make(384, SIZE, BLOB)
    x, y = to_batch(train), torch.tensor([label for _, label, _ in train])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(5):
        for batch in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        predicted = model(to_batch(samples)).argmax(dim=1).tolist()
    assert np.mean([p == label for p, (_, label, _) in zip(predicted, samples, strict=True)]) > 0.9
    return model


@pytest.fixture(scope="module")
def checkpoint(trained, tmp_path_factory):
    """The trained network as timm's train.py saves one."""
    path = tmp_path_factory.mktemp("checkpoint") / "model_best.pth.tar"
    kwargs = {k: v for k, v in SMALL.items() if k != "num_classes"}
    args = dict(
        model="hifuse_tiny",
        num_classes=3,
        model_kwargs=kwargs,
        img_size=SIZE,
        mean=[0.5],
        std=[0.5],
        crop_pct=1.0,
        input_size=None,
        in_chans=None,
    )
    torch.save({"state_dict": trained.state_dict(), "args": argparse.Namespace(**args)}, path)
    return path


@pytest.fixture
def run(checkpoint, tmp_path, capsys):
    """Runs the command on the trained network; gives its exit code, what it wrote to stderr and the picture's path."""

    def run(*args, out=tmp_path / "out.png", model="hifuse_tiny", checkpoint=checkpoint):
        command = ["explain", *args, "--model", model, "--checkpoint", checkpoint, "--device", "cpu", "--out", out]
        code = main(list(map(str, command)))
        return code, capsys.readouterr().err, out

    return run


def share_on_blob(maps: np.ndarray, samples) -> np.ndarray:
    """The share of each map's mass within a token of the blob, as a multiple of that place's share of the area."""
    ratios = []
    for heat, (_, _, box) in zip(maps, samples, strict=True):
        left, top, right, bottom = np.clip(np.add(box, [-STRIDE, -STRIDE, STRIDE, STRIDE]), 0, SIZE)
        mass = heat[top:bottom, left:right].sum() / max(heat.sum(), 1e-9)
        ratios.append(mass / ((bottom - top) * (right - left) / SIZE**2))
    return np.array(ratios)


# ---------------------------------------------------------------------------------------------------- what is shown


def test_heat_falls_on_the_blob_that_decides_the_class(trained, samples):
    maps, _ = grad_cam(trained, to_batch(samples))
    ratios = share_on_blob(maps, samples)
    assert ratios.mean() > 2.5 and np.median(ratios) > 2.5
    # the same on images whose blob is elsewhere is chance
    assert share_on_blob(maps, samples[1:] + samples[:1]).mean() < 1.5


def test_heat_is_that_of_the_class_asked_for(trained):
    # red on the left, blue on the right
    size = 2 * SIZE
    pixels = np.full((SIZE, size, 3), 120, np.uint8)
    pixels[42:54, 42:54], pixels[42:54, SIZE + 42 : SIZE + 54] = blobs.CLASSES["red"], blobs.CLASSES["blue"]
    x = to_batch([(pixels, None, None)])
    red, _ = grad_cam(trained, x, list(blobs.CLASSES).index("red"))
    blue, _ = grad_cam(trained, x, list(blobs.CLASSES).index("blue"))
    assert red[0, :, :SIZE].sum() > 2 * red[0, :, SIZE:].sum()
    assert blue[0, :, SIZE:].sum() > 2 * blue[0, :, :SIZE].sum()


def expected_map(model, x, class_index, layer, to_map=lambda output: output) -> np.ndarray:
    """Grad-CAM by its definition, from a layer's output that to_map turns into (B, C, H, W)."""
    kept = []

    def keep(module, args, output):
        output.retain_grad()
        kept.append(output)

    handle = model.get_submodule(layer).register_forward_hook(keep)
    model(x)[:, class_index].sum().backward()
    handle.remove()
    model.zero_grad()
    features, gradients = to_map(kept[0].detach()), to_map(kept[0].grad)
    maps = (gradients.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1, keepdim=True).relu()
    maps = maps - maps.amin(dim=(2, 3), keepdim=True)
    maps = nn.functional.interpolate(maps, size=x.shape[2:], mode="bilinear")[:, 0]
    maps = maps - maps.amin(dim=(1, 2), keepdim=True)
    return (maps / maps.amax(dim=(1, 2), keepdim=True)).numpy()


def swap_channels(output):
    return output.permute(0, 3, 1, 2)


# Of 64 pixels, stage 1 has maps of 16 channels and 16x16 tokens, which look alike in either layout.
@pytest.mark.parametrize(
    ("layer", "name", "to_map"),
    [
        ("stage1.local", "stages.0.local_blocks", lambda output: output),
        ("stage1.global", "stages.0.global_blocks", lambda output: output),
        ("stage1.fused", "stages.0.fusion", lambda output: output),
        ("stage2.global", "stages.1.global_blocks", lambda output: output),
        ("stages.1.local_blocks.0.conv_dw", "stages.1.local_blocks.0.conv_dw", lambda output: output),
        (None, "stages.2.fusion", lambda output: output),
    ],
)
@pytest.mark.parametrize("fused", [False, True])
def test_every_branch_of_every_stage_gives_its_grad_cam(layer, name, to_map, fused):
    torch.manual_seed(2)
    model = timm.create_model("hifuse_tiny", **SMALL).eval()
    for parameter in model.parameters():  # away from the initialisation, at which many maps are empty
        parameter.data += 0.02 * torch.randn_like(parameter)
    if fused:
        model.fuse()
    x = torch.randn(2, 3, 64, 64)
    found = False
    for class_index in range(3):
        maps, _ = grad_cam(model, x, class_index, layer)
        expected = expected_map(model, x, class_index, name, to_map)
        for heat, one in zip(maps, expected, strict=True):
            if np.isfinite(one).all():
                found = True
                assert np.abs(heat - one).max() < 1e-4
            else:
                assert not heat.any()
    assert found


OTHERS = {
    "swin": ("swin_tiny_patch4_window7_224", dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))),
    "vit": ("vit_tiny_patch16_224", dict(embed_dim=32, depth=2, num_heads=2)),
    "vit_registers": ("vit_tiny_patch16_224", dict(embed_dim=32, depth=2, num_heads=2, reg_tokens=4)),
    "vit_average": ("vit_tiny_patch16_224", dict(embed_dim=32, depth=2, num_heads=2, global_pool="avg", reg_tokens=1)),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", dict(embed_dim=32, depth=2, num_heads=2)),
    "convnext": ("convnext_tiny", dict(dims=(16, 32, 64, 128), depths=(1, 1, 1, 1))),
    "resnet": ("resnet10t", {}),
    "densenet": ("densenet121", dict(block_config=(1, 1, 1, 1))),
}


@pytest.mark.parametrize(
    ("kind", "layer", "to_map"),
    [
        ("swin", "norm", swap_channels),
        ("vit", "blocks.1.norm1", lambda output: output[:, 1:].transpose(1, 2).unflatten(2, (14, 14))),
        ("vit_registers", "blocks.1.norm1", lambda output: output[:, 5:].transpose(1, 2).unflatten(2, (14, 14))),
        ("vit_average", "blocks.1", lambda output: output[:, 2:].transpose(1, 2).unflatten(2, (14, 14))),
        ("deit_distilled", "blocks.1.norm1", lambda output: output[:, 2:].transpose(1, 2).unflatten(2, (14, 14))),
        ("convnext", "stages.3", lambda output: output),
        ("resnet", "layer4.0", lambda output: output),
        ("densenet", "features.norm5", lambda output: output),
    ],
)
def test_last_layer_before_the_head_is_found_and_laid_over_the_image(kind, layer, to_map):
    name, kwargs = OTHERS[kind]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **kwargs).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.startswith(("head", "fc", "classifier")):
            parameter.data.normal_()
    x = torch.randn(1, 3, 224, 224)
    assert find_layer(model, x) == layer
    maps = [grad_cam(model, x, class_index)[0] for class_index in range(3)]
    found = [heat for heat in maps if heat.any()]
    assert found and all(heat.shape == (1, 224, 224) for heat in maps)
    expected = expected_map(model, x, [heat.any() for heat in maps].index(True), layer, to_map)
    assert np.abs(found[0] - expected).max() < 1e-4


def test_image_that_is_no_multiple_of_the_stride_keeps_its_heat_in_place(trained, samples):
    x = to_batch(samples[:8])[..., :90, :85]
    padded = nn.functional.pad(x, (0, 11, 0, 6))
    maps, _ = grad_cam(trained, x, 1)
    expected = grad_cam(trained, padded, 1)[0][:, :90, :85]
    assert maps.shape == (8, 90, 85)
    for heat, other in zip(maps, expected, strict=True):
        assert np.abs(heat - other / max(other.max(), 1e-7)).max() < 1e-4


def test_gradient_checkpointing_changes_no_map(trained, samples):
    model = timm.create_model("hifuse_tiny", **SMALL)
    model.load_state_dict(trained.state_dict())
    model.set_grad_checkpointing()
    x = to_batch(samples[:2])
    for layer in (None, "stage1.global"):
        assert np.abs(grad_cam(model, x, layer=layer)[0] - grad_cam(trained, x, layer=layer)[0]).max() < 1e-4
    assert all(stage.grad_checkpointing for stage in model.stages)


@pytest.mark.parametrize("tied", [True, False])
def test_network_that_sees_nothing_has_an_empty_map(tied):
    model = timm.create_model("hifuse_tiny", **SMALL).eval()
    nn.init.zeros_(model.head.fc.weight)
    if not tied:  # not even the graph leads from the classes to the image
        model.forward_head = lambda x: torch.zeros(len(x), 3)
    maps, probabilities = grad_cam(model, torch.randn(2, 3, SIZE, SIZE))
    assert maps.shape == (2, SIZE, SIZE) and not maps.any()
    assert probabilities == pytest.approx(1 / 3)


def describe_state(model) -> list:
    return [
        [(module.training, len(module._forward_hooks), len(module._backward_hooks)) for module in model.modules()],
        [(parameter.requires_grad, id(parameter.grad)) for parameter in model.parameters()],
        {key: value.clone() for key, value in model.state_dict().items()},
    ]


@pytest.mark.parametrize("fault", [None, "class", "layer", "image"])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_network_is_left_as_it_was(fault, context, samples):
    model = timm.create_model("hifuse_tiny", **SMALL, drop_rate=0.5).train()
    model.stages[0].eval()
    model.local_stem.requires_grad_(False)
    for parameter in model.stages[1].parameters():
        parameter.grad = torch.ones_like(parameter)
    before = describe_state(model)
    x = to_batch(samples[:1])
    if fault == "image":
        x[0, 0, 0, 0] = torch.nan
    arguments = dict(layer={"class": (7, None), "layer": (0, "stages.0")}.get(fault, (0, None)))["layer"]
    with context():
        if fault is None:
            grad_cam(model, x, *arguments)
        else:
            with pytest.raises(ValueError) as error:  # kept, and with it what the call had
                grad_cam(model, x, *arguments)
            assert error.value.__traceback__
    after = describe_state(model)
    assert after[:2] == before[:2]
    assert all(torch.equal(value, after[2][key]) for key, value in before[2].items())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_device_and_dtype_gives_the_same_map(device, dtype, samples, trained, checkpoint):
    model = timm.create_model("hifuse_tiny", **SMALL)
    model.load_state_dict(trained.state_dict())
    x = to_batch(samples[:6])
    maps, probabilities = grad_cam(model.to(device, dtype), x, 0)
    expected, _ = grad_cam(trained, x, 0)
    assert maps.dtype == probabilities.dtype == np.float32
    assert np.abs(maps - expected).mean() < (0.05 if dtype == torch.bfloat16 else 1e-3)


# ---------------------------------------------------------------------------------------------------- over the image


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(250, 180), (180, 250), (90, 40)])
@pytest.mark.parametrize("input_size", [(3, 96, 96), (3, 96, 128)])
def test_heat_lies_where_the_network_saw_the_image(mode, size, input_size, monkeypatch):
    """A network that sees the column and row of each pixel gets them back where they are."""
    width, height = size
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0], ramp[..., 1], ramp[..., 2] = np.arange(width), np.arange(height)[:, None], 255
    transform = timm.data.create_transform(
        input_size=input_size, crop_mode=mode, crop_pct=0.8, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear"
    )
    for channel in range(2):
        monkeypatch.setattr(
            "hifuse_timm.explain.overlay.grad_cam", lambda model, x, *args, c=channel: (x[:, c].numpy(), None)
        )
        heat = heat_map(nn.Conv2d(3, 1, 1), Image.fromarray(ramp), transform=transform)
        assert heat.shape == (height, width)
        seen = heat[..., None] > 0
        rows, columns = np.flatnonzero(heat.any(axis=1)), np.flatnonzero(heat.any(axis=0))
        inside = np.s_[rows[0] + 4 : rows[-1] - 3, columns[0] + 4 : columns[-1] - 3]
        assert seen[inside].all()
        assert np.abs(heat[inside] * 255 - ramp[inside][..., channel]).max() < 1.6
    shown = len(rows) * len(columns) / (width * height)
    assert 0.2 < shown < 0.85


def test_what_the_crop_cuts_off_is_zero_and_the_rest_is_the_networks_map(trained, samples):
    transform = timm.data.create_transform(input_size=(3, SIZE, SIZE), crop_pct=0.8, mean=(0.5,) * 3, std=(0.5,) * 3)
    sample = samples[0][0]
    image = Image.new("RGB", (400, 300), (120, 120, 120))
    image.paste(sample.resize((240, 240), Image.Resampling.BILINEAR), (80, 30))  # what is cropped, 0.8 of the height
    heat = heat_map(trained, image, transform=transform)
    maps, _ = grad_cam(trained, transform(image)[None])
    expected = np.asarray(Image.fromarray(maps[0]).resize((240, 240), Image.Resampling.BILINEAR))
    assert heat.shape == (300, 400) and heat.dtype == np.float32 and heat.min() == 0 and heat.max() <= 1
    assert np.abs(heat[30:270, 80:320] - expected).max() < 1e-4
    heat[30:270, 80:320] = 0
    assert not heat.any()


def test_grey_network_takes_grey_images(samples):
    model = timm.create_model("hifuse_tiny", **SMALL, in_chans=1).eval()
    assert heat_map(model, samples[0][0]).shape == (SIZE, SIZE)
    model = timm.create_model("hifuse_tiny", **SMALL, in_chans=4).eval()
    with pytest.raises(ValueError, match="4 channels, pictures have 1 or 3"):
        heat_map(model, samples[0][0])


# ------------------------------------------------------------------------------------------------------------- images


STORED = np.array([[0, 1024], [1064, 2048]], np.uint16)


@pytest.fixture
def faulty(tmp_path):
    """Files of which no image can be made, by name, with what is said of each."""
    folder = tmp_path / "faulty"
    folder.mkdir()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    image.save(folder / "whole.png")
    (folder / "truncated.png").write_bytes((folder / "whole.png").read_bytes()[:2000])
    (folder / "whole.png").unlink()
    (folder / "notes.txt").write_text("no image")
    (folder / "empty.jpg").touch()
    report = write_dicom(folder / "report.dcm", STORED)
    dataset = __import__("pydicom").dcmread(report)
    del dataset.PixelData, dataset.Rows, dataset.Columns
    dataset.save_as(report)
    whole = write_dicom(folder / "truncated.dcm", np.tile(STORED, (50, 50)))
    whole.write_bytes(whole.read_bytes()[:3000])
    write_dicom(folder / "width.dcm", STORED, WindowCenter=1, WindowWidth=-5)
    Image.fromarray(np.full((9, 9), 3000, np.uint16)).save(folder / "16 bits.png")
    Image.new("L", (1, 20_000)).save(folder / "narrow.png")
    return {
        "truncated.png": "is damaged or of a kind that cannot be read",
        "notes.txt": "is no image that is read here",
        "empty.jpg": "is no image that is read here",
        "report.dcm": "without pixels",
        "truncated.dcm": "is damaged or of a kind that cannot be read",
        "width.dcm": "Window Width must be",
        "16 bits.png": "has grey values from 3000 to 3000",
        "narrow.png": "is too narrow: 1 x 20000 pixels",
    }


def test_file_that_is_no_image_is_named_and_skipped_and_the_rest_is_done(faulty, run, samples, tmp_path):
    folder = tmp_path / "images"
    (tmp_path / "faulty").rename(folder)
    (folder / ".hidden").touch()
    (folder / "deeper").mkdir()
    samples[0][0].save(folder / "deeper" / "image.png")
    code, err, out = run(folder, tmp_path / "missing.png")
    assert code == 0 and out.is_file()
    lines = [line for line in err.splitlines() if line.startswith("skipped: ")]
    assert len(lines) == len(faulty) + 1
    for name, reason in faulty.items():
        (line,) = (line for line in lines if line.startswith(f"skipped: {folder / name}"))
        assert reason in line
    assert f"skipped: {tmp_path / 'missing.png'}: No such file or directory" in lines

    out.unlink()
    (folder / "deeper" / "image.png").unlink()
    code, err, out = run(folder)
    assert code == 1 and "error: none of the files is an image" in err and not out.exists()


def test_every_kind_of_image_is_drawn(run, samples, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    image = samples[0][0]
    for mode in ("1", "L", "LA", "P", "RGBA"):
        image.convert(mode).save(folder / f"{mode}.png")
    image.convert("CMYK").save(folder / "CMYK.jpg")
    image.save(folder / "animated.gif", save_all=True, append_images=[samples[1][0]])
    image.resize((5000, 3000)).save(folder / "large.jpg")
    image.resize((900, 40)).save(folder / "wide.bmp")
    Image.fromarray((np.arange(9216, dtype=np.uint16) % 256).reshape(96, 96)).save(folder / "16 bits.png")
    write_dicom(
        folder / "slice.dcm", np.arange(9216, dtype=np.uint16).reshape(96, 96), WindowCenter=5000, WindowWidth=9
    )
    code, err, out = run(folder)
    assert code == 0 and "skipped" not in err
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.height > 11 * 150


# ------------------------------------------------------------------------------------------------------------- figures


@pytest.fixture
def image(samples, tmp_path):
    """A file with a blob whose colour the trained network knows."""
    path = tmp_path / "blob.png"
    samples[0][0].save(path)
    return path


@pytest.fixture
def texts(run, tmp_path):
    """Runs the command and gives what is written in the picture, line by line, from top to bottom."""
    import re

    import matplotlib

    def texts(*args):
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            code, err, out = run(*args, out=tmp_path / "out.svg")
        assert code == 0, err
        return re.findall(r"<text[^>]*>([^<]*)</text>", out.read_text())

    return texts


def test_picture_names_class_and_probability_of_each_network(texts, image, trained, checkpoint, tmp_path, samples):
    torch.manual_seed(0)
    name, kwargs = OTHERS["convnext"]
    other = timm.create_model(name, num_classes=3, **kwargs)
    args = argparse.Namespace(model=name, num_classes=3, model_kwargs=kwargs, img_size=SIZE)
    torch.save(
        {"state_dict": other.state_dict(), "state_dict_ema": other.state_dict(), "args": args}, tmp_path / "c.pth"
    )
    x = to_batch(samples[:1])
    probabilities = trained(x).softmax(dim=1)[0]
    label = int(probabilities.argmax())

    found = texts(image, "--compare", f"{name}={tmp_path / 'c.pth'}")
    assert {"blob.png", "hifuse_tiny", name, f"class {label} {probabilities[label]:.1%}"} <= set(found)
    config = timm.data.resolve_data_config(vars(args), model=other)
    x = timm.data.create_transform(**config)(samples[0][0])[None]
    probabilities = other.eval()(x).softmax(dim=1)[0]
    assert f"class {int(probabilities.argmax())} {probabilities.max():.1%}" in found

    (tmp_path / "dataset.json").write_text(json.dumps({"classes": list(blobs.CLASSES)}))
    found = texts(image, "--data-dir", tmp_path, "--class", "green")
    probabilities = trained(to_batch(samples[:1])).softmax(dim=1)[0]
    assert any(text.startswith(list(blobs.CLASSES)[label]) for text in found)
    assert label == 1 or f"map of green {probabilities[1]:.1%}" in found


def test_layers_are_columns_and_all_is_the_grid_of_stages_and_branches(texts, image):
    found = texts(image, "--layer", "stage1.local", "stages.2.fusion.fuse_proj")
    assert {"stage1.local", "stages.2.fusion.fuse_proj"} <= set(found)
    found = texts(image, "--layer", "all")
    assert {"local", "global", "fused"} <= set(found)
    assert [sum(text.startswith(f"stage {i}: class ") for text in found) for i in (1, 2, 3, 4)] == [3, 3, 3, 0]
    assert found.count("blob.png") == 1


def test_many_images_go_to_several_files(run, image, tmp_path, monkeypatch):
    monkeypatch.setattr("hifuse_timm.explain.figure._ROWS_PER_FIGURE", 2)
    code, _, out = run(*[image] * 5)
    assert code == 0
    assert sorted(p.name for p in tmp_path.glob("*out*")) == ["out-2.png", "out-3.png", "out.png"]
    with Image.open(out) as first, Image.open(tmp_path / "out-3.png") as last:
        assert first.height > last.height


def test_published_directory_is_explained_with_its_labels(texts, image, tmp_path, narrow):
    torch.manual_seed(0)
    model = narrow(num_classes=7)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    config = dict(architecture="hifuse_tiny", num_classes=7, label_names=[f"L{i}" for i in range(7)])
    config["model_args"] = dict(dims=(16, 32, 64, 128), num_heads=(1, 2, 4, 8))
    config["pretrained_cfg"] = dict(input_size=[3, 64, 64], num_classes=7)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    timm.models._hub.safetensors.torch.save_file(model.state_dict(), tmp_path / "model" / "model.safetensors")
    found = texts(image, "--compare", f"local-dir:{tmp_path / 'model'}")
    assert any(text.startswith("L") and text.endswith("%") for text in found)


def test_picture_is_written_whole_or_not_at_all(run, image, tmp_path, monkeypatch):
    def fail(figure, file, **kwargs):
        file.write_bytes(b"half")
        raise OSError("disk full")

    code, _, out = run(image)
    before = out.read_bytes()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    code, err, _ = run(image)
    assert code == 1 and err.endswith("error: disk full\n")
    assert out.read_bytes() == before
    assert [p.name for p in tmp_path.glob("*out*")] == ["out.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--layer", "stage9.local"],
            "layer 'stage9.local' is not one of HiFuse: expected one of stage1.local, stage1",
        ),
        (["--layer", "stages.0"], "layer 'stages.0' of HiFuse gives tuple, which cannot be laid over images"),
        (["--layer", "head.fc"], "layer 'head.fc' of HiFuse gives a tensor (1, 3), which cannot be laid over images"),
        (["--layer", "stages"], "layer 'stages' of HiFuse does not run"),
        (["--layer", "all", "stage1.local"], "layer 'all' is a grid"),
        (["--class", "3"], "class 3 is not one of hifuse_tiny: expected 0 to 2"),
        (["--class", "red"], "class red is not one of hifuse_tiny: expected 0 to 2"),
        (
            ["--compare", "hifuse_tini=x.pth"],
            "model 'hifuse_tini' is not known to timm: near it are hifuse_tiny",
        ),
        (["--compare", "hifuse_tiny=x.pth"], "checkpoint x.pth does not exist"),
        (["--data-dir", "nowhere"], "data_dir nowhere does not exist or is not a folder"),
        (["--data-dir", "."], "data_dir . names no classes: expected dataset.json, as prepare writes it, or train"),
        (["--use-ema"], "it holds no averaged (EMA) weights"),
        (["--out", "out.docx"], "out out.docx must end in a format of pictures: one of ."),
        (["--out", "nowhere/out.png"], "nowhere, to write out.png in, does not exist"),
    ],
)
def test_fault_is_one_clear_error_before_anything_is_written(run, image, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, err, _ = run(image, *arguments, out="out.png") if "--out" not in arguments else run(image, out=arguments[1])
    assert code == 1
    assert err.splitlines()[-1].startswith("error: ") and message in err.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_faulty_labels_and_checkpoints_are_refused(run, image, tmp_path, checkpoint):
    for content, message in (
        ('{"classes": ["a", "b"]}', f"has 3 classes, {tmp_path / 'dataset.json'} has 2: a, b"),
        ('{"classes": 3}', "is not as prepare writes it (its classes are 3, expected a list of names)"),
        ("[]", "is not as prepare writes it (it holds a list, expected an object)"),
        ("{", "is not as prepare writes it (Expecting property name"),
    ):
        (tmp_path / "dataset.json").write_text(content)
        code, err, _ = run(image, "--data-dir", tmp_path)
        assert code == 1 and message in err
    code, err, _ = run(image, model="convnext_atto")
    assert code == 1 and "trained as hifuse_tiny, has model_kwargs that do not describe a network convnext_atto" in err
    torch.save(timm.create_model("resnet10t", num_classes=3).state_dict(), tmp_path / "resnet.pth")
    code, err, _ = run(image, model="convnext_atto", checkpoint=tmp_path / "resnet.pth")
    assert code == 1 and "resnet.pth does not fit convnext_atto: Missing key" in err
    code, err, _ = run(image, model="resnet10t", checkpoint=tmp_path / "resnet.pth")
    assert code == 0, err  # the classes are read off the weights
    code, err, _ = run(image, "--layer", "all", model="resnet10t", checkpoint=tmp_path / "resnet.pth")
    assert code == 1 and "layer 'all' is for HiFuse, resnet10t has no branches" in err


def test_folder_without_files_is_an_error(run, tmp_path):
    (tmp_path / "folder").mkdir()
    code, err, _ = run(tmp_path / "folder")
    assert code == 1 and f"error: no files in {tmp_path / 'folder'}" in err


@pytest.mark.parametrize("module", ["pytorch_grad_cam", "matplotlib.figure"])
def test_missing_library_is_named_with_the_extra_to_install(run, image, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    code, err, out = run(image)
    assert code == 1 and f"error: {module} cannot be imported" in err
    assert "pip install 'hifuse-timm[explain] @ git+https://" in err and not out.exists()


def test_function_takes_what_the_command_takes(image, checkpoint, tmp_path):
    out = tmp_path / "out.pdf"
    assert explain([image], "hifuse_tiny", checkpoint, out=out, layers=["stage2.fused"], device="cpu") == [out]
    assert out.read_bytes().startswith(b"%PDF")


def test_picture_has_the_maps_colours_over_grey_and_is_dark_where_the_crop_cuts_off(trained, samples):
    transform = timm.data.create_transform(input_size=(3, SIZE, SIZE), crop_pct=0.8, mean=(0.5,) * 3, std=(0.5,) * 3)
    image = samples[0][0].resize((150, 100))
    network = SimpleNamespace(model=trained, transform=transform, image_mode="RGB")
    picture = np.asarray(draw_heat_map(network, image, 1)) / 255
    heat = heat_map(trained, image, 1, transform=transform)
    grey = np.asarray(image).mean(axis=2, keepdims=True) / 255
    assert picture.shape == (100, 150, 3) and heat.any()
    seen = np.zeros((100, 150), bool)
    seen[10:90, 35:115] = True
    assert np.abs(picture - 0.3 * grey)[~seen].max() < 0.01
    assert np.abs(picture - (grey + colormaps["jet"](heat)[..., :3]) / 2)[seen].max() < 0.01
    assert draw_heat_map(network, image, side=30).size == (30, 20)
