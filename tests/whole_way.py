"""From a dataset to published weights at full width, command by command as a user types them, with timm's train.py.

    python tests/whole_way.py PATH/TO/train.py

A miniature of the dataset stands for the archives, a server on loopback for the Hub. Prints each command and what it
prints, and fails unless the published weights give the metrics of the trained ones.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from hub_server import HubServer
from miniatures import MINIATURES

SOURCE = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="From a miniature to published weights, at full width.")
    parser.add_argument("train_py", type=Path, metavar="TRAIN_PY", help="timm's train.py")
    parser.add_argument("--dataset", default="isic2018", choices=MINIATURES, help="(default: isic2018)")
    parser.add_argument("--model", default="hifuse_tiny", metavar="NAME", help="(default: hifuse_tiny)")
    parser.add_argument("--device", default="cpu", help="of training and evaluation (default: cpu)")
    # of the recipe's settings those that 24 images a class need otherwise
    parser.add_argument("--epochs", type=int, default=5, metavar="N", help="(default: 5)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="(default: 8)")
    parser.add_argument("--lr", type=float, default=3e-4, help="(default: 3e-4)")
    args = parser.parse_args()
    tag, model, device = args.dataset, args.model, args.device
    data = "data/fold1" if tag == "kvasir" else "data"

    with tempfile.TemporaryDirectory() as folder, HubServer() as hub:
        env = os.environ | dict(
            PATH=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            PYTHONPATH=os.pathsep.join(filter(None, (str(SOURCE), os.environ.get("PYTHONPATH")))),
            HF_ENDPOINT=hub.url,
            HF_TOKEN=hub.token,
            HF_HOME=str(Path(folder) / "huggingface"),
            HF_HUB_DISABLE_XET="1",
        )
        for command in (
            f"python {shlex.quote(str(SOURCE / 'tests' / 'miniatures.py'))} {tag} downloads",
            f"python -m hifuse_timm prepare {tag} --source downloads --out data --allow-incomplete",
            f"python {shlex.quote(str(args.train_py.resolve()))} --device-modules hifuse_timm "
            f'--config "$(python -m hifuse_timm recipe {tag})" --model {model} --data-dir {data} --output runs '
            f"--experiment run --device {device} --workers 2 --log-interval 5 "
            f"--epochs {args.epochs} --batch-size {args.batch_size} --lr {args.lr}",
            f"python -m hifuse_timm evaluate --model {model} --checkpoint runs/run/model_best.pth.tar "
            f"--data-dir {data} --split test --device {device} --workers 2 --json trained.json",
            f"python -m hifuse_timm publish --model {model} --checkpoint runs/run/model_best.pth.tar --dataset {tag} "
            "--metrics trained.json",
            f"python -m hifuse_timm evaluate --model {model}.{tag} --pretrained --data-dir {data} --split test "
            f"--device {device} --workers 2 --json published.json",
        ):
            print(f"\n$ {command}", flush=True)
            subprocess.run(command, shell=True, cwd=folder, env=env, check=True)

        before, after = (json.loads((Path(folder) / f"{run}.json").read_text()) for run in ("trained", "published"))
        where_from = ("model", "origins", "conditions")
        different = [key for key in before if key not in where_from and before[key] != after[key]]
        if different:
            sys.exit(f"\nthe published weights of {model}.{tag} give other metrics: {', '.join(different)}")
        print(f"\nthe published weights of {model}.{tag} give the metrics of the trained ones")


if __name__ == "__main__":
    main()
