"""Predict the images that come with this package.

Print what a small HiFuse says of eight test images of PneumoniaMNIST, four of each class, in calibrated probabilities.
Network and images lie in the package, so nothing is downloaded, and no extra is needed. The network is for trying this
package: no diagnosis may rest on it.
"""

import shlex
from argparse import ArgumentParser, Namespace

from ..packaged import packaged_calibration, packaged_examples, packaged_weights


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m hifuse_timm example`, of which there are none."""


def run(args: Namespace) -> None:
    """Print the probability of each class for each image, and the commands that go on with them."""
    from ..inference import load_calibration, predict_files
    from ..loading import find_device, load_trained

    images, model = packaged_examples(), f"local-dir:{packaged_weights()}"
    device = find_device()
    network = load_trained(model, device=device)
    (predicted,) = predict_files([list(map(str, images))], [network], device=device)
    print("true class, image".ljust(24), *(f"{name:>10}" for name in network.class_names))
    calibration = load_calibration(packaged_calibration(), network)
    for image, probs in zip(images, calibration.apply(predicted.probs), strict=True):
        wrong = [] if image.stem.startswith(network.class_names[probs.argmax()]) else [" wrong"]
        print(image.stem.replace("-", ", ").ljust(24), *(f"{prob:>10.2%}" for prob in probs.tolist()), *wrong)
    paths = (model, packaged_weights() / "examples", packaged_calibration())
    weights, folder, rules = (shlex.quote(str(path)) for path in paths)
    predict = f"python -m hifuse_timm predict {folder} --model {weights} --pretrained"
    print(f"\n{packaged_weights() / 'README.md'} says what the network is. These commands go on with it:")
    print(f"{predict} --calibration {rules} --csv predictions.csv")
    print(f"python -m hifuse_timm explain {folder} --model {weights} --out heat.png")
