"""Try a network in the browser.

Serve a page, to this machine alone, on which to drop images and DICOM files: it shows the probability of each class,
and where the network looks. Nothing leaves the machine, and nothing is kept. Not a medical device. Needs
the extra demo.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..exported import is_exported
from ..inference import load_calibration
from ..loading import Trained, find_device, load_for_inference
from ..packaged import CREDIT, packaged_calibration, packaged_examples, packaged_weights
from .options import add_calibration, add_class_map


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m hifuse_timm demo`."""
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="model of timm, or local-dir:DIR, or hf-hub:ID; by default the small one of chest X-rays that lies in the "
        "package, with images to click on",
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="what timm's train.py saved (.pth.tar), a safetensors file, a checkpoint of the authors' code, or what "
        "export wrote (.onnx, .xml)",
    )
    weights.add_argument("--pretrained", action="store_true", help="take the published weights of the model")
    add_class_map(parser)
    add_calibration(parser, "calibrated probabilities, and what is decided by them")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="of 127.0.0.1 (default: 7860)")


def run(args: Namespace) -> None:
    """Serve the page until Ctrl-C."""
    if args.model is None:
        if given := [name for name in ("checkpoint", "pretrained", "class_map") if getattr(args, name)]:
            raise ValueError(f"{', '.join(given)} given, but no model: give --model NAME, or leave them out")
    elif not (args.checkpoint or args.pretrained):
        raise ValueError(f"no weights given for {args.model}: give --checkpoint FILE or --pretrained")
    serve(args.model, args.checkpoint, args.calibration, class_map=args.class_map, port=args.port)


def serve(
    model: str | None = None,
    checkpoint: str | Path | None = None,
    calibration: str | Path | None = None,
    *,
    class_map: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
) -> None:
    """Serve the page until Ctrl-C, as the app.py of a Hugging Face Space does.

    Args:
        model: Name of a model in timm, or `hf-hub:ID` or `local-dir:DIR`; by default the one in the package.
        checkpoint: As for `load_for_inference`; by default the pretrained weights of the model.
        calibration: What `calibrate` wrote for this network; by default that of the one in the package.
        class_map: Text file with the name of a class on each line; by default as `load_for_inference` finds them.
        host: Address to serve it at.
        port: Port to serve it at.

    Raises:
        ValueError: If a file or the calibration is not what it should be.
        OSError: If a file is missing, or the port is taken.
        RuntimeError: If a library is missing.
    """
    from ..demo import Answerer, launch, load_gradio, make_page
    from ..explain import draw_heat_map

    load_gradio()  # before long work

    title, examples, credit = None, (), ""
    if model is None:
        title, examples, credit = "A small HiFuse for chest X-rays", packaged_examples(), CREDIT
        model = f"local-dir:{packaged_weights()}"
        calibration = packaged_calibration() if calibration is None else calibration
    device = find_device("cpu" if is_exported(checkpoint) else None)
    network = load_for_inference(model, checkpoint, class_map=class_map, device=device)
    rules = None if calibration is None else load_calibration(calibration, network)

    def draw(image, class_index: int, layer: str):
        return draw_heat_map(network, image, class_index, layer)

    answerer = Answerer(network, device, draw, _find_layers(network), rules)
    title = title or f"{network.name.rpartition('/')[2]} on your images"
    launch(make_page(answerer, title, examples, credit), host, port)


def _find_layers(network: Trained) -> list[str]:
    """The layers at which heat maps can be drawn, the last one before the head first; none where there can be none."""
    from ..explain import find_branches, find_last_layer

    try:
        last = find_last_layer(network)
    except (RuntimeError, ValueError):
        return []
    branches = find_branches(network.model)
    if not branches:  # any other model of timm says what its stages are
        branches = {info["module"]: info["module"] for info in getattr(network.model, "feature_info", ())}
    first = next((name for name, layer in branches.items() if layer == last), last)
    return [first, *(name for name in branches if name != first)]
