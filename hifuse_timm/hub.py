"""Weights in from the Hugging Face Hub and out to it, one repository a variant and dataset."""

import hashlib
import json
import math
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import timm
from huggingface_hub import (
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    constants,
    get_hf_file_metadata,
    get_token,
    hf_hub_download,
    hf_hub_url,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from timm.data import resolve_data_config
from timm.models import resolve_pretrained_cfg
from torch import nn

from .checkpoint import (
    Architecture,
    check_architecture,
    convert_state_dict,
    read_checkpoint,
    read_training_args,
    save_weights,
    unwrap_state_dict,
)
from .files import replacing_folder

__all__ = ["DATASETS", "NAMESPACE", "Dataset", "check_tag", "download", "publish", "resolve_weights"]

# Owner of the published repositories.
NAMESPACE = os.environ.get("HIFUSE_TIMM_NAMESPACE") or "hifuse-timm"

_README_URL = "https://github.com/hifuse-timm/hifuse-timm"
_PAPER_URL = "https://arxiv.org/abs/2209.10218"
_WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")  # the second where a repository has no first
_PUBLISHED_NAMES = {"README.md", "config.json", "model.safetensors"}


@dataclass(frozen=True)
class Dataset:
    """A dataset of the paper that weights are published for.

    Attributes:
        name: Name to show.
        description: What it holds, in a sentence.
        labels: Description of each class by its short name, in the order of the class indices: that of the short names
            sorted, in which timm reads a folder of them.
        license: The Hub's identifier of the licence.
        license_note: What the licence says, or why there is none to name.
        url: Where it comes from.
        citation: What its authors ask to cite.
    """

    name: str
    description: str
    labels: dict[str, str]
    license: str
    license_note: str
    url: str
    citation: str

    @property
    def num_classes(self) -> int:
        return len(self.labels)


# By tag; the first is the default of the registered models.
DATASETS = {
    "isic2018": Dataset(
        name="ISIC 2018",
        description="Task 3 of the ISIC 2018 challenge: 10,015 dermoscopic images of skin lesions (HAM10000).",
        labels={
            "AKIEC": "actinic keratosis or intraepithelial carcinoma",
            "BCC": "basal cell carcinoma",
            "BKL": "benign keratosis",
            "DF": "dermatofibroma",
            "MEL": "melanoma",
            "NV": "melanocytic nevus",
            "VASC": "vascular lesion",
        },
        license="cc-by-nc-4.0",
        license_note="CC BY-NC 4.0",
        url="https://challenge.isic-archive.com/data/#2018",
        citation="Codella et al., Skin Lesion Analysis Toward Melanoma Detection 2018, arXiv:1902.03368; Tschandl et "
        "al., The HAM10000 dataset, Scientific Data 5, 180161 (2018)",
    ),
    "covid19ct": Dataset(
        name="COVID19-CT",
        description="746 slices of chest CT scans, 349 of them of COVID-19 patients, collected from publications.",
        labels={"CT_COVID": "COVID-19", "CT_NonCOVID": "no COVID-19"},
        license="unknown",
        license_note="not stated by its authors as far as we could find; the images come from publications with "
        "licences of their own",
        url="https://github.com/UCSD-AI4H/COVID-CT",
        citation="He et al., Sample-Efficient Deep Learning for COVID-19 Diagnosis Based on CT Scans, medRxiv (2020); "
        "Yang et al., COVID-CT-Dataset, arXiv:2003.13865",
    ),
    "kvasir": Dataset(
        name="Kvasir",
        description="4,000 endoscopic images of the gastrointestinal tract, 500 a class (version 1).",
        labels={
            "dyed-lifted-polyps": "dyed and lifted polyps",
            "dyed-resection-margins": "dyed resection margins",
            "esophagitis": "esophagitis",
            "normal-cecum": "normal cecum",
            "normal-pylorus": "normal pylorus",
            "normal-z-line": "normal Z-line",
            "polyps": "polyps",
            "ulcerative-colitis": "ulcerative colitis",
        },
        license="other",
        license_note="its own terms: research and education only, other uses by written permission",
        url="https://datasets.simula.no/kvasir",
        citation="Pogorelov et al., KVASIR: A Multi-Class Image Dataset for Computer Aided Gastrointestinal Disease "
        "Detection, ACM MMSys (2017)",
    ),
}


def check_tag(variant: str, tag: str | None) -> None:
    """Check that a variant has a registered tag of this name; none at all means the default.

    Raises:
        ValueError: If it has not; lists those that it has.
    """
    registered = [name.partition(".")[2] for name in timm.list_pretrained(f"{variant}.*")]
    if tag and tag not in registered:
        known = f"registered tags are {', '.join(registered)}" if registered else "the model has no tags"
        raise ValueError(f"{variant}.{tag} is not registered: {known}")


def resolve_weights(
    variant: str,
    pretrained_cfg: str | dict | timm.models.PretrainedCfg | None = None,
    pretrained_cfg_overlay: dict | None = None,
    cache_dir: str | Path | None = None,
    **kwargs,
) -> dict:
    """Find the pretrained weights of a model before it is built, and see that they are whole.

    Weights of the Hub are downloaded and their checksum is compared with the Hub's; timm then reads the local file.
    What the pretrained config says of classes and input channels becomes what the weights have, since timm drops the
    classifier without a word where the two differ. Only -1 classes stay: with them train.py asks for a new classifier.

    Args:
        variant: Name of the model without tag.
        pretrained_cfg: Tag or pretrained config, as for `timm.create_model`.
        pretrained_cfg_overlay: Entries to replace in the pretrained config; `file` names a checkpoint.
        cache_dir: Cache of the Hub's files, the client's own by default.
        **kwargs: Other arguments for `timm.models.build_model_with_cfg`.

    Returns:
        The arguments for `timm.models.build_model_with_cfg`.

    Raises:
        ValueError: If the weights are damaged or not those of a HiFuse.
        RuntimeError: If the pretrained config names no source of weights.
        OSError: If the weights cannot be had: not published (FileNotFoundError), access refused (PermissionError), no
            network (ConnectionError), a download broken off, a wrong checksum.
    """
    overlay = dict(pretrained_cfg_overlay or {})
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg=pretrained_cfg, pretrained_cfg_overlay=overlay)

    # in the order in which timm looks for them
    state_dict = path = None
    if cfg.source == "local-dir":
        path = next((p for name in _WEIGHTS_NAMES if (p := Path(cfg.file) / name).is_file()), None)
    elif cfg.source != "hf-hub" and cfg.state_dict:
        state_dict = unwrap_state_dict(cfg.state_dict)
    elif cfg.source != "hf-hub" and cfg.file:
        path = Path(cfg.file)
    elif cfg.hf_hub_id:
        path = download(cfg.hf_hub_id, cfg.hf_hub_filename, cache_dir)
    elif not cfg.url:
        raise RuntimeError(
            f"{variant} has no published weights; use pretrained=False for random ones, or "
            "pretrained_cfg_overlay=dict(file='checkpoint.pth') for a checkpoint of yours"
        )

    if path is not None:
        state_dict = read_checkpoint(path)
        overlay.update(file=str(path), source="")
    if state_dict is not None:
        architecture = Architecture.of(convert_state_dict(state_dict)[0])
        if overlay.get("num_classes") == -1:  # as train.py --pretrained-path says that it wants a new classifier
            registered = resolve_pretrained_cfg(variant, pretrained_cfg=pretrained_cfg)
            kwargs.setdefault("num_classes", registered.num_classes)
        else:
            overlay["num_classes"] = architecture.num_classes or 0
        overlay["input_size"] = (architecture.in_chans, *cfg.input_size[1:])
    return dict(kwargs, pretrained_cfg=pretrained_cfg, pretrained_cfg_overlay=overlay, cache_dir=cache_dir)


