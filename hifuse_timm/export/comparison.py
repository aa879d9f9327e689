"""An exported network beside the one of PyTorch: what both make of the same images, and how long they take."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..exported import ExportedModel
from ..images import open_image
from ..loading import Trained

__all__ = ["TOLERANCES", "Comparison", "Speed", "compare", "draw_images", "measure_speed", "read_images"]

# The largest difference of a logit, as a share of the logits' spread, and the least share of equal top classes. The
# latter is not asked of noise, in which a network may see nothing.
TOLERANCES = {"float32": (0.001, 0.99), "bfloat16": (0.05, 0.97), "int8": (0.25, 0.9)}

_ROUNDS = 5


@dataclass(frozen=True)
class Comparison:
    """How the logits of two networks differ on the same images.

    Attributes:
        images: Number of images.
        is_noise: Whether they are noise.
        difference: The largest difference of a logit.
        spread: The greatest logit of PyTorch on any of the images less the least one.
        agreement: Share of the images with the same top class.
    """

    images: int
    is_noise: bool
    difference: float
    spread: float
    agreement: float

    def check(self, precision: str) -> None:
        """Check that the difference is one of rounding in this precision.

        Raises:
            ValueError: If it is more than `TOLERANCES` have.
        """
        most, least = TOLERANCES[precision]
        if not self.difference <= most * self.spread or (self.agreement < least and not self.is_noise):
            asked = "" if self.is_noise else f", and the top class equal on {least:.0%} or more"
            raise ValueError(
                f"the exported network does not agree with PyTorch and is not written: {self}. In {precision} at most "
                f"{most:.1%} is taken for rounding{asked}"
            )

    def __str__(self) -> str:
        percent = 100 * (self.difference / self.spread if self.spread else float(self.difference > 0))
        what = "images of noise" if self.is_noise else "images of val"
        return (
            f"on {self.images} {what} logits differ by {self.difference:.3g} at most, {percent:.2g}% of their spread "
            f"of {self.spread:.4g}, and the top class is the same on {self.agreement:.1%}"
        )


@dataclass(frozen=True)
class Speed:
    """Medians of a few rounds in turns, seconds for one image: a quick look and no benchmark.

    Attributes:
        exported: Of the exported network.
        pytorch: Of PyTorch's, in float32.
        threads: That both have.
    """

    exported: float
    pytorch: float
    threads: int


def draw_images(trained: Trained, number: int = 16) -> torch.Tensor:
    """Noise as a network takes images, (N, C, H, W), always the same."""
    return torch.randn(number, *trained.data_config["input_size"], generator=torch.Generator().manual_seed(0))


def read_images(trained: Trained, files: Sequence[str]) -> torch.Tensor:
    """Image files as a network takes them, (N, C, H, W).

    Raises:
        OSError: If one cannot be opened.
        ValueError: If one cannot be read as an image.
    """
    return torch.stack([trained.transform(open_image(file, trained.image_mode)) for file in files])


@torch.inference_mode()
def compare(network: nn.Module, exported: ExportedModel, images: torch.Tensor, is_noise: bool) -> Comparison:
    """Run images through both networks, on the CPU.

    Raises:
        ValueError: If the outputs of the one of PyTorch are not finite.
    """
    expected = torch.cat([network(batch) for batch in images.split(8)])
    if not expected.isfinite().all():
        raise ValueError("the network's outputs are not finite, so there is nothing to export")
    found = torch.cat([exported(batch) for batch in images.split(3)])  # a number that none was traced with
    return Comparison(
        images=len(images),
        is_noise=is_noise,
        difference=(found - expected).abs().max().item(),
        spread=(expected.max() - expected.min()).item(),
        agreement=(found.argmax(1) == expected.argmax(1)).double().mean().item(),
    )


@torch.inference_mode()
def measure_speed(network: nn.Module, exported: ExportedModel, image: torch.Tensor) -> Speed:
    """Run an image, (1, C, H, W), through both networks in turns."""
    seconds = {network: [], exported: []}
    for _ in range(_ROUNDS):
        for runner, found in seconds.items():
            started = time.perf_counter()
            runner(image)
            found.append(time.perf_counter() - started)
    medians = [statistics.median(found) for found in seconds.values()]
    return Speed(pytorch=medians[0], exported=medians[1], threads=torch.get_num_threads())
