"""Draw where networks look.

Draw Grad-CAM heat maps like the paper's Figure 4: a row for each image, a column for each network, above each map the
predicted class and its probability. A file that is no image is named on stderr and skipped; the exit code is 0 if any
image was drawn, else 1. Needs the extra explain.
"""

from argparse import ArgumentParser, Namespace

from .options import add_class_map, add_use_ema


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m hifuse_timm explain`."""
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image files, DICOM among them (the middle frame of several), and folders of them",
    )
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="any timm model, as hifuse_tiny or local-dir:DIR"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="what timm's train.py saved (.pth.tar) or a safetensors file; the model's pretrained weights by default",
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="further networks and their checkpoints, a column each; NAME alone takes its pretrained weights",
    )
    add_use_ema(parser)
    add_class_map(parser)
    parser.add_argument(
        "--class",
        dest="class_name",
        metavar="N",
        help="class to explain, by index or name; each network's predicted one by default",
    )
    parser.add_argument(
        "--layer",
        nargs="+",
        default=[],
        metavar="LAYER",
        help="layers of --model, a column each: for HiFuse stage1.local, stage2.global, stage3.fused and so on, or all "
        "for the grid of stages and branches; for any model a name of named_modules(). By default the last layer "
        "before the head",
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="dataset whose dataset.json, or train folder, names the classes"
    )
    parser.add_argument("--device", metavar="DEVICE", help="as cpu or cuda:1; CUDA where there is one by default")
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE.png",
        help="picture to write, also .pdf or .svg; 20 rows each, further ones go to FILE-2.png and so on",
    )


def run(args: Namespace) -> None:
    """Draw where networks look, and print which files were written."""
    from ..explain import explain

    compare = [(name, file or None) for name, _, file in (network.partition("=") for network in args.compare)]
    written = explain(
        args.images,
        args.model,
        args.checkpoint,
        out=args.out,
        compare=compare,
        class_name=args.class_name,
        layers=args.layer,
        data_dir=args.data_dir,
        use_ema=args.use_ema,
        class_map=args.class_map,
        device=args.device,
    )
    print(f"written to {', '.join(map(str, written))}")
