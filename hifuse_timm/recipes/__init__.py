"""Training recipes for the datasets of the paper: YAML files for the `--config` of timm's train.py."""

from pathlib import Path

from timm.loss import compute_class_weights

from ..datasets import DATASETS, read_description
from ..errors import shorten

__all__ = ["make_balanced_recipe", "recipe_path"]

_BALANCED = """
# balanced: in the place of cross-entropy, binary cross-entropy of each class against the rest, in which the images of
# the class weigh as much as all others together. Images in train, {num_images:,}:
{counts}
loss: bce
loss_pos_weight: "{weights}"
"""


def recipe_path(tag: str) -> Path:
    """Path of the recipe for a dataset.

    Args:
        tag: Tag of the dataset, a key of `DATASETS`.

    Raises:
        ValueError: If there is no dataset of this tag.
    """
    if tag not in DATASETS:
        raise ValueError(f"recipe {tag!r} does not exist: expected one of {', '.join(DATASETS)}")
    return Path(__file__).with_name(f"{tag}.yaml")


def make_balanced_recipe(tag: str, data_dir: str | Path) -> str:
    """The recipe for a dataset, with a loss that makes up for classes of few images.

    The weights are those that train.py itself derives by `--loss-pos-weight neg_pos`, from the counts of dataset.json.

    Args:
        tag: Tag of the dataset, a key of `DATASETS`.
        data_dir: Folder of the dataset, as `prepare` writes it.

    Raises:
        ValueError: If there is no dataset of this tag, data_dir is of another one, or its dataset.json has no counts.
        FileNotFoundError: If there is no such folder.
    """
    recipe = recipe_path(tag).read_text(encoding="utf-8")
    description, labels = read_description(data_dir), list(DATASETS[tag].labels)
    if (classes := description.get("classes", [])) != labels:
        raise ValueError(
            f"data_dir {data_dir} has {f'the classes {shorten(classes)}' if classes else 'no dataset.json'}, the "
            f"recipe {tag} is for {shorten(labels)}"
        )
    counts = description.get("counts", {}).get("train", {})
    if not all(counts.get(label) for label in labels):
        raise ValueError(f"data_dir {data_dir} has no counts of all classes in train in its dataset.json: prepare it")
    counts = {label: counts[label] for label in labels}
    num_images = sum(counts.values())
    _, weights = compute_class_weights(list(counts.values()), num_images, "neg_pos")
    return recipe.replace(f'"$(python -m hifuse_timm recipe {tag})"', "THIS_FILE") + _BALANCED.format(
        num_images=num_images,
        counts="\n".join(f"#   {label}: {count:,}" for label, count in counts.items()),
        weights=",".join(f"{weight:.6g}" for weight in weights.tolist()),
    )
