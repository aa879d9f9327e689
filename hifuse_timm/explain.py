"""Where a network looks: Grad-CAM heat maps of any timm model, and figures like the paper's Figure 4 (Section 4.5).

Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391) weighs the channels of a layer's map by the mean
gradient of a class's score and keeps where their sum is positive. It is computed by the library grad-cam. Everything
here needs `pip install 'hifuse-timm[explain]'`.
"""

import difflib
import importlib
import json
import math
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image, UnidentifiedImageError
from timm.data import create_transform, resolve_data_config
from timm.data.transforms import CenterCropOrPad, TrimBorder
from torch import nn
from torchvision.transforms import CenterCrop

from .checkpoint import check_architecture, convert_state_dict, read_checkpoint, read_training_args
from .hifuse import HiFuse, pad_image
from .plots import save_figure

__all__ = ["explain", "find_layer", "grad_cam", "heat_map", "load_image"]

# The branches of a HiFuse in the order of Figure 1, by the attribute of a stage whose output is the branch's map.
_BRANCHES = {"local": "local_blocks", "global": "global_blocks", "fused": "fusion"}

_THUMBNAIL_SIZE = 448  # pixels a side of a picture in a figure, at most
_ROWS_PER_FIGURE = 20  # keeps a figure of many images within memory, and within what a viewer opens


def _require(name: str):
    """Import a module of the extra."""
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise RuntimeError(f"{name} cannot be imported ({e}): pip install 'hifuse-timm[explain]'") from e


# ----------------------------------------------------------------------------------------------------------- Grad-CAM


def find_layer(model: nn.Module, x: torch.Tensor) -> str:
    """Find the last layer before the head: the last one whose map the class scores depend on at every place.

    The network is run once. Among the modules whose output can be laid over the image, the last to finish is taken of
    those that give the network's features (their number of channels is `model.num_features`) and have a gradient
    outside of the class token: in HiFuse the last stage's fusion, in Swin the last norm, in a ConvNeXt the last stage,
    and in a ViT whose class token is classified the norm before the last attention, behind which no other token counts.

    Args:
        model: Classification network.
        x: Images as the network takes them, (B, in_chans, H, W).

    Returns:
        Name of the layer in `model.named_modules()`.

    Raises:
        ValueError: If no layer gives such a map.
    """
    found = []  # of the layers in the order in which they finish: name, number of channels, whether there is a gradient
    runs = Counter()

    def watch(name, module, args, output):
        runs[name] += 1
        if isinstance(module, (nn.Identity, nn.Dropout)):
            return
        to_map = partial(_to_map, name=name, model=model, batch_size=len(x), size=x.shape[-2:])
        try:
            map_ = to_map(output)
        except ValueError:
            return
        if map_.shape[2] * map_.shape[3] == 1 and min(x.shape[-2:]) > 1:
            return
        entry = [name, map_.shape[1], False]
        found.append(entry)
        if output.requires_grad:
            output.register_hook(lambda grad: entry.__setitem__(2, bool(to_map(grad).count_nonzero())))

    x = _to_input(model, x)
    with _undisturbed(model):
        handles = [module.register_forward_hook(partial(watch, name)) for name, module in model.named_modules() if name]
        try:
            (model(x).amax(dim=-1).sum() + 0 * x.sum()).backward()
        finally:
            for handle in handles:
                handle.remove()

    num_features = getattr(model, "num_features", None)
    found = [entry for entry in found if runs[entry[0]] == 1]  # of several maps grad-cam would take the first
    ranked = sorted(found, key=lambda entry: (entry[2], entry[1] == num_features))  # stable, so the last stays last
    if not ranked:
        raise ValueError(
            f"no layer of {type(model).__name__} gives a map that can be laid over the image: name one with layer"
        )
    name, module = ranked[-1][0], model.get_submodule(ranked[-1][0])
    while type(module) is nn.Sequential and len(module) and not isinstance(module[-1], nn.Identity):
        child, module = list(module.named_children())[-1]
        name = f"{name}.{child}"
    return name


