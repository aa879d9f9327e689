"""Seeded, stratified splits that keep groups whole: exact for the paper's datasets, else scikit-learn's."""

import random
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from ..errors import require

__all__ = [
    "apportion",
    "check_groups",
    "draw",
    "draw_val",
    "split_covid19ct",
    "split_folds",
    "split_isic2018",
    "split_kvasir",
    "split_shares",
    "split_val",
]

_MANY = 20  # folds of which some make up a share
_DRAWS = 20  # of folds, until every split has every class
_PICKS = 500  # of folds to make up a share


def apportion(total: int, weights: Sequence[int | Fraction]) -> list[int]:
    """Share out a total in whole numbers by largest remainders, of equal ones the later first."""
    exact = [Fraction(total) * weight / sum(weights) for weight in weights]
    shares = [int(share) for share in exact]
    order = sorted(range(len(exact)), key=lambda i: (exact[i] - shares[i], i), reverse=True)
    for i in order[: total - sum(shares)]:
        shares[i] += 1
    return shares


def draw(labels: Sequence[str], groups: Sequence[str], count: int, rng: random.Random) -> list[int]:
    """Draw a stratified subset that takes each group whole or not at all.

    The larger groups of a class are drawn first, so that the single items fill up the size exactly. Where a class has
    too few of those, it comes out short by less than a group.

    Args:
        labels: Class of each item. A group of several classes counts as its most frequent one.
        groups: Group of each item.
        count: Size of the subset.
        rng: The draw depends on its state and on labels and groups, not on the order of the items. Only `random()` is
            called, whose stream stays the same in all versions of Python.

    Returns:
        Indices of the items drawn, ascending.
    """
    members = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    strata = defaultdict(list)
    for group in sorted(members):
        frequencies = Counter(labels[index] for index in members[group])
        strata[min(frequencies, key=lambda label: (-frequencies[label], label))].append(group)

    sizes = [sum(len(members[group]) for group in strata[label]) for label in sorted(strata)]
    drawn = []
    for label, size, quota in zip(sorted(strata), sizes, apportion(count, sizes), strict=True):
        keys = {group: rng.random() for group in strata[label]}
        for group in sorted(strata[label], key=lambda group: (-len(members[group]), keys[group])):
            step = len(members[group])
            # selection sampling: each group by the share still wanted, and surely where the rest would not do
            if step <= quota and (rng.random() * size < quota or size - step < quota):
                drawn += members[group]
                quota -= step
            size -= step
    return sorted(drawn)


def split_isic2018(
    labels: Sequence[str], groups: Sequence[str], seed: int, val_share: Fraction = Fraction(1, 10)
) -> list[str]:
    """Split 70:30, as Section 4.1 does: 7,010 images for train and val, 3,005 for test.

    Args:
        labels: Class of each image.
        groups: Group of each image; a group stays in one split.
        seed: Seed of the draw.
        val_share: Share of val in train and val together.

    Returns:
        Split of each image.
    """
    rng = random.Random(seed)
    test = draw(labels, groups, apportion(len(labels), (70, 30))[1], rng)
    return draw_val(labels, groups, _mark(test, len(labels)), val_share, rng)


def draw_val(
    labels: Sequence[str], groups: Sequence[str], splits: Sequence[str], val_share: Fraction, rng: random.Random
) -> list[str]:
    """Draw a share of what is in train for val."""
    num_val = apportion(splits.count("train"), (1 - val_share, val_share))[1]
    return _draw_val(labels, groups, splits, num_val, rng)


def split_covid19ct(labels: Sequence[str], groups: Sequence[str], seed: int) -> list[str]:
    """Split 0.6:0.15:0.25, as Section 4.1 says: 448, 112 and 186 images; arguments as for `split_isic2018`."""
    _, num_val, num_test = apportion(len(labels), (60, 15, 25))
    rng = random.Random(seed)
    test = draw(labels, groups, num_test, rng)
    return _draw_val(labels, groups, _mark(test, len(labels)), num_val, rng)


def split_kvasir(
    labels: Sequence[str], groups: Sequence[str], seed: int, val_share: Fraction = Fraction(1, 10)
) -> tuple[list[str], list[str]]:
    """Split 50:50 for two folds, as Section 4.1 does: each half is the test set of one, train and val of the other.

    Args are those of `split_isic2018`; `val_share` is that in the half which is not tested.

    Returns:
        Split of each image in the first fold, and in the second.
    """
    rng = random.Random(seed)
    first = draw(labels, groups, apportion(len(labels), (1, 1))[1], rng)
    second = sorted(set(range(len(labels))) - set(first))
    return tuple(draw_val(labels, groups, _mark(half, len(labels)), val_share, rng) for half in (first, second))


def _mark(test: list[int], total: int) -> list[str]:
    """The splits where these are tested and the rest is for train."""
    tested = set(test)
    return ["test" if i in tested else "train" for i in range(total)]


def _draw_val(
    labels: Sequence[str], groups: Sequence[str], splits: Sequence[str], num_val: int, rng: random.Random
) -> list[str]:
    splits = list(splits)
    rest = [i for i, split in enumerate(splits) if split == "train"]
    for i in draw([labels[i] for i in rest], [groups[i] for i in rest], num_val, rng):
        splits[rest[i]] = "val"
    return splits


def check_groups(labels: Sequence[str], groups: Sequence[str], splits: int) -> None:
    """Check that every class has a group for each split.

    Raises:
        ValueError: If not; names the classes.
    """
    groups_of = defaultdict(set)
    for label, group in zip(labels, groups, strict=True):
        groups_of[label].add(group)
    few = [f"{label} ({len(of_class)})" for label, of_class in sorted(groups_of.items()) if len(of_class) < splits]
    if few:
        raise ValueError(
            f"classes with fewer groups (patients, or images of their own) than the {splits} splits: {', '.join(few)}"
        )