def download(hub_id: str, filename: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """Download a weights file from the Hub, unless it is in the cache, and compare it with the Hub's checksum.

    Args:
        hub_id: Repository, with @REVISION behind it for another than the newest.
        filename: File in the repository; by default model.safetensors, or pytorch_model.bin where there is none.
        cache_dir: Cache of the Hub's files, the client's own by default.

    Returns:
        Path of the file in the cache.

    Raises:
        ValueError: If hub_id is no repository id.
        OSError: If the file cannot be had: not published (FileNotFoundError), access refused (PermissionError), no
            network (ConnectionError), a download broken off, a wrong checksum.
    """
    repo_id, _, revision = hub_id.partition("@")
    filenames = _WEIGHTS_NAMES if filename in (None, *_WEIGHTS_NAMES) else (filename,)
    first_error = None
    for filename in filenames:
        try:
            path = hf_hub_download(
                repo_id,
                filename,
                revision=revision or None,
                cache_dir=cache_dir,
                local_files_only=isinstance(first_error, LocalEntryNotFoundError),  # asking again would take as long
            )
        except EntryNotFoundError as e:
            first_error = first_error or e
        except Exception as e:  # the client's HTTP library, and so its errors, differ from version to version
            raise _explain(e, repo_id, revision) from e
        else:
            _verify(Path(path), repo_id, filename)
            return Path(path)
    raise _explain(first_error, repo_id, revision) from first_error


def _explain(error: Exception, repo_id: str, revision: str) -> Exception:
    """The error to show for one of the Hub's client: what was asked for, and what to do."""
    response = error.response if isinstance(error, HfHubHTTPError) else None
    status = None if response is None else response.status_code
    if isinstance(error, HFValidationError):
        return ValueError(f"{repo_id!r} is no repository id of the Hub ({error}); see HIFUSE_TIMM_NAMESPACE")
    if isinstance(error, GatedRepoError):
        return PermissionError(
            f"weights at {repo_id} are gated: accept their terms at {constants.ENDPOINT}/{repo_id}, then give a token "
            "(hf auth login, or HF_TOKEN)"
        )
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, OfflineModeIsEnabled):
        return ConnectionError(
            f"weights of {repo_id} are not in the cache, and HF_HUB_OFFLINE forbids to download them: unset it once"
        )
    if isinstance(error, LocalEntryNotFoundError):
        return ConnectionError(
            f"weights of {repo_id} are not in the cache, and the Hub at {constants.ENDPOINT} cannot be reached "
            f"({_first_line(error.__cause__ or error)}): check the network, HF_ENDPOINT and the proxy, then try again"
        )
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"{repo_id} has no revision {revision!r}: see {constants.ENDPOINT}/{repo_id}")
    if isinstance(error, (RepositoryNotFoundError, EntryNotFoundError)):
        return FileNotFoundError(
            f"no weights are published at {repo_id} on the Hub ({constants.ENDPOINT}), or they are private and no "
            "token that may read them was given (hf auth login, or HF_TOKEN). What works:\n"
            "  pretrained=False for random weights\n"
            f"  HIFUSE_TIMM_NAMESPACE=NAME in the environment for weights in another namespace than {NAMESPACE}\n"
            "  pretrained_cfg_overlay=dict(file='checkpoint.pth') for a checkpoint of yours or of the authors' code\n"
            f"  training: {_README_URL}#train"
        )
    if status in (401, 403):
        return PermissionError(
            f"the Hub refused access to {repo_id} (HTTP {status}): check that the token (hf auth whoami, or HF_TOKEN) "
            "is valid and may read it"
        )
    return OSError(f"download of the weights of {repo_id} failed: {_first_line(error)}; nothing was kept, try again")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _verify(path: Path, repo_id: str, filename: str) -> None:
    """Compare a cached file with the checksum that the Hub gave for it; the client compares sizes only."""
    if path.is_symlink():
        etag = path.readlink().name  # to blobs/ETAG
    else:  # no symbolic links on this file system, so the cache has not kept it
        commit = path.parents[len(Path(filename).parts) - 1].name
        try:
            etag = get_hf_file_metadata(hf_hub_url(repo_id, filename, revision=commit)).etag
        except Exception:  # no network: the file stays unverified
            return
    if not re.fullmatch("[0-9a-f]{64}", etag or ""):
        return  # not of large file storage, whose ETag alone is a SHA-256
    found = _sha256(path)
    if found != etag:
        while path.is_symlink():
            target = path.parent / path.readlink()
            path.unlink(missing_ok=True)
            path = target
        path.unlink(missing_ok=True)
        raise OSError(
            f"{filename} of {repo_id} has the SHA-256 {found}, the Hub says {etag}: the file was damaged on its way or "
            "in the cache, and has been removed; try again to download it anew"
        )


