"""Turn a checkpoint of the authors' code into one of ours.

Turn a checkpoint of the authors' code, bare or under net, model or state_dict, into safetensors in this package's
layout. Prints the network that it is of, what was dropped, and the call that loads it.
"""

from argparse import ArgumentParser, Namespace

from ..convert import convert_file, summarize_conversion
from .options import add_use_ema


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m hifuse_timm convert`."""
    parser.add_argument("checkpoint", metavar="IN", help="the checkpoint, made by torch.save or safetensors")
    parser.add_argument("output", metavar="OUT.safetensors", help="the file to write; one that is there is replaced")
    add_use_ema(parser)
    parser.add_argument("--allow-nonfinite", action="store_true", help="write weights that are NaN or infinite too")


def run(args: Namespace) -> None:
    """Convert a checkpoint, and print the network that it is of, what was dropped, and the call that loads it."""
    conversion = convert_file(args.checkpoint, args.output, use_ema=args.use_ema, allow_nonfinite=args.allow_nonfinite)
    print(summarize_conversion(conversion))
