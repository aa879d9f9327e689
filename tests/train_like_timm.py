"""Training from a recipe, as timm's train.py does it: through the components that it uses, or by the script itself.

HIFUSE_TIMM_TRAIN_PY in the environment gives the path of the script: the train.py of timm's repository, which its
package lacks.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import timm
import torch
import yaml
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils import CheckpointSaver, accuracy, random_seed

from hifuse_timm.recipes import recipe_path

TRAIN_PY = os.environ.get("HIFUSE_TIMM_TRAIN_PY")


def parse_with_train_py(*argv: str) -> argparse.Namespace:
    """What train.py makes of its command line."""
    spec = importlib.util.spec_from_file_location("timm_train_py", TRAIN_PY)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with mock.patch.object(sys, "argv", ["train.py", *argv]):
        return script._parse_args()[0]


def run_train_py(*argv: str) -> subprocess.CompletedProcess:
    """Run train.py on the CPU, in a process of its own."""
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1]))
    command = [sys.executable, TRAIN_PY, "--device", "cpu", "--device-modules", "hifuse_timm", *argv]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)


def read_recipe(tag: str, **changes) -> argparse.Namespace:
    """A recipe's settings as train.py has them in the end, with some changed as on its command line."""
    recipe = yaml.safe_load(recipe_path(tag).read_text(encoding="utf-8"))
    return argparse.Namespace(**(dict(momentum=0.9, seed=42) | recipe | changes))


def create_loaders(args: argparse.Namespace, data_dir: Path):
    """The loaders of the training and the validation images."""
    data_config = resolve_data_config(vars(args))
    common = dict(
        input_size=data_config["input_size"],
        mean=data_config["mean"],
        std=data_config["std"],
        batch_size=args.batch_size,
        num_workers=0,
        use_prefetcher=False,
        device=torch.device("cpu"),
    )
    train_loader = create_loader(
        create_dataset("", root=str(data_dir), split=args.train_split, is_training=True, input_img_mode="RGB"),
        is_training=True,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=args.color_jitter,
        auto_augment=args.aa,
        re_prob=args.reprob,
        interpolation=args.train_interpolation,
        **common,
    )
    val_loader = create_loader(
        create_dataset("", root=str(data_dir), split=args.val_split, is_training=False, input_img_mode="RGB"),
        interpolation=data_config["interpolation"],
        crop_pct=data_config["crop_pct"],
        **common,
    )
    return train_loader, val_loader


def create_schedule(args: argparse.Namespace, optimizer: torch.optim.Optimizer, updates_per_epoch: int):
    """The learning rate scheduler, and the number of epochs."""
    return create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=updates_per_epoch)


def train(model_name: str, tag: str, data_dir: Path, output: Path, **changes) -> Path:
    """Train a model with a recipe; gives the checkpoint of the best epoch."""
    args = read_recipe(tag, model=model_name, **changes)
    random_seed(args.seed)
    model = timm.create_model(args.model, num_classes=args.num_classes, drop_path_rate=args.drop_path)
    train_loader, val_loader = create_loaders(args, data_dir)
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args))
    scheduler, epochs = create_schedule(args, optimizer, len(train_loader))
    output.mkdir()
    saver = CheckpointSaver(model, optimizer, args, checkpoint_dir=str(output), max_history=1)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=args.smoothing)
    updates = 0
    for epoch in range(epochs):
        model.train()
        for images, classes in train_loader:
            optimizer.zero_grad()
            criterion(model(images), classes).backward()
            optimizer.step()
            updates += 1
            scheduler.step_update(updates)
        model.eval()
        with torch.inference_mode():
            logits, classes = zip(*((model(images), classes) for images, classes in val_loader), strict=True)
        saver.save_checkpoint(epoch, metric=accuracy(torch.cat(logits), torch.cat(classes))[0].item())
        scheduler.step(epoch + 1)
    return output / "model_best.pth.tar"
