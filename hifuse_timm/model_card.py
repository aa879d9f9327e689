"""The README of a published repository: what the weights are, how they were made, and what they reach."""

import re

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .calibration import Calibration
from .checkpoint import Checkpoint
from .datasets import Dataset
from .loading import Trained
from .operating_points import describe_temperature, tabulate_calibration
from .runs import METRICS
from .tables import format_markdown
from .text import escape_markdown, printable
from .version import REPOSITORY

__all__ = ["make_card"]

_PAPER_URL = "https://arxiv.org/abs/2209.10218"

# What the Hub calls our metrics, where it has another name.
_HUB_METRICS = dict(auroc="roc_auc", mcc="matthews_correlation", brier="brier_score")

# What of train.py's arguments makes up the recipe; the rest is of the machine, its paths (private) or its logs.
_RECIPE = (
    "epochs batch_size grad_accum_steps opt lr weight_decay layer_decay momentum sched min_lr warmup_epochs "
    "warmup_lr cooldown_epochs clip_grad drop drop_path mixup cutmix smoothing aa reprob color_jitter hflip vflip "
    "scale ratio img_size input_size loss loss_pos_weight model_ema model_ema_decay amp amp_dtype seed"
).split()


def make_card(
    repo_id: str,
    trained: Trained,
    tag: str,
    data: Dataset,
    results: dict[str, float],
    evaluation: dict,
    calibration: Calibration | None,
    half: bool,
    checksums: dict[str, str],
) -> ModelCard:
    """The card of a network that was trained on a dataset of this tag, and of files with these SHA-256 checksums."""
    model = trained.model
    name = model.pretrained_cfg["architecture"]
    card_data = ModelCardData(
        license=data.license,
        license_name=f"{tag}-terms" if data.license == "other" else None,
        license_link=data.url if data.license == "other" and _is_address(data.url) else None,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["timm", "transformers", "image-classification", "medical", "hifuse"],
        model_name=f"{name}.{tag}" if results else None,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=tag,
                dataset_name=printable(data.name),
                dataset_split=printable(evaluation["split"]) if evaluation else None,
                metric_type=_HUB_METRICS.get(metric, printable(metric)),
                metric_name=printable(metric),
                metric_value=value,
            )
            for metric, value in results.items()
        ]
        or None,
    )
    num_params = sum(p.numel() for p in model.parameters())
    size = "x".join(map(str, trained.data_config["input_size"][1:]))
    labels = format_markdown(["index", "class", "meaning"], [(i, k, v) for i, (k, v) in enumerate(data.labels.items())])
    metrics = (
        _describe_evaluation(results, evaluation)
        if evaluation
        else format_markdown(["metric", "value"], [(k, f"{v:.6g}") for k, v in results.items()])
    )
    settings = format_markdown(["setting", "value"], _describe_training(trained.checkpoint))
    calibrated = "" if calibration is None else _describe_calibration(repo_id, calibration.content, evaluation)
    weights = "averaged (EMA)" if trained.checkpoint.averaged else "trained"
    rounded = ", rounded to float16, which timm and transformers compute with in float32" if half else ""
    return ModelCard(
        f"""---
{card_data.to_yaml()}
---

# {escape_markdown(f"{name}.{tag}")}

[HiFuse]({_PAPER_URL}), a three-branch network for medical image classification that fuses the maps of a convolutional
and a shifted-window branch, trained on {escape_markdown(data.name)}. {num_params:,} parameters,
{model.num_classes} classes, images of {size} pixels. For research: it is no medical device, and no diagnosis may rest
on it.

## Load it

```python
import timm, hifuse_timm  # pip install git+{REPOSITORY}
model = timm.create_model("hf-hub:{repo_id}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

With `import hifuse_timm`, transformers loads it too: `AutoModelForImageClassification.from_pretrained("{repo_id}")`.

## Data and licence

{_describe_data(data)}

{labels}

## Metrics

{metrics or "None were given."}
{calibrated}
## Training

{settings or "The checkpoint holds no settings."}

## Files

`model.safetensors` holds the {weights} weights{rounded}. SHA-256:

{format_markdown(["file", "SHA-256"], checksums.items())}
"""
    )


def _describe_data(data: Dataset) -> str:
    """Where the data come from, what they are, their licence, and what to cite; as far as that is known."""
    name, url = escape_markdown(data.name), data.url
    if _is_address(url):
        origin = f"[{name}]({url})"
    else:
        origin = f"{name}, from {escape_markdown(url)}" if url else name
    cite = f" Please cite {escape_markdown(data.citation)}." if data.citation else ""
    return (
        f"Dataset: {origin}. {escape_markdown(data.description)}".rstrip()
        + f"\n\nLicence of the data: {escape_markdown(data.license_note)}. It carries over to these weights.{cite}"
    )


def _is_address(text: str) -> bool:
    """Whether a text is an address that a link of Markdown holds as it is."""
    return re.fullmatch(r"https?://[\w.~:/?#@!$&*+,;=%-]+", text, re.ASCII) is not None


