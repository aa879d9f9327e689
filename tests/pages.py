"""Runs for pages, made up, with names as strangers may choose them.

As a script, `python tests/pages.py DIR` writes what `evaluate` writes of two such runs, and the page of both.
"""

from dataclasses import replace
from pathlib import Path

import torch

from hifuse_timm.evaluate.measuring import measure
from hifuse_timm.files import write_json
from hifuse_timm.predictions import Predictions, write_predictions
from hifuse_timm.report import Run, find_mistakes, find_uncertain

# Each ends what it stands in, or runs in it, if it is not escaped.
HOSTILE = [
    "<script>document.title = 'run'</script>",
    '"><img src=x onerror="document.title = \'run\'">',
    "' style='position: fixed' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}</style></title>",
    "scan\u202egnp.exe\u2066",
    "long" * 200,
    "two\nlines\x1b[31m",
    "a & b &lt; https://example.org/x.png url(//example.org)",
]
CLASSES = ["melanoma", HOSTILE[0], HOSTILE[5]]


def predict(classes=CLASSES, images: int = 90, seed: int = 0, per_group: int = 3) -> Predictions:
    """Probabilities that tell something of the classes; the names of the files are hostile ones and others."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(images) % len(classes)
    logits = torch.randn(images, len(classes), generator=generator, dtype=torch.float64)
    logits += 1.5 * torch.nn.functional.one_hot(targets, len(classes))
    names = [f"test/{HOSTILE[i % len(HOSTILE)]} {i}.png" for i in range(images)]
    groups = [f"patient {i // per_group}" for i in range(images)]
    return Predictions(names, list(classes), logits.softmax(1), targets, groups if per_group > 1 else None)


def make_run(predictions: Predictions, name: str = "run", **fields) -> Run:
    """A run of these predictions; fields of its result are as they are given."""
    p = predictions
    result = dict(
        **measure(p.classes, p.probs, p.targets, p.groups, 50, 0),
        kind="evaluation",
        model="hifuse_tiny",
        architecture="hifuse_tiny",
        dataset="isic2018",
        title="ISIC 2018",
        split="test",
        origins=dict(weights="weights in x.pth.tar", images="224x224 pixels", classes="named by dataset.json"),
        paper=dict(method="HiFuse_Tiny", accuracy=0.8299, f1=0.7299, precision=0.7367, recall=0.7287),
        in_train=dict(content=0, group=4),
        conditions=dict(checkpoint="x.pth.tar", fuse=False, batch_size=1, mean=[0.5, 0.25], device="cpu"),
    )
    return Run(name, result | fields, p, mistakes=find_mistakes(p), uncertain=find_uncertain(p))


def write_run(folder: Path, run: Run) -> tuple[Path, Path]:
    """Write what `evaluate --json` and `evaluate --predictions` write of a run."""
    # a name that is no UTF-8, or holds a line end, is no harm to CSV
    write_json(folder / f"{run.name}.json", run.result)
    write_predictions(folder / f"{run.name}.csv", run.predictions)
    return folder / f"{run.name}.json", folder / f"{run.name}.csv"


def hostile_run(picture: str | None = None) -> Run:
    """A run all of whose words are hostile, with a picture in the place of each of its images."""
    run = make_run(
        predict(),
        HOSTILE[1],
        title=HOSTILE[1],
        model=HOSTILE[2],
        split=HOSTILE[3],
        origins=dict(zip(HOSTILE, HOSTILE, strict=True)),
        conditions=dict(zip(HOSTILE, HOSTILE, strict=True)),
    )
    shown = [replace(example, picture=picture, heat_map=picture) for example in run.mistakes]
    return replace(run, mistakes=shown)