def _sha256(path: Path) -> str:
    checksum = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(1 << 20):
            checksum.update(chunk)
    return checksum.hexdigest()


def publish(
    model_name: str,
    checkpoint: str | Path,
    dataset: str,
    use_ema: bool = False,
    metrics: str | Path | None = None,
    repo_id: str | None = None,
    private: bool = False,
    dry_run: str | Path | None = None,
) -> str:
    """Publish a checkpoint on the Hub: weights, timm's config and a model card, in one commit.

    Args:
        model_name: Name of a registered model, without tag.
        checkpoint: What timm's train.py saved, a safetensors file, or a checkpoint of the authors' code.
        dataset: Tag of the dataset that it was trained on, a key of `DATASETS`.
        use_ema: Whether to take the averaged weights that train.py keeps beside the trained ones.
        metrics: JSON file of an object whose numbers become the card's metrics; what `evaluate` and `average` write
            also gives the card their intervals and the paper's figures. Anything else in it is left out.
        repo_id: Repository, `NAMESPACE/model_name.dataset` by default.
        private: Whether a new repository is private.
        dry_run: Directory to write the files to instead of uploading them.

    Returns:
        Address of the commit, or the directory of a dry run.

    Raises:
        ValueError: If a name, a tag, the repository id, the metrics or the weights are not what they should be.
        OSError: If a file is missing, a directory in the way, no token given, or the upload failed.
    """
    known = timm.list_models("hifuse_*")
    if model_name not in known:
        raise ValueError(f"model {model_name!r} is not registered: expected one of {', '.join(known)}")
    if dataset not in DATASETS:
        raise ValueError(f"dataset {dataset!r} is not known: expected one of {', '.join(DATASETS)}")
    repo_id = repo_id or f"{NAMESPACE}/{model_name}.{dataset}"
    validate_repo_id(repo_id)
    results, evaluation = ({}, {}) if metrics is None else _read_metrics(Path(metrics), model_name, dataset)
    if dry_run is not None:
        _check_replaceable(Path(dry_run))
    elif get_token() is None:
        raise PermissionError("publish needs a token of the Hub that may write: run `hf auth login`, or set HF_TOKEN")
    state_dict, _ = convert_state_dict(read_checkpoint(checkpoint, use_ema=use_ema))
    architecture = Architecture.of(state_dict)
    if architecture.num_classes != DATASETS[dataset].num_classes:
        raise ValueError(
            f"checkpoint {checkpoint} has {architecture.num_classes or 'no'} classes, {dataset} has "
            f"{DATASETS[dataset].num_classes}: {', '.join(DATASETS[dataset].labels)}"
        )
    training_args = read_training_args(checkpoint)
    model, model_args = _create_on_meta(model_name, dataset, architecture, training_args)
    check_architecture(state_dict, model.state_dict())

    def write(directory: Path) -> None:
        save_weights(state_dict, directory / "model.safetensors")
        config = json.dumps(_make_config(model, dataset, model_args), indent=2)
        (directory / "config.json").write_text(config + "\n", encoding="utf-8")
        checksum = _sha256(directory / "model.safetensors")
        card = _make_card(repo_id, model, dataset, results, evaluation, training_args, use_ema, checksum)
        card.save(directory / "README.md")

    if dry_run is not None:
        with replacing_folder(dry_run) as directory:
            write(directory)
        return str(dry_run)
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory))
        try:
            api = HfApi(library_name="hifuse-timm")
            api.create_repo(repo_id, private=private or None, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=directory, commit_message=f"{model_name} trained on {dataset}"
            )
        except Exception as e:  # the client's HTTP library, and so its errors, differ from version to version
            raise OSError(
                f"upload to {repo_id} failed: {_first_line(e)}; check that the token may write there, then try again"
            ) from e
    return str(commit.commit_url)


