"""Grad-CAM of any timm model, by the library grad-cam.

Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391) weighs the channels of a layer's map by the mean
gradient of a class's score and keeps where their sum is positive.
"""

import difflib
import math
from collections import Counter
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import nn

from ..errors import require
from ..hifuse import HiFuse, pad_image

__all__ = ["find_branches", "find_layer", "grad_cam", "resolve_layer"]

# The branches of a HiFuse in the order of Figure 1, by the attribute of a stage whose output is the branch's map.
_BRANCHES = {"local": "local_blocks", "global": "global_blocks", "fused": "fusion"}


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
    library = require("pytorch_grad_cam", "explain")

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
    layer = find_layer(model, x[:1]) if layer is None else resolve_layer(model, layer)
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


def resolve_layer(model: nn.Module, layer: str) -> str:
    """Name in `named_modules()` of a layer given by that name, or by stage and branch."""
    branches = find_branches(model)
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


def find_branches(model: nn.Module) -> dict[str, str]:
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
