"""Weights out to the Hugging Face Hub: safetensors, timm's config and a model card, in one commit."""

import tempfile
from pathlib import Path

import timm
from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import validate_repo_id

from .checkpoint import check_finite, save_weights
from .datasets import DATASETS
from .errors import first_line, shorten
from .files import check_replaceable, replacing_folder, sha256, write_json
from .hub import NAMESPACE, hide_secrets, redact
from .loading import Trained, load_trained
from .model_card import make_card
from .runs import read_metrics
from .text import abbreviate

__all__ = ["publish"]

_PUBLISHED_NAMES = {"README.md", "config.json", "model.safetensors"}


def publish(
    model_name: str,
    checkpoint: str | Path,
    dataset: str,
    use_ema: bool | None = None,
    class_map: str | Path | None = None,
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
        use_ema: Whether to take the averaged weights that train.py keeps beside the trained ones; by default where
            there are some.
        class_map: Text file with the name of a class on each line, as train.py's `--class-map`; by default the one
            that train.py's arguments in the checkpoint name.
        metrics: JSON file of an object whose numbers become the card's metrics; what `evaluate` and `average` write
            also gives the card their intervals and the paper's metrics. Anything else in it is left out.
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
        check_replaceable(dry_run, _list_published)
    elif get_token() is None:
        raise PermissionError("publish needs a token of the Hub that may write: run `hf auth login`, or set HF_TOKEN")
    trained = load_trained(model_name, checkpoint, use_ema=use_ema, class_map=class_map, device="cpu")
    labels = tuple(DATASETS[dataset].labels)
    if trained.model.num_classes != len(labels):
        raise ValueError(
            f"checkpoint {checkpoint} has {trained.model.num_classes or 'no'} classes, {dataset} has {len(labels)}: "
            f"{', '.join(labels)}"
        )
    if trained.class_names not in (None, labels):
        raise ValueError(
            f"checkpoint {checkpoint} has classes in the order of its class map, {shorten(trained.class_names)}; those "
            f"of {dataset} are published as {shorten(labels)}"
        )
    check_finite(trained.model.state_dict())

    def write(directory: Path) -> None:
        save_weights(trained.model.state_dict(), directory / "model.safetensors")
        write_json(directory / "config.json", _make_config(trained, dataset))
        checksum = sha256(directory / "model.safetensors")
        make_card(repo_id, trained, dataset, results, evaluation, checksum).save(directory / "README.md")

    if dry_run is not None:
        with replacing_folder(dry_run, _list_published) as directory:
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
                f"upload to {repo_id} failed: {redact(first_line(e))}; check that the token may write there, then try "
                "again"
            ) from hide_secrets(e)
    return str(commit.commit_url)


def _read_metrics(path: Path, model_name: str, dataset: str) -> tuple[dict[str, float], dict]:
    """The numbers of a JSON file, and all that is in it if evaluate or average wrote it."""
    results, content = read_metrics(path)
    if not content:
        return results, {}
    measured = f"{content['architecture']} on {content['dataset'] or dataset}"  # folders of one's own have no tag
    if measured != f"{model_name} on {dataset}":
        raise ValueError(
            f"metrics {path} are of {abbreviate(measured, 80)}, expected those of {model_name} on {dataset}"
        )
    return results, content


def _make_config(trained: Trained, dataset: str) -> dict:
    """The config.json that timm and transformers read.

    timm's own writer repeats num_classes under model_args, and transformers then passes it twice.
    """
    model, data = trained.model, DATASETS[dataset]
    cfg = {k: v for k, v in model.pretrained_cfg.items() if k not in ("hf_hub_id", "hf_hub_filename", "architecture")}
    cfg |= trained.data_config | dict(tag=dataset, num_classes=model.num_classes, license=data.license)
    cfg["pool_size"] = [-(-size // model.stride) for size in cfg["input_size"][1:]]
    return dict(
        architecture=model.pretrained_cfg["architecture"],
        num_classes=model.num_classes,
        num_features=model.num_features,
        global_pool=model.head.global_pool.pool_type,
        label_names=list(data.labels),
        label_descriptions=data.labels,
        **(dict(model_args=trained.model_args) if trained.model_args else {}),
        pretrained_cfg=cfg,
    )


def _list_published(directory: Path) -> set[str]:
    """The files of an earlier dry run: all three, the card with the checksum of the weights."""
    try:
        card = (directory / "README.md").read_text(encoding="utf-8")
        ours = (directory / "config.json").is_file() and sha256(directory / "model.safetensors") in card
    except (OSError, UnicodeDecodeError):
        ours = False
    return _PUBLISHED_NAMES if ours else set()
