"""Seeded, stratified splits of exact sizes that keep groups whole."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction

__all__ = ["apportion", "draw", "split_covid19ct", "split_isic2018", "split_kvasir"]


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
    num_rest, num_test = apportion(len(labels), (70, 30))
    rng = random.Random(seed)
    test = draw(labels, groups, num_test, rng)
    return _split_rest(labels, groups, test, apportion(num_rest, (1 - val_share, val_share))[1], rng)


def split_covid19ct(labels: Sequence[str], groups: Sequence[str], seed: int) -> list[str]:
    """Split 0.6:0.15:0.25, as Section 4.1 says: 448, 112 and 186 images; arguments as for `split_isic2018`."""
    _, num_val, num_test = apportion(len(labels), (60, 15, 25))
    rng = random.Random(seed)
    test = draw(labels, groups, num_test, rng)
    return _split_rest(labels, groups, test, num_val, rng)


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
    num_val = [apportion(len(half), (1 - val_share, val_share))[1] for half in (second, first)]
    return (
        _split_rest(labels, groups, first, num_val[0], rng),
        _split_rest(labels, groups, second, num_val[1], rng),
    )


def _split_rest(
    labels: Sequence[str], groups: Sequence[str], test: list[int], num_val: int, rng: random.Random
) -> list[str]:
    """Draw val from what is not tested."""
    splits = ["train"] * len(labels)
    for i in test:
        splits[i] = "test"
    rest = [i for i, split in enumerate(splits) if split == "train"]
    for i in draw([labels[i] for i in rest], [groups[i] for i in rest], num_val, rng):
        splits[rest[i]] = "val"
    return splits
