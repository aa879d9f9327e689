"""Write a table of probabilities for images of one's own.

Write a CSV of the predicted class and the probability of each class, a row an image, by any timm model. An image that
cannot be read has its row with the reason in the column error; the exit code is 1 then. Under torchrun the processes
share the images: torchrun --nproc_per_node 2 -m hifuse_timm predict ... Needs the extra medical, and for
DICOM explain.
"""

import logging
import os
import sys
from argparse import ArgumentParser, Namespace

from ..text import printable
from .options import add_calibration, add_class_map, add_inference, add_use_ema, inference_options


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m hifuse_timm predict`."""
    parser.epilog = (
        "Image size, crop and normalisation are those of the training, which the .pth.tar of train.py holds, else the "
        "model's. The names of the classes are those of --classes or --class-map, else those that published weights "
        "have, or the class map of the training, else those of --data-dir. A table that is not whole yet has "
        "OUT.csv.resume.json beside it."
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="image files, DICOM among them (the middle frame of several), and folders of them; each counts once",
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="model of timm, or local-dir:DIR, or hf-hub:ID")
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument(
        "--checkpoint",
        nargs="+",
        default=[],
        metavar="FILE",
        help="what timm's train.py saved (.pth.tar), a safetensors file, a checkpoint of the authors' code, or what "
        "export wrote (.onnx, .xml, .pt2); the probabilities of several, as of folds, are averaged",
    )
    weights.add_argument("--pretrained", action="store_true", help="take the published weights of the model")
    add_use_ema(parser)
    parser.add_argument("--classes", nargs="+", metavar="CLASS", help="the classes in the order of the outputs")
    add_class_map(parser)
    parser.add_argument(
        "--data-dir", metavar="DIR", help="dataset whose dataset.json, or train folder, names the classes"
    )
    parser.add_argument("--csv", required=True, metavar="OUT.csv", help="table to write, row by row")
    parser.add_argument("--resume", action="store_true", help="go on with a table that is not whole yet")
    parser.add_argument(
        "--tta", action="store_true", help="average over each image as it is, mirrored, upside down, and both"
    )
    add_calibration(parser, "calibrated probabilities, and columns for what is decided by them")
    add_inference(parser)


def run(args: Namespace) -> int:
    """Write the table, and print what was taken and what became of the images.

    Returns:
        Exit code: 1 if the table has images that cannot be read.
    """
    from ..predict import predict

    if os.environ.get("RANK", "0") != "0":  # the first process of torchrun warns for all
        logging.disable(logging.WARNING)
    summary = predict(
        args.sources,
        args.model,
        args.checkpoint,
        out=args.csv,
        resume=args.resume,
        classes=args.classes,
        class_map=args.class_map,
        data_dir=args.data_dir,
        use_ema=args.use_ema,
        tta=args.tta,
        calibration=args.calibration,
        **inference_options(args),
    )
    if summary is None:
        return 0
    for origins in summary.origins:
        for what, origin in origins.items():
            print(printable(f"{what}: {origin}"))
    print(f"written: {args.csv}, {summary.images:,} images, {summary.unreadable:,} of which cannot be read")
    rate = summary.computed / summary.seconds
    print(f"{summary.computed:,} images in {summary.seconds:.1f} s, {rate:.1f} images a second", file=sys.stderr)
    return int(summary.unreadable > 0)
