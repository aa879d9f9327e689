"""The 1,797 scanned handwritten digits that scikit-learn ships, as images."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def load(size: int) -> tuple[list[tuple[Image.Image, int]], list[tuple[Image.Image, int]]]:
    """The digits as RGB images of size x size pixels with their classes: 1,347 to train on and 450 held out."""
    digits = load_digits()
    pixels = (digits.images * (255 / 16)).astype(np.uint8)
    images = [Image.fromarray(p).resize((size, size), Image.Resampling.BILINEAR).convert("RGB") for p in pixels]
    samples = list(zip(images, digits.target.tolist(), strict=True))
    return train_test_split(samples, test_size=450, stratify=digits.target, random_state=0)


def write_folders(root: Path, size: int) -> None:
    """Write the digits as the image folders that timm's scripts read: root/{train,val}/CLASS/NUMBER.png."""
    for split, samples in zip(("train", "val"), load(size), strict=True):
        for number, (image, digit) in enumerate(samples):
            folder = root / split / str(digit)
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number:04}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write scikit-learn's digits as image folders for timm's scripts.")
    parser.add_argument("root", type=Path, help="folder to write train/ and val/ into")
    parser.add_argument("--size", type=int, default=64, help="pixels a side (default: 64)")
    args = parser.parse_args()
    write_folders(args.root, args.size)
