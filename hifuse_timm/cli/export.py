"""Write a trained network as ONNX, OpenVINO or pt2, compared with PyTorch.

Write any timm model, as train.py left it or pretrained, to a file for another runtime. Classes, transform and image
mode are in it, and predict and evaluate take it in the place of a checkpoint. It is run and compared with PyTorch
before it takes its place. Needs the extra export, and for int8 the extra int8.
"""

from argparse import ArgumentParser, Namespace

from ..exported import ENDINGS, PRECISIONS_OF_FORMATS
from ..text import printable
from .options import add_class_map, add_transform, add_use_ema, transform_options


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m hifuse_timm export`."""
    precisions = "; ".join(f"{name}: {', '.join(found)}" for name, found in PRECISIONS_OF_FORMATS.items())
    parser.epilog = (
        f"Precisions: {precisions}. The file takes normalised images in float32, (N, C, H, W), and gives logits. What "
        "export says of the speed is a quick look."
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="model of timm, or local-dir:DIR, or hf-hub:ID")
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="what timm's train.py saved (.pth.tar), a safetensors file, or a checkpoint of the authors' code",
    )
    weights.add_argument("--pretrained", action="store_true", help="take the published weights of the model")
    parser.add_argument("--format", required=True, choices=ENDINGS, help="kind of the file")
    endings = ", ".join(ENDINGS.values())
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help=f"file to write, which ends in {endings}; one that is there is replaced. An .xml has a .bin beside it",
    )
    precisions = list(dict.fromkeys(name for found in PRECISIONS_OF_FORMATS.values() for name in found))
    parser.add_argument(
        "--precision", default="float32", choices=precisions, help="what the file computes in (default: float32)"
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="dataset, as prepare writes it, whose val int8 is calibrated on and the file is compared on, not on noise",
    )
    parser.add_argument("--dynamic-batch", action="store_true", help="take any number of images at once, not one alone")
    add_use_ema(parser)
    add_class_map(parser)
    add_transform(parser)


def run(args: Namespace) -> None:
    """Export a network, and print what was taken, how the file compares, and where it is."""
    from ..export import export

    exported = export(
        args.model,
        args.checkpoint,
        out=args.out,
        format=args.format,
        precision=args.precision,
        data_dir=args.data_dir,
        dynamic_batch=args.dynamic_batch,
        use_ema=args.use_ema,
        class_map=args.class_map,
        **transform_options(args),
    )
    for what, origin in exported.origins.items():
        print(printable(f"{what}: {origin}"))
    print(f"compared: {exported.comparison}")
    speed = exported.speed
    print(
        f"speed: {1000 * speed.exported:.1f} ms an image, {1000 * speed.pytorch:.1f} ms in PyTorch in float32, one at "
        f"once on {speed.threads} threads; a quick look"
    )
    print(printable(f"written: {', '.join(map(str, exported.files))}"))