def _describe_training(checkpoint: Checkpoint) -> list[tuple]:
    """The settings that made these weights: of the epochs those that were done, of an average only where it is one."""
    args = checkpoint.training_args
    recipe = {k: args[k] for k in _RECIPE if args.get(k) not in (None, False, "", [])}
    if not recipe.get("amp"):
        recipe.pop("amp_dtype", None)
    if not checkpoint.averaged:
        recipe = {k: value for k, value in recipe.items() if not k.startswith("model_ema")}
    if "epochs" in recipe:
        done = "an unknown number" if checkpoint.epoch is None else checkpoint.epoch + 1
        recipe["epochs"] = f"{done} of {recipe['epochs']}" if done != recipe["epochs"] else done
    return list(recipe.items())


def _describe_evaluation(results: dict[str, float], evaluation: dict) -> str:
    """What `evaluate` or `average` found: how it was measured, and a table with the paper's metrics beside ours."""
    counts, paper = evaluation["counts"], evaluation["paper"] or {}
    if evaluation["kind"] == "average":
        how = f"Means of {counts['runs']} runs on {counts['images']:,} images in all"
        header = ["metric", "mean", "standard deviation"]
        spread = {name: [f"{values['std']:.4f}"] for name, values in evaluation["spread"].items() if values}
        if "pooled" in evaluation:
            pooled = evaluation["pooled"]
            header += ["all predictions", _name_interval(pooled["intervals"])]
            for name in METRICS:
                value = "" if pooled[name] is None else f"{pooled[name]:.4f}"
                spread[name] = [*spread.get(name, [""]), value, _show_interval(pooled["intervals"][name])]
    else:
        how = f"On {counts['images']:,} images"
        header = ["metric", "value", _name_interval(evaluation["intervals"])]
        spread = {name: [_show_interval(evaluation["intervals"][name])] for name in METRICS}
    blank = [""] * (len(header) - 2)
    rows = [[name, f"{value:.4f}", *spread.get(name, blank)] for name, value in results.items()]
    if paper:
        header.append("paper")
        rows = [[*row, f"{paper[row[0]]:.4f}" if row[0] in paper else ""] for row in rows]
    return (
        f"{how} of the split {escape_markdown(evaluation['split'])}, by `python -m hifuse_timm evaluate`. F1, "
        "precision, recall, AUROC, average precision and the sensitivities, whose thresholds are chosen on these same "
        "images, are means over the classes (macro averages); ece is the expected calibration error, kappa is Cohen's, "
        "mcc is Matthews' correlation coefficient, brier the Brier score."
        + (" The paper's figures are at 224x224 pixels, on its own split." if paper else "")
        + f"\n\n{_describe_shared(evaluation)}\n\n"
    ) + format_markdown(header, rows)


def _describe_shared(evaluation: dict) -> str:
    """How many of the images that were measured on share a content, a group or a patient with one of train."""
    if evaluation["split"] == "train":
        return "**These are the images that it was trained on, and say nothing of others.**"
    if not evaluation["in_train"]:
        return "Whether train has any of these images, or others of their patients, is not known."
    phrases = {
        what: ("has", "have", "the content of an image of train")
        if what == "content"
        else ("is", "are", f"of a {escape_markdown(what)} that train has")
        for what in evaluation["in_train"]
    }
    shared = [
        f"{number:,} {phrases[what][number > 1]} {phrases[what][2]}"
        for what, number in evaluation["in_train"].items()
        if number
    ]
    if shared:
        return f"**Of these images, {', and '.join(shared)}: figures of others may be worse.**"
    none = ", and none ".join(f"{is_} {what}" for is_, _, what in phrases.values())
    unknown = "; whether train has others of their patients is not known" if set(phrases) == {"content"} else ""
    return f"Of these images, none {none}{unknown}."


def _name_interval(intervals: dict) -> str:
    over = f" over {intervals['groups']:,} groups" if intervals.get("unit") == "groups" else ""
    return f"{intervals['level']:.0%} interval{over}"


def _show_interval(interval: list[float] | None) -> str:
    return " - ".join(f"{bound:.4f}" for bound in interval or [])


def _describe_calibration(repo_id: str, calibration: dict, evaluation: dict) -> str:
    """The section on a calibration: what it is, how to use it, and what it reaches, by the evaluation where it can."""
    if of_evaluation := evaluation.get("calibration"):
        measured = of_evaluation["measured"]
        where = (
            f"On the split {escape_markdown(evaluation['split'])}, which it was not fitted on. The metrics above are "
            "of calibrated probabilities."
        )
    else:
        measured = calibration["measured"]
        where = "On the images that it was fitted on, so better than on others."
        if evaluation:
            where += " The metrics above are of probabilities without it."
    tables = tabulate_calibration(calibration | {"measured": measured})
    decides = calibration["thresholds"] or calibration["undecided_below"] is not None
    decided = "and what is decided at that temperature" if decides else "and no thresholds"
    return (
        f"""
## Calibration

`calibration.json` holds a {describe_temperature(calibration)}, fitted on {calibration["counts"]["images"]:,} images,
{decided}. timm and transformers leave it out; this takes it:

```
python -m hifuse_timm predict IMAGE --model hf-hub:{repo_id} --pretrained --calibration calibration.json --csv out.csv
```

{where}

"""
        + "\n\n".join(format_markdown(header, rows) for header, rows in tables)
        + "\n"
    )
