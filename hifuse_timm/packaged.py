"""The trained network that lies in the package, and images to try it on; `README.md` beside them says what they are."""

from pathlib import Path

__all__ = ["CREDIT", "packaged_calibration", "packaged_examples", "packaged_weights"]

CREDIT = "Test images of PneumoniaMNIST: Kermany et al. 2018, Yang et al. 2023, CC BY 4.0."


def packaged_weights() -> Path:
    """Folder of a narrow hifuse_tiny trained on PneumoniaMNIST, which timm loads as `local-dir:FOLDER`.

    It takes 64x64 pixels and knows two classes, normal and pneumonia. It is no medical device.
    """
    return Path(__file__).with_name("weights") / "pneumoniamnist"


def packaged_calibration() -> Path:
    """What `calibrate` wrote for this network, on the validation images of PneumoniaMNIST: a temperature."""
    return packaged_weights() / "calibration.json"


def packaged_examples() -> list[Path]:
    """Test images of PneumoniaMNIST, 28x28 pixels and grey, as CLASS-NAME.png: four of each class, CC BY 4.0."""
    return sorted((packaged_weights() / "examples").glob("*.png"))
