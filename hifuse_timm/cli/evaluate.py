"""Measure a model on a split of a dataset, beside the paper's metrics.

Measure any timm model on images in DIR/SPLIT/CLASS/*: accuracy, macro F1, precision and recall (paper, Section 4.2),
balanced accuracy, macro AUROC and average precision, sensitivity at 90% and 95% specificity, Cohen's kappa, Matthews
correlation, Brier score, expected calibration error, and metrics of each class, with bootstrap intervals, over patients
where DIR/splits.csv names them as groups; beside the paper's metrics where DIR/dataset.json, as prepare writes it,
names one of its datasets. Of several checkpoints of one training, --metric picks the best on val. Needs
the extra medical.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

from torch import Tensor

from ..errors import require
from ..files import check_writable, write_json
from ..loading import Trained
from ..predictions import Predictions
from ..runs import METRICS
from .options import add_calibration, add_class_map, add_inference, add_resampling, add_use_ema, inference_options


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m hifuse_timm evaluate`."""
    parser.epilog = (
        "F1, precision and recall are means over all classes, 0 for a class that is never predicted or never occurs; "
        "balanced accuracy, and AUROC, average precision and sensitivity at a specificity of each class against the "
        "rest, are means over the classes that occur. Sensitivity at a specificity is that of the ROC curve's best "
        "point with this specificity or more; its threshold is chosen on these same images, so it is optimistic. The "
        "Brier score goes from 0 to 2, for two classes to 1. The calibration error is that of the predicted class in "
        "15 bins of equal width. Intervals are percentiles over resampled groups, with all their images, or resampled "
        "images. Image size, crop and normalisation are those of the training, which the .pth.tar of train.py holds, "
        "else the model's."
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="model of timm, or local-dir:DIR, or hf-hub:ID")
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument(
        "--checkpoint",
        nargs="+",
        metavar="FILE",
        help="what timm's train.py saved (.pth.tar), a safetensors file, a checkpoint of the authors' code, or what "
        "export wrote (.onnx, .xml, .pt2); of several, the best by --metric",
    )
    weights.add_argument("--pretrained", action="store_true", help="take the published weights of the model")
    add_use_ema(parser)
    add_class_map(parser)
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="dataset, as prepare writes it")
    parser.add_argument(
        "--split", metavar="NAME", help="folder of DIR to measure on (default: test; val where --metric is given)"
    )
    parser.add_argument(
        "--metric",
        choices=METRICS,
        metavar="METRIC",
        help="pick the best of several checkpoints by this; what is written is of it: %(choices)s",
    )
    parser.add_argument("--json", metavar="FILE", help="write all metrics, for average and for publish --metrics")
    parser.add_argument(
        "--predictions", metavar="FILE.csv", help="write true and predicted class and probabilities by image"
    )
    parser.add_argument("--plots", metavar="DIR", help="draw confusion matrix, ROC, precision-recall, reliability")
    add_calibration(parser, "metrics of calibrated probabilities, and what its thresholds reach")
    parser.add_argument(
        "--report",
        metavar="FILE.html",
        help="write a page of all this, with the most confident mistakes and the least certain images, and where the "
        "network looks in them (extra explain); it needs no other file and nothing from a network",
    )
    parser.add_argument(
        "--no-images", action="store_true", help="leave the images out of the report; their names stay in it"
    )
    add_inference(parser)
    parser.add_argument(
        "--group-column",
        metavar="NAME",
        help="column of DIR/splits.csv that says which images belong together, as those of a patient (default: subject "
        "or group)",
    )
    parser.add_argument(
        "--by",
        nargs="+",
        default=(),
        metavar="COLUMN",
        help="columns of DIR/splits.csv whose values are measured each for itself, as site; numbers in bands as "
        "age:40,60,80",
    )
    add_resampling(parser)


def run(args: Namespace) -> None:
    """Evaluate a model, write the files asked for, and print the tables."""
    from ..evaluate import evaluate, format_result, pick_best

    checkpoints = args.checkpoint or [None]
    if args.metric is None and len(checkpoints) > 1:
        raise ValueError(f"{len(checkpoints)} checkpoints are given: --metric says by what to pick the best of them")
    require("tabulate", "medical")  # before long work
    if args.plots is not None:
        require("matplotlib", "medical")
    if args.report is not None:
        require("jinja2", "medical")
    elif args.no_images:
        raise ValueError("no_images leaves the images out of a report: give --report FILE.html, or leave it out")
    check_writable(args.json)
    check_writable(args.predictions)
    check_writable(args.plots, directory=True)
    check_writable(args.report)
    options = dict(
        use_ema=args.use_ema,
        class_map=args.class_map,
        **inference_options(args),
        group_column=args.group_column,
        resample=args.resample,
        calibration=args.calibration,
        resamples=args.resamples,
        seed=args.seed,
        by=args.by,
    )
    if args.metric is None:
        evaluation = evaluate(args.model, args.data_dir, *checkpoints, split=args.split or "test", **options)
    else:
        evaluation = pick_best(
            args.model, args.data_dir, checkpoints, args.metric, split=args.split or "val", **options
        )
    written = []
    try:
        if args.json is not None:
            write_json(args.json, evaluation.result)
            written.append(args.json)
        if args.predictions is not None:
            evaluation.save_predictions(args.predictions)
            written.append(args.predictions)
        if args.plots is not None:
            written += map(str, evaluation.save_plots(args.plots))
        if args.report is not None:
            _write_report(args, evaluation.result, evaluation.predictions, evaluation.uncalibrated, evaluation.trained)
            written.append(args.report)
    finally:  # what was measured is shown where it cannot be written, too
        print(format_result(evaluation.result))
    if written:
        print(f"\nwritten: {', '.join(written)}")


def _write_report(
    args: Namespace, result: dict, predictions: Predictions, uncalibrated: Tensor | None, trained: Trained
) -> None:
    from ..report import Run, add_pictures, find_mistakes, find_uncertain, write_report

    mistakes, uncertain = find_mistakes(predictions), find_uncertain(predictions)
    note = "The images are left out (--no-images)."
    if not args.no_images:
        draw_heat_map, note = _find_heat_maps(trained)
        mistakes, uncertain = (add_pictures(found, args.data_dir, draw_heat_map) for found in (mistakes, uncertain))
    run = Run(args.model, result, predictions, uncalibrated, mistakes, uncertain)
    write_report(args.report, [run], args.argv, note)


def _find_heat_maps(trained: Trained) -> tuple[Callable | None, str]:
    """What draws the heat map of a class over an image; None, and why, where nothing can."""
    from ..explain import draw_heat_map, find_last_layer

    try:
        require("pytorch_grad_cam", "explain")
        layer = find_last_layer(trained)
    except (RuntimeError, ValueError) as e:
        return None, f"There are no heat maps: {e}"
    return lambda image, class_index: draw_heat_map(trained, image, class_index, layer), ""