def grad_cam(
    model: nn.Module, x: torch.Tensor, class_index: int | None = None, layer: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Grad-CAM of a batch, on the device of the network, which is left as it was.

    Args:
        model: Classification network of timm, of any layout of maps: (B, C, H, W), (B, H, W, C), or tokens (B, N, C)
            with or without a class token and the like before them. Dropout and the like are off during the call,
            whatever mode the network is in.
        x: Images as the network takes them, (B, in_chans, H, W).
        class_index: Class to explain, by default the predicted class of each image.
        layer: Layer whose map is taken, as in `model.named_modules()`, or for HiFuse a stage and branch as
            'stage2.local', 'stage3.global' or 'stage4.fused'; by default the last layer before the head (`find_layer`).

    Returns:
        Heat maps, (B, H, W), each from 0 to 1 at its highest place, or 0 everywhere where nothing speaks for the class
        or the map is the same everywhere; and probabilities, (B, num_classes), by softmax.

    Raises:
        ValueError: If the network has no such class or layer, the layer gives nothing that can be laid over the image,
            or the outputs are not finite.
        RuntimeError: If grad-cam is not installed.
    """
    library = _require("pytorch_grad_cam")

    class Cam(library.GradCAM):
        def get_cam_weights(self, input_tensor, target_layer, target_category, activations, grads):
            if activations is None:
                raise ValueError(f"layer {layer!r} of {type(model).__name__} does not run")
            if grads is None:  # the score does not depend on the layer, which the library does not expect
                return np.zeros(activations.shape[:2], np.float32)
            return super().get_cam_weights(input_tensor, target_layer, target_category, activations, grads)

    height, width = x.shape[-2:]
    if isinstance(model, HiFuse):  # whose maps cover the padded image
        x = pad_image(x, model.in_chans, model.stride)
    layer = find_layer(model, x[:1]) if layer is None else _resolve_layer(model, layer)
    to_map = partial(_to_map, name=layer, model=model, batch_size=len(x), size=x.shape[-2:])
    x = _to_input(model, x)

    def score(output: torch.Tensor) -> torch.Tensor:
        if len(output) < 2:
            raise ValueError(f"{type(model).__name__} has {len(output)} classes, expected 2 or more to explain one")
        if class_index is not None and not 0 <= class_index < len(output):
            raise ValueError(
                f"class_index is {class_index}, expected 0 to {len(output) - 1}, the classes of {type(model).__name__}"
            )
        if not output.isfinite().all():
            raise ValueError(
                f"the outputs of {type(model).__name__} are not finite: its weights or the image are broken"
            )
        # the zero ties a score that depends on nothing to the image, so that it has a gradient
        return output[output.argmax() if class_index is None else class_index] + 0 * x.sum()

    with _undisturbed(model):
        cam = Cam(model, [model.get_submodule(layer)], reshape_transform=to_map)
        try:
            maps = cam(x, [score] * len(x))
            probabilities = cam.outputs.detach().float().softmax(dim=-1).cpu().numpy()
        finally:
            cam.activations_and_grads.release()
    if maps.shape[1:] != (height, width):
        maps = maps[:, :height, :width]
        maps = maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-7)
    return maps, probabilities


def heat_map(
    model: nn.Module,
    image: Image.Image,
    class_index: int | None = None,
    layer: str | None = None,
    transform=None,
) -> np.ndarray:
    """Grad-CAM of one image, laid over it.

    Args:
        model: Classification network of timm for images of one or three channels.
        image: The image, of any size, with 8 bits a channel (`load_image` brings others to that).
        class_index: Class to explain, by default the predicted one.
        layer: Layer whose map is taken, as for `grad_cam`.
        transform: timm's transform that makes the network's input of the image, by default that of the network's
            pretrained config.

    Returns:
        Heat map of the image's height and width, float32 from 0 to 1. It lies over the part of the image that the
        network saw; what the transform cuts off around it is 0.

    Raises:
        ValueError: As `grad_cam`, or if the network takes other than one or three channels.
        RuntimeError: If grad-cam is not installed.
    """
    if transform is None:
        transform = create_transform(**_resolve_data_config(model))
    x, box = _preprocess(_to_mode(image, _image_mode(model)), transform)
    maps, _ = grad_cam(model, x.unsqueeze(0), class_index, layer)
    return _project(maps[0], box, image.size)


def _resolve_layer(model: nn.Module, layer: str) -> str:
    """Name in `named_modules()` of a layer given by that name, or by stage and branch."""
    branches = _find_branches(model)
    names = [name for name, _ in model.named_modules() if name]
    layer_name = branches.get(layer, layer)
    if layer_name not in names:
        near = list(branches) or difflib.get_close_matches(layer, names, n=4) or names[:4]
        raise ValueError(
            f"layer {layer!r} is not one of {type(model).__name__}: expected "
            + (f"one of {', '.join(near)}, or " if branches else f"a name as {', '.join(near)}, ")
            + "any other of model.named_modules()"
        )
    return layer_name


def _find_branches(model: nn.Module) -> dict[str, str]:
    """Names of the layers that give the maps of a HiFuse, by stage and branch; none for other networks."""
    return {
        f"stage{i + 1}.{branch}": f"stages.{i}.{attribute}"
        for i, stage in enumerate(model.stages if isinstance(model, HiFuse) else ())
        for branch, attribute in _BRANCHES.items()
        if getattr(stage, attribute, None) is not None
    }


def _to_map(output, name: str, model: nn.Module, batch_size: int, size: tuple[int, int]) -> torch.Tensor:
    """Lay a layer's output, or its gradient, over the image: (B, C, h, w) in float32.

    Args:
        output: (B, C, h, w), (B, h, w, C), or tokens (B, N, C).
        name: Name of the layer.
        batch_size: Number of images, B.
        size: Height and width of the images, whose proportions tell the two places of the channels apart. Where both
            would do (C = h = w), the network decides.

    Raises:
        ValueError: If the output is no map.
    """

    def fits(h: int, w: int) -> bool:
        return h <= size[0] and w <= size[1] and abs(h * size[1] - w * size[0]) < max(size)

    found = type(output).__name__
    if isinstance(output, torch.Tensor):
        found = f"a tensor {tuple(output.shape)}"
        # cloned, as networks overwrite a map in place
        if output.dim() == 4 and output.shape[0] == batch_size:
            first, last = fits(*output.shape[2:]), fits(*output.shape[1:3])
            if first and last:
                first = getattr(model, "output_fmt", "NCHW") != "NHWC"
            if first or last:
                return (output if first else output.permute(0, 3, 1, 2)).to(torch.float32, copy=True)
        if output.dim() == 3 and output.shape[0] == batch_size:
            known = getattr(model, "num_prefix_tokens", None)
            for num_prefix_tokens in (0, 1, 2) if known is None else (known, 0):
                num_tokens = output.shape[1] - num_prefix_tokens
                h = round(math.sqrt(max(num_tokens, 0) * size[0] / size[1]))
                if h and num_tokens % h == 0 and fits(h, num_tokens // h):
                    tokens = output[:, num_prefix_tokens:].transpose(1, 2).unflatten(2, (h, num_tokens // h))
                    return tokens.to(torch.float32, copy=True)
    raise ValueError(
        f"layer {name!r} of {type(model).__name__} gives {found}, which cannot be laid over images of "
        f"{size[0]}x{size[1]}: expected maps (B, C, H, W) or (B, H, W, C), or tokens (B, N, C)"
    )


def _to_input(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Images as a leaf that gradients reach, on the device of the model and in its dtype."""
    parameter = next(model.parameters())
    with torch.inference_mode(False):
        return x.to(parameter.device, parameter.dtype, copy=True).detach().requires_grad_()


@contextmanager
def _undisturbed(model: nn.Module):
    """Gradients with respect to the image alone, in eval mode; the model is afterwards as it was."""
    training = [(module, module.training) for module in model.modules()]
    # which runs some layers out of the hooks' sight, and others twice
    checkpointing = [(m, m.grad_checkpointing) for m in model.modules() if hasattr(m, "grad_checkpointing")]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        model.eval()
        for module, _ in checkpointing:
            module.grad_checkpointing = False
        for p, _, _ in parameters:
            p.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, mode in training:
            module.training = mode
        for module, enabled in checkpointing:
            module.grad_checkpointing = enabled
        for p, requires_grad, grad in parameters:
            p.requires_grad_(requires_grad)
            p.grad = grad  # which the library drops


# ------------------------------------------------------------------------------------------------------------- images


def load_image(path: str | Path) -> Image.Image:
    """Read an image file as one of 8 bits a channel.

    Reads what Pillow reads, the first frame of a file with several, and DICOM. Pixels of more than 8 bits are brought
    to 0 to 255: from their darkest to their brightest in a file that Pillow reads, by its window in DICOM.

    DICOM: rescale slope and intercept (or the modality LUT) are applied, then the VOI LUT or the first window; a file
    with neither is stretched from its darkest to its brightest value. MONOCHROME1 is inverted, so that bright is high.
    Of several frames the middle one is taken; `image.info['frame']` then says which, as '31 of 60'. Compressed pixels
    need what pydicom needs for them (Pillow does for JPEG baseline and JPEG 2000; pylibjpeg for the others).

    Args:
        path: The file.

    Returns:
        The image, in mode L or RGB if it had more than 8 bits or was DICOM, else in its own mode.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is no image, is damaged, or has more pixels than Pillow takes to be safe
            (2 * PIL.Image.MAX_IMAGE_PIXELS, 179 million).
        RuntimeError: If it is DICOM and pydicom is not installed.
    """
    path = Path(path)
    with path.open("rb") as f:
        is_dicom = f.read(132)[128:] == b"DICM"
    if is_dicom:
        _require("pydicom")
    try:
        return _read_dicom(path) if is_dicom else _read_with_pillow(path)
    except UnidentifiedImageError:
        raise ValueError(f"{path} is no image that Pillow or pydicom reads") from None
    except Image.DecompressionBombError as e:
        raise ValueError(f"{path} is too large: {e}") from e
    except MemoryError:
        raise
    except Exception as e:  # a damaged file fails at whatever its first wrong byte leads to
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise ValueError(f"{path} is damaged or of a kind that cannot be read ({reason})") from e


def _read_with_pillow(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            image.load()
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return Image.fromarray(_to_8_bits(np.asarray(image)))
    return image


def _read_dicom(path: Path) -> Image.Image:
    from pydicom import dcmread
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, apply_windowing, pixel_array

    dataset = dcmread(path, stop_before_pixels=True)
    num_frames = int(dataset.get("NumberOfFrames") or 1)
    frame = num_frames // 2
    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if not rows or not columns:
        raise ValueError(f"DICOM of the class {dataset.get('SOPClassUID', 'unknown')}, without pixels")
    if Image.MAX_IMAGE_PIXELS and rows * columns > 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{rows * columns} pixels, at most {2 * Image.MAX_IMAGE_PIXELS} are read")
    pixels = pixel_array(path, index=frame)

    # enhanced objects keep these of all frames and of each frame in sequences of their own
    groups = [*dataset.get("SharedFunctionalGroupsSequence", [])[:1]]
    groups += dataset.get("PerFrameFunctionalGroupsSequence", [])[frame : frame + 1]
    for group in groups:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in group.get(name, [])[:1]:
                dataset.update(item)

    kind = dataset.PhotometricInterpretation
    if kind in ("MONOCHROME1", "MONOCHROME2"):
        values, bounds = apply_modality_lut(pixels, dataset), ()
        if dataset.get("VOILUTSequence"):
            values = apply_voi_lut(values, dataset)
            bounds = 0, 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
        elif dataset.get("WindowWidth") and dataset.get("WindowCenter") is not None:
            values = apply_windowing(values, dataset)
            bounds = apply_windowing(np.array([-np.inf, np.inf]), dataset)
        pixels = _to_8_bits(values, *bounds)
        if kind == "MONOCHROME1":
            pixels = 255 - pixels
    elif kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        pixels = _to_8_bits(pixels, 0, np.iinfo(pixels.dtype).max)
    else:
        pixels = _to_8_bits(pixels, 0, 2**dataset.BitsStored - 1)
    image = Image.fromarray(pixels)
    if num_frames > 1:
        image.info["frame"] = f"{frame + 1} of {num_frames}"
    return image


def _to_8_bits(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Values from low to high, by default their own darkest and brightest, as 0 to 255."""
    values = values.astype(np.float32)
    finite = values[np.isfinite(values)]
    if low is None or high is None:
        low, high = (finite.min(), finite.max()) if finite.size else (0, 0)
    if low == high:
        return np.zeros(values.shape, np.uint8)
    values = (values - np.float32(low)) * np.float32(255 / (float(high) - float(low)))
    return np.rint(np.nan_to_num(values, nan=0, posinf=255, neginf=0).clip(0, 255)).astype(np.uint8)


def _preprocess(image: Image.Image, transform) -> tuple[torch.Tensor, tuple[float, float, float, float]]:
    """Make the network's input of an image.

    Returns:
        The input, (in_chans, H, W), and the part of the image that it shows: left, top, right and bottom in pixels of
        the image, beyond which it reaches where the transform pads.
    """
    left = top = 0.0
    scale_x = scale_y = 1.0  # pixels of the image for one of the step's
    for step in transform.transforms:
        before = image.size if isinstance(image, Image.Image) else None
        image = step(image)
        if before is None or not isinstance(image, Image.Image):
            continue
        if isinstance(step, (CenterCrop, CenterCropOrPad, TrimBorder)):
            left += round((before[0] - image.width) / 2) * scale_x
            top += round((before[1] - image.height) / 2) * scale_y
        else:
            scale_x *= before[0] / image.width
            scale_y *= before[1] / image.height
    return image, (left, top, left + image.shape[2] * scale_x, top + image.shape[1] * scale_y)


def _project(heat: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """Lay a heat map of the network's input over an image of this width and height."""
    result = np.zeros((size[1], size[0]), np.float32)
    x0, y0, x1, y1 = _seen(box, size)
    scale_x, scale_y = heat.shape[1] / (box[2] - box[0]), heat.shape[0] / (box[3] - box[1])
    source = np.array(
        [(x0 - box[0]) * scale_x, (y0 - box[1]) * scale_y, (x1 - box[0]) * scale_x, (y1 - box[1]) * scale_y]
    )
    source = source.clip(0, [heat.shape[1], heat.shape[0]] * 2)  # against rounding
    part = Image.fromarray(heat).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=tuple(source))
    result[y0:y1, x0:x1] = np.asarray(part).clip(0, 1)
    return result


def _seen(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of an image of this width and height that lies in the box, in whole pixels: left, top, right, bottom."""
    x0, y0 = min(max(round(box[0]), 0), size[0] - 1), min(max(round(box[1]), 0), size[1] - 1)
    return x0, y0, max(min(round(box[2]), size[0]), x0 + 1), max(min(round(box[3]), size[1]), y0 + 1)


# ----------------------------------------------------------------------------------------------------------- networks


@dataclass(frozen=True)
class _Network:
    """A network and how images reach it."""

    name: str
    model: nn.Module
    transform: object
    mode: str  # of the images, as Pillow names it
    labels: tuple[str, ...] | None

    def name_class(self, index: int) -> str:
        return self.labels[index] if self.labels else f"class {index}"


def _load_network(
    name: str, checkpoint: str | Path | None, use_ema: bool, data_dir: Path | None, device: torch.device
) -> _Network:
    """Create a timm model with the weights of a checkpoint, or pretrained, and its preprocessing."""
    training_args = {}
    if checkpoint is None:
        model = timm.create_model(name, pretrained=True)
    else:
        if not timm.is_model(name.partition(".")[0]):
            near = difflib.get_close_matches(name, timm.list_models(), n=3) or timm.list_models("hifuse*")
            raise ValueError(f"model {name!r} is not registered with timm; near it are {', '.join(near)}")
        state_dict = read_checkpoint(checkpoint, use_ema=use_ema)
        if name.startswith("hifuse_"):
            state_dict, _ = convert_state_dict(state_dict)
        training_args = read_training_args(checkpoint)
        model_args = dict(training_args.get("model_kwargs") or {})
        for argument, theirs in (("global_pool", "gp"), ("bn_eps", "bn_eps")):
            if training_args.get(theirs) is not None:
                model_args.setdefault(argument, training_args[theirs])
        cfg = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
        for argument, modules, axis in (("num_classes", cfg.classifier, 0), ("in_chans", cfg.first_conv, 1)):
            module = modules if isinstance(modules, str) else (modules or [""])[0]
            weight = state_dict.get(f"{module}.weight")
            if weight is not None:
                model_args[argument] = weight.shape[axis]
            elif training_args.get(argument):
                model_args[argument] = training_args[argument]
        try:
            model = timm.create_model(name, **model_args)
        except TypeError as e:
            raise ValueError(
                f"checkpoint {checkpoint} was trained as {training_args.get('model')} with arguments that {name} does "
                f"not take: {e}"
            ) from e
        if isinstance(model, HiFuse):
            check_architecture(state_dict, model.state_dict())
        try:
            model.load_state_dict(state_dict)
        except RuntimeError as e:
            reason = " ".join(line.strip() for line in str(e).splitlines()[1:3])
            raise ValueError(f"checkpoint {checkpoint} does not fit {name}: {reason[:300]}") from e
    mode = training_args.get("input_img_mode") or _image_mode(model)
    transform = create_transform(**_resolve_data_config(model, training_args))
    labels = model.pretrained_cfg.get("label_names")
    if data_dir is not None:
        labels = _read_classes(data_dir)
        if len(labels) != model.num_classes:
            raise ValueError(f"{data_dir} has {len(labels)} classes, {name} has {model.num_classes}")
    if labels is not None and len(labels) != model.num_classes:
        labels = None
    return _Network(name, model.to(device).eval(), transform, mode, None if labels is None else tuple(labels))


def _resolve_data_config(model: nn.Module, training_args: dict | None = None) -> dict:
    """timm's data config of the model, for the channels that it has."""
    config = resolve_data_config(training_args, model=model)
    in_chans = _count_channels(model)
    return dict(
        config,
        input_size=(in_chans, *config["input_size"][1:]),
        mean=tuple(config["mean"][:in_chans]),
        std=tuple(config["std"][:in_chans]),
    )


def _count_channels(model: nn.Module) -> int:
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)


def _image_mode(model: nn.Module) -> str:
    """The mode in which timm's train.py reads images for the model."""
    in_chans = _count_channels(model)
    if in_chans not in (1, 3):
        raise ValueError(f"{type(model).__name__} takes {in_chans} channels, pictures have 1 or 3")
    return "L" if in_chans == 1 else "RGB"


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in this mode, itself if it has it: Pillow would copy it."""
    return image if image.mode == mode else image.convert(mode)


def _read_classes(data_dir: Path) -> list[str]:
    """The classes of a prepared dataset, in the order of their indices."""
    path = data_dir / "dataset.json"
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))["classes"]
    except OSError as e:
        raise OSError(f"{path}, which names the classes of a prepared dataset, cannot be read: {e.strerror}") from e
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path} is not of a prepared dataset: it names no classes") from e
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
        raise ValueError(f"{path} has the classes {classes!r}, expected a list of names")
    return classes


# ------------------------------------------------------------------------------------------------------------- figure


@dataclass(frozen=True)
class _Panel:
    """What a column of a figure shows: a layer of a network."""

    network: _Network
    layer: str
    heading: str


@dataclass(frozen=True)
class _Row:
    """A row of a figure: a picture and the heat maps over it, with what is written above each."""

    picture: np.ndarray  # H W 3
    seen: list[tuple[int, int, int, int]]  # of each heat map, the part of the picture that the network saw
    heats: list[np.ndarray]  # H W
    titles: list[str]  # of the picture, empty where it stands in a row above already, and of each heat map


def explain(
    images: Iterable[str | Path],
    model: str,
    checkpoint: str | Path | None = None,
    *,
    out: str | Path,
    compare: Iterable[tuple[str, str | Path | None]] = (),
    class_name: int | str | None = None,
    layers: Sequence[str] = (),
    data_dir: str | Path | None = None,
    use_ema: bool = False,
    device: str | torch.device | None = None,
) -> list[Path]:
    """Draw a figure like the paper's Figure 4: a row for each image, a column for each network or layer.

    Each network takes its images as it was trained: by the settings of timm's train.py where the checkpoint holds
    them, else by its pretrained config. Each heat map is scaled to its own highest place. Above it stand the class that
    the network predicts and its probability. What a network's crop cuts off is darkened. One image is in memory at a
    time, and a figure holds 20 rows: those of further images go to further files, named OUT-2, OUT-3 and so on.

    A file that cannot be read as an image is named on stderr and skipped.

    Args:
        images: Image files (`load_image` says which), and folders of them, searched through for all files but hidden
            ones.
        model: Name of a timm model.
        checkpoint: What timm's train.py saved, or safetensors; by default the model's pretrained weights.
        out: File to write, in a format of matplotlib's by its ending, as .png or .pdf.
        compare: Further networks, name and checkpoint each, shown by their last layer before the head.
        class_name: Class to explain, by index or name; by default each network's predicted class.
        layers: Layers of the model to show, a column each, as for `grad_cam`; by default the last one before the head.
            'all', alone, is every stage of a HiFuse in a row and every branch in a column.
        data_dir: Prepared dataset, whose dataset.json names the classes; by default the names in the pretrained config.
        use_ema: Whether to take the averaged weights that train.py keeps beside the trained ones.
        device: Device to run on, by default CUDA where there is one, else the CPU.

    Returns:
        The files written.

    Raises:
        ValueError: If an argument is wrong, weights do not fit, or none of the files is an image.
        OSError: If a checkpoint or dataset.json cannot be read, or a file not be written.
        RuntimeError: If the extra is not installed.
    """
    _require("pytorch_grad_cam")
    figure_class = _require("matplotlib.figure").Figure
    tqdm = _require("tqdm").tqdm
    if use_ema and checkpoint is None:
        raise ValueError("use_ema needs a checkpoint of train.py, which keeps averaged weights: give checkpoint")
    out = Path(out)
    formats = sorted(figure_class().canvas.get_supported_filetypes())
    if out.suffix[1:].lower() not in formats:
        raise ValueError(f"out {out} must end in a format of pictures: one of .{', .'.join(formats)}")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"{out.absolute().parent}, to write {out.name} in, does not exist")
    compare = list(compare)
    if "all" in layers and (len(layers) > 1 or compare):
        raise ValueError("layer 'all' is a grid of the model's own stages and branches: give no other layer or network")
    images = list(images)
    files = list(_find_files(images))
    if not files:
        raise ValueError(f"no files in {', '.join(map(str, images))}")

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    data_dir = None if data_dir is None else Path(data_dir)
    networks = [_load_network(*source, use_ema, data_dir, device) for source in [(model, checkpoint), *compare]]
    class_indices = {id(network): _find_class(network, class_name) for network in networks}
    panels = _make_panels(networks, layers, [checkpoint, *(file for _, file in compare)])

    written, rows = [], []

    def write() -> None:
        path = out.with_name(f"{out.stem}-{len(written) + 1}{out.suffix}") if written else out
        headings = [panel.heading for panel in next(iter(panels.values()))]
        save_figure(_draw(figure_class, rows, headings), path)
        written.append(path)
        rows.clear()

    with tqdm(files, unit="image", disable=None) as progress:
        for path in progress:
            try:
                image = load_image(path)
            except (ValueError, OSError) as e:
                reason = f"{path}: {e.strerror}" if isinstance(e, OSError) and e.strerror else e
                tqdm.write(f"skipped: {reason}", file=sys.stderr)
                continue
            if rows and len(rows) + len(panels) > _ROWS_PER_FIGURE:
                write()
            rows += _explain_image(path, image, panels, class_indices)
    if not rows:
        raise ValueError("none of the files is an image")
    write()
    return written


def _find_files(images: Iterable[str | Path]) -> Iterator[Path]:
    for image in map(Path, images):
        if image.is_dir():
            inside = sorted(path for path in image.rglob("*") if path.is_file())
            yield from (p for p in inside if not any(part.startswith(".") for part in p.relative_to(image).parts))
        else:
            yield image


def _find_class(network: _Network, class_name: int | str | None) -> int | None:
    num_classes = network.model.num_classes
    if class_name is None:
        return None
    if network.labels and class_name in network.labels:
        return network.labels.index(class_name)
    if str(class_name).isdecimal() and int(class_name) < num_classes:
        return int(class_name)
    known = f", or one of {', '.join(network.labels)}" if network.labels and num_classes <= 20 else ""
    raise ValueError(f"class {class_name} is not one of {network.name}: expected 0 to {num_classes - 1}{known}")


def _make_panels(
    networks: list[_Network], layers: Sequence[str], checkpoints: list[str | Path | None]
) -> dict[str, list[_Panel]]:
    """The panels of each row that an image takes, by what is written in front of their titles."""
    first = networks[0]
    if "all" in layers:
        branches = _find_branches(first.model)
        if not branches:
            raise ValueError(f"layer 'all' is for HiFuse, {first.name} has no branches: name layers of it")
        rows = {}
        for branch, layer in branches.items():
            stage, _, heading = branch.partition(".")
            rows.setdefault(stage.replace("stage", "stage "), []).append(_Panel(first, layer, heading))
        return rows
    counts = Counter(network.name for network in networks)
    panels = []
    for network, checkpoint in zip(networks, checkpoints, strict=True):
        heading = network.name
        if counts[network.name] > 1 and checkpoint is not None:
            heading += f"\n{_shorten(str(checkpoint), 30)}"
        if network is first and layers:
            panels += [
                _Panel(network, _resolve_layer(network.model, i), f"{heading}\n{_shorten(i, 30)}") for i in layers
            ]
        else:
            x, _ = _preprocess(Image.new(network.mode, (256, 256)), network.transform)
            noise = torch.randn(1, *x.shape, generator=torch.Generator().manual_seed(0))
            panels.append(_Panel(network, find_layer(network.model, noise), heading))
    return {"": panels}


def _explain_image(
    path: Path, image: Image.Image, panels: dict[str, list[_Panel]], class_indices: dict[int, int | None]
) -> list[_Row]:
    scale = min(1, _THUMBNAIL_SIZE / max(image.size))
    size = [max(round(side * scale), 1) for side in image.size]
    thumbnail = _to_mode(image, "RGB").resize(size, Image.Resampling.BICUBIC)
    ratio = np.array([thumbnail.width / image.width, thumbnail.height / image.height] * 2)
    name = _shorten(path.name, 30) + (f"\nframe {image.info['frame']}" if "frame" in image.info else "")
    inputs = {}
    rows = []
    for label, row_panels in panels.items():
        seen, heats, titles = [], [], [name if not rows else ""]
        for panel in row_panels:
            network = panel.network
            if id(network) not in inputs:
                x, box = _preprocess(_to_mode(image, network.mode), network.transform)
                inputs[id(network)] = x, tuple(box * ratio)
            x, box = inputs[id(network)]
            index = class_indices[id(network)]
            maps, probabilities = grad_cam(network.model, x.unsqueeze(0), index, panel.layer)
            predicted = int(probabilities[0].argmax())
            title = f"{_shorten(network.name_class(predicted), 22)} {probabilities[0, predicted]:.1%}"
            if index not in (None, predicted):
                title += f"\nmap of {_shorten(network.name_class(index), 16)} {probabilities[0, index]:.1%}"
            seen.append(_seen(box, thumbnail.size))
            heats.append(_project(maps[0], box, thumbnail.size))
            titles.append(f"{label}: {title}" if label else title)
        rows.append(_Row(np.asarray(thumbnail), seen, heats, titles))
    return rows


def _shorten(text: str, length: int) -> str:
    """The text with its middle left out where it is longer."""
    return text if len(text) <= length else f"{text[: length // 2 - 1]}…{text[-(length - length // 2) :]}"


def _draw(figure_class, rows: list[_Row], headings: list[str]):
    """Draw the rows: the picture and its heat maps, one scale of colours beside them all."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable

    colors = colormaps["jet"]
    side, line_height = 2.2, 0.18  # inches
    heights = [line_height * max(heading.count("\n") + 1 for heading in headings)]
    heights += [side * min(max(row.picture.shape[0] / row.picture.shape[1], 0.3), 1.5) for row in rows]
    num_lines = sum(max(title.count("\n") + 1 for title in row.titles) for row in rows)
    figure = figure_class(
        (side * (len(headings) + 1) + 0.8, sum(heights) + line_height * num_lines), layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    axes = figure.subplots(len(rows) + 1, len(headings) + 1, squeeze=False, gridspec_kw=dict(height_ratios=heights))
    for axis in axes.flat:
        axis.set_axis_off()

    def write(axis, text: str, **kwargs) -> None:
        # without a part in the layout, which would make room for a long text between the pictures
        axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", **kwargs).set_in_layout(False)

    for axis, heading in zip(axes[0, 1:], headings, strict=True):
        write(axis, heading, fontsize=8, fontweight="bold")
    for row, row_axes in zip(rows, axes[1:], strict=True):
        grey = row.picture.mean(axis=2, keepdims=True) / 255
        for axis, title in zip(row_axes, row.titles, strict=True):
            axis.set_title(title, fontsize=8, pad=3)
        if row.titles[0]:
            row_axes[0].imshow(row.picture)
        for axis, heat, (x0, y0, x1, y1) in zip(row_axes[1:], row.heats, row.seen, strict=True):
            # over grey, so that every colour is the heat map's
            blended = 0.3 * grey.repeat(3, axis=2)
            blended[y0:y1, x0:x1] = 0.5 * (grey + colors(heat)[..., :3])[y0:y1, x0:x1]
            axis.imshow(blended)
            if not heat.any():
                write(axis, "empty", color="white")
    scale = figure.colorbar(ScalarMappable(cmap=colors), ax=axes, aspect=30, shrink=min(1, 6 / sum(heights)), pad=0.01)
    scale.set_ticks([0, 0.5, 1])
    scale.ax.tick_params(labelsize=8)
    scale.set_label("Grad-CAM (1: each map's highest place)", fontsize=8)
    return figure
