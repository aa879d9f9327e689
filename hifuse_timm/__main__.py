"""The command line: `python -m hifuse_timm evaluate`, `average`, `publish`, `convert` and `run`."""

import argparse
import sys
import types
from pathlib import Path

import timm
from timm.utils import ParseKwargs

from .checkpoint import (
    Architecture,
    check_architecture,
    convert_state_dict,
    read_checkpoint,
    save_weights,
    summarize_dropped,
)
from .evaluate import PRECISIONS, average, check_writable, evaluate, format_result, save_json
from .hub import DATASETS, NAMESPACE, publish


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
        description="HiFuse for timm: evaluate, publish and convert weights, run timm's scripts.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

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
    p.add_argument("--use-ema", action="store_true", help="take the averaged weights of train.py's --model-ema")
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
    p.add_argument("--workers", type=int, default=4, metavar="N", help="processes that read images (default: 4)")
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
    p.add_argument("--use-ema", action="store_true", help="take the averaged weights of train.py's --model-ema")
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
        "convert",
        help="turn a checkpoint of the authors' code into one of ours",
        description="Turn a checkpoint of the authors' code, bare or under net, model or state_dict, into safetensors "
        "in this package's layout. Prints the network that it is of, and what was dropped.",
    )
    p.set_defaults(function=convert_command)
    p.add_argument("checkpoint", metavar="IN", help="the checkpoint, made by torch.save or safetensors")
    p.add_argument("output", metavar="OUT.safetensors", help="the file to write; one that is there is replaced")

    p = subparsers.add_parser(
        "run",
        usage="%(prog)s SCRIPT [ARGS ...]",
        help="run a Python script with the models registered",
        description="Run a Python script, as timm's validate.py, with the models registered with timm. What follows "
        "SCRIPT is handed to it. Under torchrun: torchrun --nproc_per_node 2 -m hifuse_timm run SCRIPT ARGS ...",
    )
    p.add_argument("script", metavar="SCRIPT", help="the script")
    return parser


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
        save_json(evaluation.result, args.json)
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
        save_json(result, args.json)
        print(f"\nwritten: {args.json}")


def publish_command(args: argparse.Namespace) -> None:
    """Publish a checkpoint."""
    where = publish(
        args.model,
        args.checkpoint,
        args.dataset,
        use_ema=args.use_ema,
        metrics=args.metrics,
        repo_id=args.repo_id,
        private=args.private,
        dry_run=args.dry_run,
    )
    if args.dry_run is None:
        print(f"published: {where}")
    else:
        print(f'written to {where}; timm.create_model("local-dir:{where}", pretrained=True) loads it')


def convert_command(args: argparse.Namespace) -> None:
    """Convert a checkpoint."""
    output = Path(args.output)
    if output.suffix != ".safetensors":
        raise ValueError(f"output {output} must end in .safetensors, by which timm knows how to read it")
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"{output.absolute().parent}, to write {output.name} in, does not exist")
    state_dict, dropped = convert_state_dict(read_checkpoint(args.checkpoint))
    architecture = Architecture.of(state_dict)
    if architecture.variant is not None:
        model = timm.create_model(
            architecture.variant, in_chans=architecture.in_chans, num_classes=architecture.num_classes, device="meta"
        )
        check_architecture(state_dict, model.state_dict())
    save_weights(state_dict, output)
    print(f"{args.checkpoint} is of {architecture}, with {architecture.num_classes or 'no'} classes")
    print(f"{len(dropped)} tensors dropped" if dropped else "nothing dropped")
    if dropped:
        print(summarize_dropped(dropped))
    print(f"written to {output}; pretrained=True, pretrained_cfg_overlay=dict(file='{output}') loads it")


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