def _read_metrics(path: Path, model_name: str, dataset: str) -> tuple[dict[str, float], dict]:
    """The numbers of a JSON file, and all that is in it if evaluate or average wrote it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"metrics {path} are no JSON: {e}") from e
    if not isinstance(content, dict):
        raise ValueError(f"metrics {path} hold a {type(content).__name__}, expected an object as {{'accuracy': 0.83}}")
    results = {k: v for k, v in content.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    if not results or not all(map(math.isfinite, results.values())):
        raise ValueError(f"metrics {path} hold {content}, expected finite numbers as {{'accuracy': 0.83}}")
    if content.get("kind") not in ("evaluation", "average"):
        return results, {}
    measured = content["architecture"], content["dataset"] or dataset  # folders of one's own have no tag
    if measured != (model_name, dataset):
        raise ValueError(
            f"metrics {path} are of {measured[0]} on {measured[1]}, expected those of {model_name} on {dataset}"
        )
    return results, content


def _create_on_meta(
    model_name: str, dataset: str, architecture: Architecture, training_args: dict
) -> tuple[nn.Module, dict]:
    """The network without weights, its pretrained config that of the checkpoint, and its arguments off the defaults."""
    model_args = dict(training_args.get("model_kwargs") or {})
    if architecture.in_chans != 3:
        model_args["in_chans"] = architecture.in_chans
    if training_args.get("gp"):
        model_args["global_pool"] = training_args["gp"]
    cfg = resolve_pretrained_cfg(model_name)
    data_config = resolve_data_config(
        dict(training_args, in_chans=architecture.in_chans),
        pretrained_cfg=dict(
            cfg.to_dict(),
            input_size=(architecture.in_chans, *cfg.input_size[1:]),
            # one value for all channels
            mean=cfg.mean[:1] * architecture.in_chans,
            std=cfg.std[:1] * architecture.in_chans,
        ),
    )
    overlay = dict(
        data_config, tag=dataset, num_classes=DATASETS[dataset].num_classes, license=DATASETS[dataset].license
    )
    return timm.create_model(model_name, pretrained_cfg_overlay=overlay, device="meta", **model_args), model_args


def _make_config(model: nn.Module, dataset: str, model_args: dict) -> dict:
    """The config.json that timm and transformers read.

    timm's own writer repeats num_classes under model_args, and transformers then passes it twice.
    """
    cfg = {k: v for k, v in model.pretrained_cfg.items() if k not in ("hf_hub_id", "hf_hub_filename", "architecture")}
    cfg["pool_size"] = [-(-size // model.stride) for size in cfg["input_size"][1:]]
    return dict(
        architecture=model.pretrained_cfg["architecture"],
        num_classes=model.num_classes,
        num_features=model.num_features,
        global_pool=model.head.global_pool.pool_type,
        label_names=list(DATASETS[dataset].labels),
        label_descriptions=DATASETS[dataset].labels,
        **(dict(model_args=model_args) if model_args else {}),
        pretrained_cfg=cfg,
    )


# What of train.py's arguments makes up the recipe; the rest is of the machine, its paths (private) or its logs.
_RECIPE = (
    "epochs batch_size grad_accum_steps opt lr weight_decay layer_decay momentum sched min_lr warmup_epochs "
    "warmup_lr cooldown_epochs clip_grad drop drop_path mixup cutmix smoothing aa reprob color_jitter hflip vflip "
    "scale ratio img_size input_size model_ema model_ema_decay amp seed"
).split()


def _make_card(
    repo_id: str,
    model: nn.Module,
    dataset: str,
    results: dict[str, float],
    evaluation: dict,
    training_args: dict,
    use_ema: bool,
    checksum: str,
) -> ModelCard:
    data = DATASETS[dataset]
    name = model.pretrained_cfg["architecture"]
    card_data = ModelCardData(
        license=data.license,
        license_name=f"{dataset}-terms" if data.license == "other" else None,
        license_link=data.url if data.license == "other" else None,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["timm", "transformers", "image-classification", "medical", "hifuse"],
        model_name=f"{name}.{dataset}" if results else None,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=dataset,
                dataset_name=data.name,
                dataset_split=evaluation.get("split"),
                metric_type=metric,
                metric_value=value,
            )
            for metric, value in results.items()
        ]
        or None,
    )
    num_params = sum(p.numel() for p in model.parameters())
    size = "x".join(map(str, model.pretrained_cfg["input_size"][1:]))
    labels = _table("index", "class", "meaning", rows=[(i, k, v) for i, (k, v) in enumerate(data.labels.items())])
    metrics = (
        _describe_evaluation(results, evaluation)
        if evaluation
        else _table("metric", "value", rows=[(k, f"{v:.6g}") for k, v in results.items()])
    )
    recipe = {k: training_args[k] for k in _RECIPE if training_args.get(k) not in (None, False, "", [])}
    settings = _table("setting", "value", rows=list(recipe.items()))
    weights = "averaged (EMA)" if use_ema else "trained"
    return ModelCard(
        f"""---
{card_data.to_yaml()}
---