def split_shares(
    labels: Sequence[str], groups: Sequence[str], seed: int, test_share: Fraction, val_share: Fraction
) -> list[str]:
    """Split by shares with scikit-learn's StratifiedGroupKFold, or StratifiedKFold where no group has two items.

    Args:
        labels: Class of each item.
        groups: Group of each item; a group stays in one split.
        seed: Seed of the draw, which depends on the order of the items.
        test_share: Share of test in all; groups and whole folds come near it.
        val_share: Share of val in train and val together.

    Returns:
        Split of each item.

    Raises:
        ValueError: If a class has fewer groups than there are splits, or no draw has every class in every split.
    """
    check_groups(labels, groups, 2 + (val_share > 0))
    random_state = np.random.RandomState(seed)
    test = _draw_share(labels, groups, test_share, 1 + (val_share > 0), random_state)
    return split_val(labels, groups, ["test" if tested else "train" for tested in test], val_share, random_state)


def split_folds(
    labels: Sequence[str], groups: Sequence[str], seed: int, folds: int, val_share: Fraction
) -> list[list[str]]:
    """Split into folds, each the test set of one and train and val of the others; otherwise as `split_shares`.

    Returns:
        Split of each item, by fold.
    """
    check_groups(labels, groups, max(folds, 2 + (val_share > 0)))
    random_state = np.random.RandomState(seed)
    for _ in range(_DRAWS):
        assigned = _assign_folds(labels, groups, folds, random_state)
        if _count_groups(labels, groups, assigned, folds).all():
            splits = [["test" if a == fold else "train" for a in assigned] for fold in range(folds)]
            return [split_val(labels, groups, split, val_share, random_state) for split in splits]
    raise ValueError(f"no draw of {_DRAWS} has every class in each of {folds} folds: too few groups; give fewer folds")


def split_val(
    labels: Sequence[str],
    groups: Sequence[str],
    splits: Sequence[str],
    val_share: Fraction,
    random_state: np.random.RandomState,
) -> list[str]:
    """Draw val from the items whose split is train, as `split_shares` does."""
    splits = np.array(splits, dtype=object)
    if val_share > 0:
        rest = np.flatnonzero(splits == "train")
        check_groups(_pick(labels, rest), _pick(groups, rest), 2)
        drawn = _draw_share(_pick(labels, rest), _pick(groups, rest), val_share, 1, random_state)
        splits[rest[drawn]] = "val"
    return splits.tolist()


def _pick(items: Sequence[str], which: np.ndarray) -> list[str]:
    return np.asarray(items, dtype=object)[which].tolist()


def _draw_share(
    labels: Sequence[str], groups: Sequence[str], share: Fraction, leave: int, random_state: np.random.RandomState
) -> np.ndarray:
    """Draw a share of the items: some of many folds, those nearest to the share among picks that have every class.

    At least `leave` groups of every class are left.
    """
    most = min(len(set(groups)), max(Counter(labels).values()))  # scikit-learn makes no more folds
    part = share.limit_denominator(min(_MANY, most))
    if part in (0, 1):
        part = abs(part - Fraction(1, min(most, round(1 / min(share, 1 - share)))))
    finer = max(1, min(_MANY, most) // part.denominator)
    for times in (1, *[finer] * _DRAWS):  # few folds are drawn sooner, of many there are more picks
        taken, folds = part.numerator * times, part.denominator * times
        assigned = _assign_folds(labels, groups, folds, random_state)
        counts = _count_groups(labels, groups, assigned, folds)
        picks = np.array([random_state.permutation(folds) < taken for _ in range(_PICKS)])
        drawn = picks @ counts
        picks = picks[(drawn >= 1).all(1) & (counts.sum(0) - drawn >= leave).all(1)]
        if len(picks):
            sizes = picks @ np.bincount(assigned, minlength=folds)
            return picks[np.abs(sizes - float(share * len(labels))).argmin()][assigned]
    raise ValueError(
        f"no draw of {_DRAWS} has every class on both sides of a share of {float(share):g}: too few groups in a class, "
        "or too small a share"
    )


def _count_groups(labels: Sequence[str], groups: Sequence[str], assigned: np.ndarray, folds: int) -> np.ndarray:
    """How many groups of each class are in each fold."""
    numbers = {label: number for number, label in enumerate(sorted(set(labels)))}
    counts = np.zeros((folds, len(numbers)), int)
    for fold, label, _ in set(zip(assigned.tolist(), labels, groups, strict=True)):
        counts[fold, numbers[label]] += 1
    return counts


def _assign_folds(
    labels: Sequence[str], groups: Sequence[str], folds: int, random_state: np.random.RandomState
) -> np.ndarray:
    """The fold of each item."""
    selection = require("sklearn.model_selection", "medical")
    grouped = len(set(groups)) < len(groups)
    kind = selection.StratifiedGroupKFold if grouped else selection.StratifiedKFold
    splitter = kind(folds, shuffle=True, random_state=random_state.randint(2**31))
    numbers = {label: number for number, label in enumerate(sorted(set(labels)))}
    assigned = np.empty(len(labels), int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a class is not in every fold: looked at by the caller
        held = splitter.split(assigned, [numbers[label] for label in labels], groups)
        for fold, (_, indices) in enumerate(held):
            assigned[indices] = fold
    return assigned
