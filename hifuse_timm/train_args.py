"""The arguments of timm's train.py in a checkpoint. They come from strangers: each is of its kind, or an error."""

from collections.abc import Callable, Collection

__all__ = ["CROP_MODES", "check_train_args"]

CROP_MODES = ("center", "squash", "border")  # how timm fits an image of another shape into a square

_MOST_VALUES = 1000  # in one argument: lists may hold each other, and then have no end

_LARGEST_SIDE = 4096  # pixels; images of more fill the memory


def _whole(low: int, high: int) -> tuple[Callable, str]:
    return lambda value: type(value) is int and low <= value <= high, f"a whole number from {low:,} to {high:,}"


def _number(low: float, high: float) -> tuple[Callable, str]:
    return lambda value: type(value) in (int, float) and low <= value <= high, f"a number from {low:,g} to {high:,g}"


def _list_of(item: tuple[Callable, str], lengths: Collection[int], expected: str) -> tuple[Callable, str]:
    is_right, words = item
    return (
        lambda value: isinstance(value, (list, tuple)) and len(value) in lengths and all(map(is_right, value)),
        f"{expected}, each {words}",
    )


def _one_of(*names: str) -> tuple[Callable, str]:
    return lambda value: isinstance(value, str) and value in names, f"one of {', '.join(names)}"


_SIZE = _whole(1, _LARGEST_SIDE)
_CHANNELS = range(1, 1025)
_TEXT = (lambda value: isinstance(value, str) and value.isprintable(), "a line of text")
_FLAG = (lambda value: value in (False, True), "True or False")
_ANY_NUMBER = _number(-1e12, 1e12)

# What the arguments that are used here may be, and that in words.
_EXPECTED = {
    "model": _TEXT,
    "num_classes": _whole(0, 1_000_000),
    "in_chans": _whole(1, 1024),
    "input_size": _list_of(_SIZE, (3,), "channels, height and width"),
    "img_size": _SIZE,
    "crop_pct": _number(0.1, 2),
    "crop_mode": _one_of(*CROP_MODES),
    "mean": _list_of(_number(-1000, 1000), _CHANNELS, "a list of numbers, one or one a channel"),
    "std": _list_of(_number(1e-6, 1000), _CHANNELS, "a list of numbers, one or one a channel"),
    "interpolation": _one_of("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"),
    "input_img_mode": _one_of("L", "LA", "RGB", "YCbCr", "HSV", "LAB", "RGBA", "CMYK"),
    "gp": _TEXT,
    "bn_eps": _number(1e-12, 1),
    "model_kwargs": (lambda value: isinstance(value, dict), "a dict of plain values"),
    "class_map": _TEXT,
    "epochs": _whole(0, 10**9),
    "model_ema_decay": _number(0, 1),
    # what model cards list
    **dict.fromkeys(
        "batch_size grad_accum_steps lr weight_decay layer_decay momentum min_lr warmup_epochs warmup_lr "
        "cooldown_epochs clip_grad drop drop_path mixup cutmix smoothing reprob hflip vflip seed".split(),
        _ANY_NUMBER,
    ),
    **dict.fromkeys(("opt", "sched", "aa"), _TEXT),
    **dict.fromkeys(("scale", "ratio"), _list_of(_ANY_NUMBER, (2,), "two numbers")),
    **dict.fromkeys(("model_ema", "amp"), _FLAG),
}


def check_train_args(args: dict) -> dict:
    """The arguments in a checkpoint, if they are of the kinds that train.py writes.

    None and an empty string are not set, and right everywhere. Of the arguments that are not used here, those that are
    no plain values (numbers, strings, and lists, tuples and dicts of them) are left out.

    Raises:
        ValueError: If one that is used here is of another kind or out of range; names it, says what it was and what
            would be right.
    """
    checked = {}
    for name, value in args.items():
        if not isinstance(name, str):
            raise ValueError(f"its training arguments have a {type(name).__name__} as a name, expected strings")
        is_right, expected = _EXPECTED.get(name, (lambda value: True, ""))
        is_plain = _is_plain(value)
        if is_plain and (value in (None, "") or is_right(value)):
            checked[name] = value
        elif name in _EXPECTED:
            found = f"{value!r:.80}" if is_plain else f"a {type(value).__name__} that is no plain value"
            raise ValueError(
                f"its training argument {name} is {found}, expected {expected} (a file of the weights alone has none)"
            )
    return checked


def _is_plain(value: object) -> bool:
    """Whether a value is of numbers, strings, and lists, tuples and dicts alone, and not of too many of them."""
    values, count = [value], 0
    while values:
        value = values.pop()
        count += 1
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                return False
            values += value.values()
        elif isinstance(value, (list, tuple)):
            values += value
        elif not isinstance(value, (str, int, float, bool, type(None))):
            return False
        if count + len(values) > _MOST_VALUES:
            return False
    return True