# {name}.{dataset}

[HiFuse]({_PAPER_URL}), a three-branch network for medical image classification that fuses the maps of a convolutional
and a shifted-window branch, trained on {data.name}. {num_params:,} parameters, {model.num_classes} classes, images of
{size} pixels. For research: it is no medical device, and no diagnosis may rest on it.

## Load it

```python
import timm, hifuse_timm  # pip install git+{_README_URL}
model = timm.create_model("hf-hub:{repo_id}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

With `import hifuse_timm`, transformers loads it too: `AutoModelForImageClassification.from_pretrained("{repo_id}")`.

## Data and licence

[{data.name}]({data.url}). {data.description}

Licence of the data: {data.license_note}. It carries over to these weights. Please cite {data.citation}.

{labels}

## Metrics

{metrics or "None were given."}

## Training

{settings or "The checkpoint holds no settings."}

## Files

`model.safetensors` holds the {weights} weights. SHA-256: `{checksum}`
"""
    )


def _describe_evaluation(results: dict[str, float], evaluation: dict) -> str:
    """What `evaluate` or `average` found: how it was measured, and a table with the paper's figures beside ours."""
    counts, paper = evaluation["counts"], evaluation["paper"] or {}
    if evaluation["kind"] == "average":
        how = f"Means of {counts['runs']} runs on {counts['images']:,} images in all"
        header = ["metric", "mean", "standard deviation"]
        spread = {name: f"{values['std']:.4f}" for name, values in evaluation["spread"].items() if values}
    else:
        intervals = evaluation["intervals"]
        how = f"On {counts['images']:,} images"
        header = ["metric", "value", f"{intervals['level']:.0%} interval"]
        spread = {name: " - ".join(f"{bound:.4f}" for bound in intervals.get(name) or []) for name in results}
    rows = [[name, f"{value:.4f}", spread.get(name, "")] for name, value in results.items()]
    if paper:
        header.append("paper")
        rows = [[*row, f"{paper[row[0]]:.4f}" if row[0] in paper else ""] for row in rows]
    return (
        f"{how} of the split {evaluation['split']}, by `python -m hifuse_timm evaluate`. F1, precision, recall and "
        "AUROC are means over the classes (macro averages); ece is the expected calibration error.\n\n"
    ) + _table(*header, rows=rows)


def _table(*header: str, rows: list[tuple]) -> str:
    """Rows as a Markdown table, nothing where there are none."""
    lines = [header, ("---",) * len(header), *rows] if rows else []
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _check_replaceable(directory: Path) -> None:
    """Check that a directory can be written: new, empty, or of an earlier dry run."""
    if not directory.absolute().parent.is_dir():
        raise FileNotFoundError(f"{directory.absolute().parent}, to write {directory.name} in, does not exist")
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{directory} is a file, expected a new directory")
    others = {p.name for p in directory.iterdir()} - _PUBLISHED_NAMES if directory.is_dir() else set()
    if others:
        raise FileExistsError(
            f"{directory} holds other files, {', '.join(sorted(others)[:3])} among them: give a new directory"
        )
