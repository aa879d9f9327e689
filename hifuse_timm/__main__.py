"""The command line: `python -m hifuse_timm publish`, `convert`, `explain` and `run`."""

import argparse
import sys
import types
from pathlib import Path

import timm

from .checkpoint import (
    Architecture,
    check_architecture,
    convert_state_dict,
    read_checkpoint,
    save_weights,
    summarize_dropped,
)
from .explain import explain
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
        description="HiFuse for timm: publish and convert weights, explain predictions, run timm's scripts.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

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
        help='results for the card: an object whose numbers are the metrics, as {"accuracy": 0.83, "f1": 0.73, '
        '"precision": 0.74, "recall": 0.73}; what is no number is left out',
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
    p.add_argument("--use-ema", action="store_true", help="take the averaged weights of train.py's --model-ema")
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
