"""The command line, `python -m hifuse_timm COMMAND`: one function a subcommand."""

import argparse
import json
import sys
import types
from pathlib import Path

from timm.utils import ParseKwargs

from .convert import convert_file, summarize_conversion
from .datasets import DATASETS
from .evaluate import PRECISIONS, average, check_writable, evaluate, format_result, save_json
from .explain import explain
from .hub import NAMESPACE
from .prepare import prepare
from .publish import publish
from .recipes import recipe_path
from .warm_start import summarize_origins, warm_start

_CLASS_MAP_HELP = "class map of train.py, a .txt with a class a line; by default the one that the training was given"
_USE_EMA_HELP = "take the averaged weights of train.py's --model-ema, or not; by default where there are some"


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: Arguments behind the program's name, those of the process by default.

    Returns:
        Exit code: 0, or 1 after an error of the user's that was printed. A script that `run` runs ends as it ends by
        itself.
    """
    argv = sys.argv[1:] if argv is None else argv
    script_args = []
    if argv[:1] == ["run"]:  # what follows the script is the script's, --help too
        argv, script_args = argv[:2], argv[2:]
    args = _make_parser().parse_args(argv)
    if args.command == "run":
        return run_script(args.script, script_args)
    try:
        args.function(args)
    except (ValueError, OSError, RuntimeError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hifuse_timm",
        description="HiFuse for timm: from datasets to published weights; timm's scripts with the models registered.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    p = subparsers.add_parser(
        "prepare",
        help="make image folders with splits of a dataset as downloaded",
        description="Check a dataset in the form in which its provider publishes it, zipped or unpacked, and write "
        "DIR/train/CLASS, DIR/val/CLASS and DIR/test/CLASS for timm's scripts, with splits.csv and dataset.json; of "
        "kvasir, DIR/fold1 and DIR/fold2 of this form. Unpacked images are hard-linked where the file system allows.",
        epilog="--source holds, for isic2018: ISIC2018_Task3_Training_Input, ISIC2018_Task3_Training_GroundTruth and, "
        "for --group-by lesion, ISIC2018_Task3_Training_LesionGroupings.csv;  for covid19ct: a clone of "
        "github.com/UCSD-AI4H/COVID-CT, of which Images-processed and Data-split are read;  for kvasir: "
        "kvasir-dataset.",
    )
    p.set_defaults(function=prepare_command)
    p.add_argument("dataset", metavar="TAG", help=f"the dataset: {', '.join(DATASETS)}")
    p.add_argument("--source", required=True, metavar="DIR", help="folder with what was downloaded")
    p.add_argument("--out", required=True, metavar="DIR", help="folder to write; one with the same dataset is replaced")
    p.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")
    p.add_argument(
        "--val-share",
        type=float,
        metavar="X",
        help="isic2018, kvasir: share of val in train and val together, 0 for no val (default: 0.1)",
    )
    p.add_argument("--group-by", choices=["lesion"], help="isic2018: keep all images of a lesion in one split")
    p.add_argument(
        "--split",
        choices=["official", "paper"],
        help="covid19ct: the provider's lists (default), or 0.6, 0.15, 0.25 as the paper says",
    )
    p.add_argument(
        "--allow-incomplete",
        action="store_true",
        help="leave out what is missing or not sound, and record it in dataset.json",
    )

    p = subparsers.add_parser(
        "evaluate",
        help="measure a model on a split of a dataset, beside the paper's figures",
        description="Measure any timm model on images in DIR/SPLIT/CLASS/*: accuracy, macro F1, precision and recall "
        "(paper, Section 4.2), balanced accuracy, macro AUROC, expected calibration error and figures of each class, "
        "with bootstrap intervals; beside the paper's where DIR/dataset.json, as prepare writes it, names one of its "
        "datasets. Needs pip install 'hifuse-timm[medical]'.",
        epilog="F1, precision and recall are means over all classes, 0 for a class that is never predicted or never "
        "occurs; balanced accuracy and AUROC are means over the classes that occur. The calibration error is that of "
        "the predicted class in 15 bins of equal width. Intervals are percentiles over resampled images. Image size, "
        "crop and normalisation are those of the training, which the .pth.tar of train.py holds, else the model's.",
    )
    p.set_defaults(function=evaluate_command)
    p.add_argument("--model", required=True, metavar="NAME", help="model of timm, or local-dir:DIR, or hf-hub:ID")
    weights = p.add_mutually_exclusive_group(required=True)
    weights.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="what timm's train.py saved (.pth.tar), a safetensors file, or a checkpoint of the authors' code",
    )
    weights.add_argument("--pretrained", action="store_true", help="take the published weights of the model")
    p.add_argument("--use-ema", action=argparse.BooleanOptionalAction, help=_USE_EMA_HELP)
    p.add_argument("--class-map", metavar="FILE", help=_CLASS_MAP_HELP)
    p.add_argument("--data-dir", required=True, metavar="DIR", help="dataset, as prepare writes it")
    p.add_argument("--split", default="test", metavar="NAME", help="folder of DIR to measure on (default: test)")
    p.add_argument("--json", metavar="FILE", help="write all figures, for average and for publish --metrics")
    p.add_argument(
        "--predictions", metavar="FILE.csv", help="write true and predicted class and probabilities by image"
    )
    p.add_argument("--plots", metavar="DIR", help="draw confusion matrix, ROC curves and reliability diagram")
    p.add_argument("--fuse", action="store_true", help="fold the network for inference first; the outputs stay")
    p.add_argument("--device", metavar="DEVICE", help="as cpu or cuda:1; the machine's accelerator by default")
    p.add_argument("--precision", default="float32", choices=PRECISIONS, help="autocast below float32 (the default)")
    p.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at once (default: 32)")
    p.add_argument("--workers", type=int, metavar="N", help="processes that read images; one a core, at most 4")
    p.add_argument(
        "--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="KEY=VALUE", help="as in timm's scripts"
    )
    p.add_argument("--img-size", type=int, metavar="N", help="pixels a side, in the place of the training's")
    p.add_argument(
        "--crop-pct", type=float, metavar="X", help="share of the resized side that the crop keeps, likewise"
    )
    p.add_argument("--mean", type=float, nargs="+", metavar="X", help="mean of the normalisation, likewise")
    p.add_argument("--std", type=float, nargs="+", metavar="X", help="standard deviation of it, likewise")
    p.add_argument("--resamples", type=int, default=2000, metavar="N", help="of the bootstrap (default: 2000)")
    p.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")

    p = subparsers.add_parser(
        "average",
        help="average the figures of several runs of evaluate",
        description="Average what evaluate --json wrote of one model on one dataset, as on the two folds of Kvasir, "
        "and show the spread, beside the paper's figures.",
    )
    p.set_defaults(function=average_command)
    p.add_argument("runs", nargs="+", metavar="RUN.json", help="the runs, two or more")
    p.add_argument("--json", metavar="FILE", help="write the averages, for publish --metrics")

    p = subparsers.add_parser(
        "publish",
        help="upload a checkpoint to the Hub, or write what would be uploaded",
        description="Upload model.safetensors, timm's config.json and a model card in one commit.",
        epilog="Classes: the indices of the checkpoint's classes are taken to be those of timm's reader on folders "
        "named like this:  "
        + ";  ".join(f"{tag}: {' '.join(data.labels)}" for tag, data in DATASETS.items())
        + ".  They go into config.json, so train on folders whose names sort in this order.",
    )
    p.set_defaults(function=publish_command)
    p.add_argument("--model", required=True, metavar="NAME", help="registered model, as hifuse_small")
    p.add_argument(
        "--checkpoint",
        required=True,
        metavar="FILE",
        help="what timm's train.py saved (.pth.tar), a safetensors file, or a checkpoint of the authors' code",
    )
    p.add_argument("--dataset", required=True, metavar="TAG", help=f"data trained on: {', '.join(DATASETS)}")
    p.add_argument("--use-ema", action=argparse.BooleanOptionalAction, help=_USE_EMA_HELP)
    p.add_argument("--class-map", metavar="FILE", help=_CLASS_MAP_HELP)
    p.add_argument(
        "--metrics",
        metavar="FILE.json",
        help="results for the card: what evaluate or average wrote, or an object whose numbers are the metrics, as "
        '{"accuracy": 0.83, "f1": 0.73}; what is no number is left out',
    )
    p.add_argument("--repo-id", metavar="ID", help=f"repository, {NAMESPACE}/MODEL.TAG by default")
    p.add_argument("--private", action="store_true", help="make a new repository private")
    p.add_argument("--dry-run", metavar="DIR", help="write the files to DIR instead; needs no token and no network")

    p = subparsers.add_parser(
        "recipe",
        help="print the path of a training recipe for timm's train.py",
        description="Print the path of a training recipe, the settings of the paper's Table 2 and the authors' "
        'augmentation, for train.py --device-modules hifuse_timm --config "$(%(prog)s TAG)" ...',
        epilog="Recipes:  " + ";  ".join(f"{tag}: {data.name}" for tag, data in DATASETS.items()),
    )
    p.set_defaults(function=recipe_command)
    p.add_argument("tag", metavar="TAG", help=f"dataset to train on: {', '.join(DATASETS)}")

    p = subparsers.add_parser(
        "warm-start",
        help="write ImageNet weights of ConvNeXt and Swin as a start for training",
        description="Fetch timm's ImageNet-1k weights of ConvNeXt-T and Swin-T (of ConvNeXt-S and Swin-S for the base "
        "variants) from the Hub, take over every tensor that has the same role in HiFuse's local or global branch, and "
        "write a file for train.py --pretrained --pretrained-path FILE, which adds a classifier for its number of "
        "classes. Prints what came from where and what stays at initialisation. What it does for accuracy has not been "
        "measured yet.",
    )
    p.set_defaults(function=warm_start_command)
    p.add_argument("model", metavar="NAME", help="registered model, as hifuse_small")
    p.add_argument("--out", required=True, metavar="FILE.safetensors", help="the file; one that is there is replaced")
    p.add_argument("--seed", type=int, default=0, help="of the initialisation of all other tensors (default: 0)")

    p = subparsers.add_parser(
        "convert",
        help="turn a checkpoint of the authors' code into one of ours",
        description="Turn a checkpoint of the authors' code, bare or under net, model or state_dict, into safetensors "
        "in this package's layout. Prints the network that it is of, what was dropped, and the call that loads it.",
    )
    p.set_defaults(function=convert_command)
    p.add_argument("checkpoint", metavar="IN", help="the checkpoint, made by torch.save or safetensors")
    p.add_argument("output", metavar="OUT.safetensors", help="the file to write; one that is there is replaced")
    p.add_argument("--use-ema", action=argparse.BooleanOptionalAction, help=_USE_EMA_HELP)
    p.add_argument("--allow-nonfinite", action="store_true", help="write weights that are NaN or infinite too")

    p = subparsers.add_parser(
        "explain",
        help="draw where networks look",
        description="Draw Grad-CAM heat maps like the paper's Figure 4: a row for each image, a column for each "
        "network, above each map the predicted class and its probability. Needs pip install 'hifuse-timm[explain]'. A "
        "file that is no image is named on stderr and skipped; the exit code is 0 if any image was drawn, else 1.",
    )
    p.set_defaults(function=explain_command)
    p.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image files, DICOM among them (the middle frame of several), and folders of them",
    )
    p.add_argument("--model", required=True, metavar="NAME", help="any timm model, as hifuse_tiny or local-dir:DIR")
    p.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="what timm's train.py saved (.pth.tar) or a safetensors file; the model's pretrained weights by default",
    )
    p.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="further networks and their checkpoints, a column each; NAME alone takes its pretrained weights",
    )
    p.add_argument("--use-ema", action=argparse.BooleanOptionalAction, help=_USE_EMA_HELP)
    p.add_argument("--class-map", metavar="FILE", help=_CLASS_MAP_HELP)
    p.add_argument(
        "--class",
        dest="class_name",
        metavar="N",
        help="class to explain, by index or name; each network's predicted one by default",
    )
    p.add_argument(
        "--layer",
        nargs="+",
        default=[],
        metavar="LAYER",
        help="layers of --model, a column each: for HiFuse stage1.local, stage2.global, stage3.fused and so on, or all "
        "for the grid of stages and branches; for any model a name of named_modules(). By default the last layer "
        "before the head",
    )
    p.add_argument("--data-dir", metavar="DIR", help="prepared dataset whose dataset.json names the classes")
    p.add_argument("--device", metavar="DEVICE", help="as cpu or cuda:1; CUDA where there is one by default")
    p.add_argument(
        "--out",
        required=True,
        metavar="FILE.png",
        help="picture to write, also .pdf or .svg; 20 rows each, further ones go to FILE-2.png and so on",
    )

    p = subparsers.add_parser(
        "run",
        usage="%(prog)s SCRIPT [ARGS ...]",
        help="run a Python script with the models registered",
        description="Run a Python script, as timm's validate.py, with the models registered with timm. What follows "
        "SCRIPT is handed to it. Under torchrun: torchrun --nproc_per_node 2 -m hifuse_timm run SCRIPT ARGS ...",
    )
    p.add_argument("script", metavar="SCRIPT", help="the script")
    return parser


def prepare_command(args: argparse.Namespace) -> None:
    """Prepare a dataset."""
    folders = prepare(
        args.dataset,
        args.source,
        args.out,
        seed=args.seed,
        val_share=args.val_share,
        group_by=args.group_by,
        split=args.split,
        allow_incomplete=args.allow_incomplete,
    )
    for folder in folders:
        dataset = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        sizes = ", ".join(f"{sum(counts.values()):,} {split}" for split, counts in dataset["counts"].items())
        print(f"{folder}: {dataset['title']}, {len(dataset['classes'])} classes, {sizes} images")
    for finding in dataset["findings"]:
        print(f"{finding['kind']}: {finding['message']}: {len(finding['files']):,}, listed in dataset.json")


def evaluate_command(args: argparse.Namespace) -> None:
    """Evaluate a model."""
    check_writable(args.json)
    check_writable(args.predictions)
    check_writable(args.plots, directory=True)
    evaluation = evaluate(
        args.model,
        args.data_dir,
        args.checkpoint,
        split=args.split,
        use_ema=args.use_ema,
        class_map=args.class_map,
        fuse=args.fuse,
        device=args.device,
        precision=args.precision,
        batch_size=args.batch_size,
        workers=args.workers,
        model_kwargs=args.model_kwargs,
        img_size=args.img_size,
        crop_pct=args.crop_pct,
        mean=args.mean,
        std=args.std,
        resamples=args.resamples,
        seed=args.seed,
    )
    print(format_result(evaluation.result))
    written = []
    if args.json is not None:
        save_json(args.json, evaluation.result)
        written.append(args.json)
    if args.predictions is not None:
        evaluation.save_predictions(args.predictions)
        written.append(args.predictions)
    if args.plots is not None:
        written += map(str, evaluation.save_plots(args.plots))
    if written:
        print(f"\nwritten: {', '.join(written)}")


def average_command(args: argparse.Namespace) -> None:
    """Average runs of evaluate."""
    check_writable(args.json)
    result = average(args.runs)
    print(format_result(result))
    if args.json is not None:
        save_json(args.json, result)
        print(f"\nwritten: {args.json}")


def publish_command(args: argparse.Namespace) -> None:
    """Publish a checkpoint."""
    where = publish(
        args.model,
        args.checkpoint,
        args.dataset,
        use_ema=args.use_ema,
        class_map=args.class_map,
        metrics=args.metrics,
        repo_id=args.repo_id,
        private=args.private,
        dry_run=args.dry_run,
    )
    if args.dry_run is None:
        print(f"published: {where}")
    else:
        print(f'written to {where}; timm.create_model("local-dir:{where}", pretrained=True) loads it')


def recipe_command(args: argparse.Namespace) -> None:
    """Print where a recipe is."""
    print(recipe_path(args.tag))


def warm_start_command(args: argparse.Namespace) -> None:
    """Write a warm start."""
    origins = warm_start(args.model, args.out, seed=args.seed)
    print(summarize_origins(origins))
    print(
        f"written to {args.out}; train.py --model {args.model} --pretrained --pretrained-path {args.out} begins there"
    )


def convert_command(args: argparse.Namespace) -> None:
    """Convert a checkpoint."""
    conversion = convert_file(args.checkpoint, args.output, use_ema=args.use_ema, allow_nonfinite=args.allow_nonfinite)
    print(summarize_conversion(conversion))


def explain_command(args: argparse.Namespace) -> None:
    """Draw where networks look."""
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


def run_script(script: str, args: list[str]) -> int:
    """Run a Python script as `python SCRIPT ARGS...` would, in this process.

    Its exit code and its errors pass through; the traceback of an error starts in the script.
    """
    try:
        source = Path(script).read_bytes()
    except OSError as e:
        print(f"error: script {script} cannot be read: {e.strerror}", file=sys.stderr)
        return 2
    sys.argv = [script, *args]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = str(Path(script).resolve().parent)
    module = types.ModuleType("__main__")
    module.__file__ = script
    sys.modules["__main__"] = module

    def print_error(kind, error, traceback):
        while traceback is not None and traceback.tb_frame.f_globals is not module.__dict__:
            traceback = traceback.tb_next
        sys.__excepthook__(kind, error.with_traceback(traceback), traceback)

    sys.excepthook = print_error
    exec(compile(source, script, "exec"), module.__dict__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
