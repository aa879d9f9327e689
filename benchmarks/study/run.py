"""One training of a study: its name, its network, and its files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import timm

from hifuse_timm.files import write_json

from ..networks import peers
from ..networks.specs import OPTIONS, Spec, parse_spec
from ..training.history import History
from .records import read_record


def parse_models(models: Sequence[str], model_kwargs: Sequence[str] = ()) -> list[str]:
    """Specs of networks to train, `NAME` or `NAME[ARGUMENT=VALUE,...]`, with further arguments for all of them.

    Raises:
        ValueError: If there is no such network, or a spec asks for a form to run it in, not for a network.
    """
    specs = []
    for model in models:
        name, _, options = model.rstrip("]").partition("[")
        options = ",".join(filter(None, [options, *model_kwargs]))
        spec = parse_spec(f"{name}[{options}]" if options else name)
        forms = [option for option in OPTIONS if getattr(spec, option)]
        if forms or spec.fused_attn is not None:
            raise ValueError(
                f"models: {model} asks for {', '.join(forms) or 'no_fused_attn'}, expected NAME or "
                "NAME[ARGUMENT=VALUE,...] with arguments of the network alone"
            )
        if spec.form.library != "timm":
            other = peers.NAMES.get(spec.form.model, "none of timm's")
            raise ValueError(
                f"models: {spec.form.model} does not train by this name, which timm does not know: {other}"
            )
        specs.append(spec.text)
    if len(set(specs)) < len(specs):
        raise ValueError(f"models: {', '.join(specs)} has a network twice")
    return specs


@dataclass(frozen=True)
class Run:
    """A network that is trained with a seed.

    Attributes:
        model: Its spec.
        seed: Seed of the training.
    """

    model: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folders."""
        return f"{re.sub(r'[^A-Za-z0-9_.]+', '-', self.model).strip('-')}-seed{self.seed}"

    @property
    def spec(self) -> Spec:
        return parse_spec(self.model)

    @property
    def is_peer(self) -> bool:
        """Whether its network is one of mmpretrain's."""
        return self.spec.form.model in peers.NAMES.values()

    def model_kwargs(self, img_size: int) -> dict:
        """Arguments of the network for train.py, which does not tell it the size of the images."""
        form = self.spec.form
        own = timm.get_pretrained_cfg(form.model)
        sized = dict(img_size=img_size) if own.fixed_input_size and img_size != own.input_size[-1] else {}
        return sized | form.kwargs


@dataclass
class Record:
    """What `run.json` says of a run, beside the files of it.

    Attributes:
        model: Spec of the network.
        seed: Seed of the training.
        params: Number of its parameters.
        metric: What val was measured by, as `top1`.
        epochs: Number of epochs.
        chosen: Epoch of each choice of weights, counted from 0.
        evaluated: Conditions under which it was evaluated.
        sessions: Conditions of each session that trained it, with the `first_epoch` that it trained. What no session
            has was trained by hand.
    """

    model: str
    seed: int
    params: int
    metric: str
    epochs: int
    chosen: dict[str, int]
    evaluated: dict
    sessions: list[dict] = field(default_factory=list)

    @property
    def run(self) -> Run:
        return Run(self.model, self.seed)

    def save(self, folder: Path) -> None:
        """Write run.json, the last file of a run that is written."""
        write_json(folder / "run.json", dict(kind="accuracy-run", **asdict(self)))


def load_record(folder: Path) -> Record | None:
    """The record of the run in a folder; None where it is not at its end.

    Raises:
        ValueError: If run.json is something else.
    """
    path = folder / "run.json"
    if not path.exists():
        return None
    return read_record(path, Record, "accuracy-run")


def check_history(history: History, expected: dict) -> None:
    """Check that a folder of train.py is of this training, so that it can go on, or be taken as it is.

    Args:
        history: The folder.
        expected: Arguments of train.py as this training has them.

    Raises:
        ValueError: If it is of another training.
    """
    if not (history.folder / "args.yaml").exists():
        return
    found = history.settings()
    expected = json.loads(json.dumps(expected))  # tuples are lists in args.yaml
    changed = [
        f"{name} was {found.get(name)} and is {value}" for name, value in expected.items() if found.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"checkpoints: {history.folder} holds a training of something else: {'; '.join(changed)}; give another "
            "folder"
        )
