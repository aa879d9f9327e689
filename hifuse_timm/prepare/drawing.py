"""How the splits of one's own images are drawn, or that they are given."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ..errors import require
from .inventory import Inventory, Sample
from .splits import check_groups, split_folds, split_shares, split_val

__all__ = ["Draw"]

_TEST_SHARE, _VAL_SHARE = 0.2, 0.1


@dataclass(frozen=True)
class Draw:
    """A draw of splits.

    Attributes:
        seed: Its seed.
        test_share: Share of test in all, 0.2 by default.
        val_share: Share of val in train and val together, 0.1 by default; where splits are given, none.
        folds: Number of folds, in the place of `test_share`.

    Raises:
        ValueError: If one is not valid.
    """

    seed: int = 0
    test_share: float | None = None
    val_share: float | None = None
    folds: int | None = None

    def __post_init__(self):
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed {self.seed} is not valid: expected a number from 0 to {2**32 - 1}")
        if self.test_share is not None and not 0 < self.test_share < 1:
            raise ValueError(f"test_share {self.test_share} is not valid: expected a share between 0 and 1")
        if self.val_share is not None and not 0 <= self.val_share < 1:
            raise ValueError(f"val_share {self.val_share} is not valid: expected a share from 0 up to, but not, 1")
        if self.folds is not None and self.folds < 2:
            raise ValueError(f"folds {self.folds} is too few: expected 2 or more")
        if self.folds is not None and self.test_share is not None:
            raise ValueError(f"test_share {self.test_share} is not for folds, each of which is tested once")

    def check(self, inventory: Inventory) -> None:
        """Check before long work that the images can be split so.

        Raises:
            ValueError: If a share is given beside given splits, or a class has fewer groups than there are splits.
            RuntimeError: If scikit-learn, which draws, is not installed.
        """
        given = {sample.split for sample in inventory.samples}
        if given & {"train", "val", "test"}:
            if self.folds is not None or self.test_share is not None:
                option = "folds" if self.folds is not None else "test_share"
                raise ValueError(f"{option} {getattr(self, option)} is for a draw, and the splits are given")
            if self.val_share is not None and "val" in given:
                raise ValueError(f"val_share {self.val_share} is for a draw, and val is given")
            if "train" not in given:
                raise ValueError(f"the splits given are {', '.join(sorted(given))}: expected train among them")
        if self._is_drawn(inventory.samples):
            require("sklearn.model_selection", "medical")
        if given == {None} and not inventory.dicom_subjects:
            _, val_share = self._shares()
            labels, groups = _columns(inventory.samples)
            check_groups(labels, groups, max(self.folds or 0, 2 + (val_share > 0)))

    def split(self, samples: list[Sample]) -> dict[str, list[str]]:
        """The split of each image, by name of the fold."""
        if not samples:
            return {"": []}
        labels, groups = _columns(samples)
        test_share, val_share = self._shares()
        if not self._is_given(samples):
            if self.folds is None:
                return {"": split_shares(labels, groups, self.seed, test_share, val_share)}
            folds = split_folds(labels, groups, self.seed, self.folds, val_share)
            return {f"fold{number}": splits for number, splits in enumerate(folds, 1)}
        given = [sample.split for sample in samples]
        if self._is_drawn(samples):
            given = split_val(labels, groups, given, val_share, np.random.RandomState(self.seed))
        return {"": given}

    def describe(self, samples: list[Sample]) -> dict:
        """What dataset.json says of it."""
        test_share, val_share = map(float, self._shares())
        if self._is_given(samples):
            scheme = "as given" + ("; val stratified" if self._is_drawn(samples) else "")
        elif self.folds is None:
            scheme = f"stratified, {test_share:.4g} of all for test, {val_share:.4g} of the rest for val"
        else:
            scheme = f"stratified, {self.folds} folds, {val_share:.4g} of the rest for val"
        drawn = self._is_drawn(samples)
        return dict(split_scheme=scheme, seed=self.seed if drawn else None, val_share=val_share if drawn else None)

    def _shares(self) -> tuple[Fraction, Fraction]:
        test_share = _TEST_SHARE if self.test_share is None else self.test_share
        val_share = _VAL_SHARE if self.val_share is None else self.val_share
        return Fraction(str(test_share)), Fraction(str(val_share))

    def _is_given(self, samples: list[Sample]) -> bool:
        return any(sample.split for sample in samples)

    def _is_drawn(self, samples: list[Sample]) -> bool:
        return not self._is_given(samples) or bool(self.val_share)


def _columns(samples: list[Sample]) -> tuple[list[str], list[str]]:
    return [sample.label for sample in samples], [sample.group for sample in samples]
