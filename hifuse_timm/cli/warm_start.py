"""Write ImageNet weights of ConvNeXt and Swin as a start for training.

Fetch timm's ImageNet-1k weights of ConvNeXt-T and Swin-T (of ConvNeXt-S and Swin-S for the base variants) from the Hub,
take over every tensor that has the same role in HiFuse's local or global branch, and write a file for train.py
--pretrained --pretrained-path FILE, which adds a classifier for its number of classes. Prints what came from where and
what stays at initialisation. What it does for accuracy has not been measured yet.
"""

from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m hifuse_timm warm-start`."""
    parser.add_argument("model", metavar="NAME", help="registered model, as hifuse_small")
    parser.add_argument(
        "--out", required=True, metavar="FILE.safetensors", help="the file; one that is there is replaced"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the initialisation of all other tensors (default: 0)")


def run(args: Namespace) -> None:
    """Write a warm start, and print what came from where."""
    from ..warm_start import summarize_origins, warm_start

    origins = warm_start(args.model, args.out, seed=args.seed)
    print(summarize_origins(origins))
    print(
        f"written to {args.out}; train.py --model {args.model} --pretrained --pretrained-path {args.out} begins there"
    )
