"""Synthetic images in which nothing but a small blob, at a random place, decides the class."""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

CLASSES = {"blue": (60, 90, 230), "green": (70, 190, 80), "red": (220, 70, 60)}


def make(
    num_images: int, size: int, blob_size: int, seed: int = 0
) -> list[tuple[Image.Image, int, tuple[int, int, int, int]]]:
    """Images of size x size pixels: grey clouds, two grey blobs, and one blob in the colour of the class.

    Returns:
        The images, each with its class and the box of its coloured blob: left, top, right, bottom.
    """
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    samples = []
    for i in range(num_images):
        clouds = Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).resize((size, size), 3)
        pixels = np.asarray(clouds)[..., None] * 0.5 + 60 + random.normal(0, 12, (size, size, 3))
        label = i % len(CLASSES)
        shades = random.integers(40, 220, 2)
        for color in (*((shade,) * 3 for shade in shades), list(CLASSES.values())[label]):  # the coloured one on top
            left, top = random.integers(0, size - blob_size, 2)
            center_x, center_y = left + blob_size / 2, top + blob_size / 2
            pixels[(x + 0.5 - center_x) ** 2 + (y + 0.5 - center_y) ** 2 < blob_size**2 / 4] = color
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(size / 224))
        samples.append((image, label, (int(left), int(top), int(left) + blob_size, int(top) + blob_size)))
    return samples


def write_folders(root: Path, size: int, blob_size: int) -> None:
    """Write 1,200 and 60 images as timm's scripts read them, root/SPLIT/CLASS/NUMBER.png, and dataset.json."""
    for seed, (split, num_images) in enumerate({"train": 1200, "val": 60}.items()):
        for number, (image, label, _) in enumerate(make(num_images, size, blob_size, seed)):
            folder = root / split / list(CLASSES)[label]
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number:04}.png")
    (root / "dataset.json").write_text(json.dumps({"classes": list(CLASSES)}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write images of blobs as image folders for timm's scripts.")
    parser.add_argument("root", type=Path, help="folder to write train/ and val/ into")
    parser.add_argument("--size", type=int, default=224, help="pixels a side (default: 224)")
    parser.add_argument("--blob-size", type=int, default=28, help="pixels across a blob (default: 28)")
    args = parser.parse_args()
    write_folders(args.root, args.size, args.blob_size)
