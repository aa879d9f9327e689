"""What the runs of a study have in common, as `study.json` and `recipe.yaml` in its folder have it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from hifuse_timm.datasets import DATASETS, read_description
from hifuse_timm.files import sha256, write_json, write_text
from hifuse_timm.image_folders import find_images
from hifuse_timm.recipes import recipe_path

from ..training.settings import count_classes, find_split, read_recipe
from .records import read_record

# what dataset.json says of how a dataset was split
_FACTS = ("name", "title", "split", "split_scheme", "seed", "val_share", "group_by", "prepared_by", "shared_with_train")


@dataclass
class Study:
    """What the runs of a study have in common.

    Attributes:
        dataset: Facts of the prepared dataset: those of its dataset.json; `counts`, the number of images of each split;
            `splits_sha256`, the checksum of its splits.csv, None where it has none.
        num_classes: Number of its classes.
        split: Split that the networks are evaluated on.
        recipe: Name of the recipe's file without ending.
        changes: Settings that replace those of the recipe.
        settings: Settings of train.py, those of the recipe with the changes.
        models: Specs of the networks, see `benchmarks.networks.specs`; the others are compared with the first.
    """

    dataset: dict
    num_classes: int
    split: str
    recipe: str
    changes: dict
    settings: dict
    models: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, data_dir: str, recipe: str | None, changes: dict) -> Study:
        """A study from the command line.

        Args:
            data_dir: Prepared dataset.
            recipe: A tag of a recipe, or the path of one; None for that of the dataset.
            changes: Settings that replace those of the recipe.

        Raises:
            ValueError: If the dataset or the recipe cannot be used.
        """
        split = find_split(data_dir)
        description = read_description(data_dir)
        path = find_recipe(recipe, description.get("name"))
        root = Path(data_dir)
        splits = root / "splits.csv"
        dataset = {name: description.get(name) for name in _FACTS} | dict(
            title=description.get("title") or root.absolute().name,
            counts={name: len(find_images(root / name).samples) for name in dict.fromkeys(("train", "val", split))},
            splits_sha256=sha256(splits) if splits.exists() else None,
        )
        settings = read_recipe(path) | changes
        return cls(dataset, count_classes(data_dir), split, path.stem, changes, settings)

    @property
    def img_size(self) -> int:
        """Pixels a side of the images; train.py's own default is that of the network, 224 for those of the paper."""
        return self.settings.get("img_size") or 224

    @property
    def epochs(self) -> int:
        """Number of epochs; 300 is train.py's own default."""
        return self.settings.get("epochs", 300)

    @property
    def shared(self) -> str:
        """How many of the images that are evaluated show a patient, or what the groups are, that train has as well."""
        shared = self.dataset["shared_with_train"] or {}
        if self.split not in shared:
            return "not known"
        return f"{shared[self.split]} of {self.dataset['counts'][self.split]}"

    def save(self, out: Path) -> None:
        """Write study.json, and recipe.yaml for train.py."""
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "study.json", dict(kind="accuracy-study", **asdict(self)))
        write_recipe(out / "recipe.yaml", self.settings)

    def adopt(self, out: Path) -> None:
        """Take over the networks of the study that a folder holds, in front of the own ones.

        Raises:
            ValueError: If it is a study of another dataset or recipe, or something else.
        """
        if not (out / "study.json").exists():
            return
        then = load_study(out)
        changed = [
            f"{name} was {old} and is {new}"
            for name, old, new in (*_changes(then.dataset, self.dataset), *_changes(then.settings, self.settings))
            if name not in ("prepared_by", "title")
        ]
        if changed:
            raise ValueError(f"out: {out} holds a study of something else: {'; '.join(changed)}; give another folder")
        self.models = list(dict.fromkeys([*then.models, *self.models]))


def write_recipe(path: Path, settings: dict) -> None:
    """Write settings for the `--config` of train.py."""
    write_text(path, yaml.safe_dump(settings, sort_keys=False, default_flow_style=None))


def load_study(out: Path) -> Study:
    """The study that a folder holds.

    Raises:
        ValueError: If it holds none.
    """
    return read_record(out / "study.json", Study, "accuracy-study")


def find_recipe(recipe: str | None, dataset: str | None) -> Path:
    """The path of a recipe.

    Args:
        recipe: Its tag or its path; None for that of the dataset.
        dataset: Short name of the dataset, where it has one.

    Raises:
        ValueError: If there is none.
    """
    own = {path.stem: path for path in Path(__file__).parents[1].glob("*.yaml")}  # of datasets beyond the paper's
    recipes = {tag: recipe_path(tag) for tag in DATASETS} | own
    if recipe is None and dataset not in recipes:
        raise ValueError(
            f"recipe: missing, and {dataset or 'the dataset'} has none of its own: expected one of "
            f"{', '.join(recipes)}, or a file of settings of train.py"
        )
    tag = recipe or dataset
    return recipes.get(tag, Path(tag))


def _changes(then: dict, now: dict) -> list[tuple[str, object, object]]:
    """Name, old and new value of what differs."""
    return [(name, then.get(name), now.get(name)) for name in {**then, **now} if then.get(name) != now.get(name)]
