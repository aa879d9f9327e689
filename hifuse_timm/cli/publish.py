"""Upload a checkpoint to the Hub, or write what would be uploaded.

Upload model.safetensors, timm's config.json and a model card in one commit.
"""

from argparse import ArgumentParser, Namespace

from ..datasets import DATASETS
from ..hub import NAMESPACE
from .options import add_calibration, add_class_map, add_model_kwargs, add_use_ema


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m hifuse_timm publish`."""
    parser.epilog = (
        "Classes: the indices of the checkpoint's classes are taken to be those of the class map that the training was "
        "given, else those of timm's reader on folders named for the classes in dataset.json, or like this:  "
        + ";  ".join(f"{tag}: {' '.join(data.labels)}" for tag, data in DATASETS.items())
        + ".  They go into config.json, so train on folders whose names sort in this order."
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="registered model, as hifuse_small")
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="FILE",
        help="what timm's train.py saved (.pth.tar), a safetensors file, or a checkpoint of the authors' code",
    )
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--dataset", metavar="TAG", help=f"data trained on, of the paper: {', '.join(DATASETS)}")
    data.add_argument(
        "--data-dir",
        metavar="DIR",
        help="data trained on, as prepare wrote it: title, classes, licence and citation come from DIR/dataset.json",
    )
    add_use_ema(parser)
    add_class_map(parser)
    add_model_kwargs(parser)
    parser.add_argument(
        "--metrics",
        metavar="FILE.json",
        help="results for the card: what evaluate or average wrote, or an object whose numbers are the metrics, as "
        '{"accuracy": 0.83, "f1": 0.73}; what is no number is left out',
    )
    add_calibration(parser, "shipped as calibration.json, and described in the card")
    parser.add_argument(
        "--half",
        action="store_true",
        help="round the weights to float16, which halves the file; metrics and calibration must then be of these: "
        "evaluate local-dir:DIR of a dry run without them first",
    )
    parser.add_argument(
        "--repo-id", metavar="ID", help=f"repository; {NAMESPACE}/MODEL.TAG by default, for the paper's data alone"
    )
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--dry-run", metavar="DIR", help="write the files to DIR instead; needs no token and no network"
    )
    parser.add_argument(
        "--space",
        action="store_true",
        help="write also DIR/space, the files of a Hugging Face Space that serves the demo of the repository",
    )


def run(args: Namespace) -> None:
    """Publish a checkpoint, and print where it is."""
    from ..publish import publish

    where = publish(
        args.model,
        args.checkpoint,
        args.dataset,
        data_dir=args.data_dir,
        use_ema=args.use_ema,
        class_map=args.class_map,
        model_kwargs=args.model_kwargs,
        metrics=args.metrics,
        calibration=args.calibration,
        half=args.half,
        repo_id=args.repo_id,
        private=args.private,
        dry_run=args.dry_run,
        space=args.space,
    )
    if args.dry_run is None:
        print(f"published: {where}")
    else:
        print(f'written to {where}; timm.create_model("local-dir:{where}", pretrained=True) loads it')
