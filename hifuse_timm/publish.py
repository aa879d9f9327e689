"""Weights out to the Hugging Face Hub: safetensors, timm's config and a model card, in one commit."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import validate_repo_id

from .calibration import Calibration, check_measured, read_calibration
from .checkpoint import check_finite, checksum_weights, save_weights
from .datasets import DATASETS, Dataset, read_dataset
from .errors import first_line, shorten
from .fields import CHECKSUM, check_fields
from .files import check_replaceable, replacing_folder, sha256, write_json
from .hub import NAMESPACE, hide_secrets, redact
from .loading import Trained, load_trained
from .model_card import make_card
from .runs import read_metrics
from .space import list_space, write_space
from .text import abbreviate

__all__ = ["publish"]

_PUBLISHED_NAMES = {"README.md", "config.json", "model.safetensors"}
_CALIBRATION_NAME = "calibration.json"
_SPACE_NAME = "space"


def publish(
    model_name: str,
    checkpoint: str | Path,
    dataset: str | None = None,
    *,
    data_dir: str | Path | None = None,
    use_ema: bool | None = None,
    class_map: str | Path | None = None,
    model_kwargs: dict | None = None,
    metrics: str | Path | None = None,
    calibration: str | Path | None = None,
    half: bool = False,
    repo_id: str | None = None,
    private: bool = False,
    dry_run: str | Path | None = None,
    space: bool = False,
) -> str:
    """Publish a checkpoint on the Hub: weights, timm's config and a model card, in one commit.

    What the card and the config say of the data comes from `dataset` or from `data_dir`, one of which must be given.

    Args:
        model_name: Name of a registered model, without tag.
        checkpoint: What timm's train.py saved, a safetensors file, or a checkpoint of the authors' code.
        dataset: Tag of the dataset of the paper that it was trained on, a key of `DATASETS`.
        data_dir: Folder of the dataset that it was trained on, whose dataset.json says what it is.
        use_ema: Whether to take the averaged weights that train.py keeps beside the trained ones; by default where
            there are some.
        class_map: Text file with the name of a class on each line, as train.py's `--class-map`; by default the one
            that train.py's arguments in the checkpoint name.
        model_kwargs: Further arguments of the network, over those in the checkpoint.
        metrics: JSON file of an object whose numbers become the card's metrics; what `evaluate` and `average` write
            also gives the card their intervals and the paper's metrics, if it is of these weights. Anything else in it
            is left out.
        calibration: What `calibrate` wrote for this checkpoint, which becomes calibration.json of the repository.
        half: Whether to round the weights to float16, which halves the file. They are other weights then: metrics must
            be what `evaluate` wrote of the rounded ones, and a calibration must be fitted on these.
        repo_id: Repository. For a dataset of the paper `NAMESPACE/model_name.dataset` by default; for others it must
            be given.
        private: Whether a new repository is private.
        dry_run: Directory to write the files to instead of uploading them.
        space: Whether a dry run also writes, to its folder `space`, the files of a Space that serves the demo of the
            repository.

    Returns:
        Address of the commit, or the directory of a dry run.

    Raises:
        ValueError: If a name, a tag, the repository id, the dataset, the metrics, the calibration or the
            weights are not what they should be, or the classes of the weights are not those of the dataset; or the
            metrics or the calibration are of other weights.
        OSError: If a file is missing, a directory in the way, no token given, or the upload failed.
    """
    known = timm.list_models("hifuse_*")
    if model_name not in known:
        raise ValueError(f"model {model_name!r} is not registered: expected one of {', '.join(known)}")
    if space and dry_run is None:
        raise ValueError("space is written into a dry run: give dry_run (--dry-run DIR), and upload it from there")
    tag, data = _find_dataset(dataset, data_dir)
    repo_id = _find_repo_id(repo_id, model_name, tag)
    results, evaluation = ({}, {}) if metrics is None else _read_metrics(Path(metrics), model_name, tag)
    rules = None if calibration is None else read_calibration(calibration)
    _check_calibrated(evaluation, metrics, rules)
    if dry_run is not None:
        check_replaceable(dry_run, _list_published)
    elif get_token() is None:
        raise PermissionError("publish needs a token of the Hub that may write: run `hf auth login`, or set HF_TOKEN")
    trained = load_trained(
        model_name,
        checkpoint,
        use_ema=use_ema,
        device="cpu",
        data_dir=data_dir,
        class_map=class_map,
        model_kwargs=model_kwargs,
    )
    _check_classes(trained, checkpoint, tag, data)
    check_finite(trained.model.state_dict())
    if half:
        trained.model.half().float()
        _check_rounded(trained, checkpoint)
    weights = checksum_weights(trained.model.state_dict())
    if metrics is not None:
        _check_measured_weights(evaluation, metrics, weights, half)
    if rules is not None:
        rules = rules.matched_to(list(data.labels), [weights], [trained.data_config])
    publication = _Publication(repo_id, tag, data, trained, results, evaluation, rules, half)
    if dry_run is None:
        return _upload(publication, private)
    with replacing_folder(dry_run, _list_published) as directory:
        publication.write(directory)
        if space:
            write_space(directory / _SPACE_NAME, repo_id, None if rules is None else directory / _CALIBRATION_NAME)
    return str(dry_run)


@dataclass(frozen=True)
class _Publication:
    """What a repository is made of."""

    repo_id: str
    tag: str
    data: Dataset
    trained: Trained
    results: dict[str, float]
    evaluation: dict
    calibration: Calibration | None
    half: bool

    def write(self, directory: Path) -> None:
        """Write the repository's files, the card with the checksums of the weights and the calibration last."""
        weights = directory / "model.safetensors"
        state_dict = self.trained.model.state_dict()
        if self.half:
            state_dict = {k: value.half() if value.is_floating_point() else value for k, value in state_dict.items()}
        save_weights(state_dict, weights)
        write_json(directory / "config.json", _make_config(self.trained, self.tag, self.data, self.half))
        files = [weights]
        if self.calibration is not None:
            files.append(directory / _CALIBRATION_NAME)
            write_json(files[-1], self.calibration.content)
        checksums = {file.name: sha256(file) for file in files}
        card = make_card(
            self.repo_id,
            self.trained,
            self.tag,
            self.data,
            self.results,
            self.evaluation,
            self.calibration,
            self.half,
            checksums,
        )
        card.save(directory / "README.md")


def _find_dataset(dataset: str | None, data_dir: str | Path | None) -> tuple[str, Dataset]:
    """The tag of the dataset, and its facts."""
    if (dataset is None) == (data_dir is None):
        raise ValueError("publish takes either dataset, the tag of one of the paper, or data_dir, as prepare wrote it")
    if data_dir is not None:
        return read_dataset(data_dir)
    if dataset not in DATASETS:
        raise ValueError(
            f"dataset {dataset!r} is not known: expected one of {', '.join(DATASETS)}; give data_dir (--data-dir) for "
            "one of your own"
        )
    return dataset, DATASETS[dataset]


def _find_repo_id(repo_id: str | None, model_name: str, tag: str) -> str:
    if repo_id is None:
        if tag not in DATASETS:  # the default namespace is ours, and no place for others
            raise ValueError(
                f"repo_id (--repo-id) is missing: {tag} is none of the paper's datasets, so give the repository, as "
                f"clinic/{model_name}.{tag}"
            )
        repo_id = f"{NAMESPACE}/{model_name}.{tag}"
    validate_repo_id(repo_id)
    return repo_id


def _read_metrics(path: Path, model_name: str, tag: str) -> tuple[dict[str, float], dict]:
    """The numbers of a JSON file, and all that is in it if evaluate or average wrote it."""
    results, content = read_metrics(path)
    if not content:
        return results, {}
    measured = f"{content['architecture']} on {content['dataset'] or tag}"  # folders without dataset.json have no tag
    if measured != f"{model_name} on {tag}":
        raise ValueError(f"metrics {path} are of {abbreviate(measured, 80)}, expected those of {model_name} on {tag}")
    return results, content


def _check_calibrated(evaluation: dict, metrics: str | Path | None, calibration: Calibration | None) -> None:
    """Check that metrics of calibrated probabilities are published with that calibration."""
    if evaluation.get("calibration") is None:
        return
    what, writer = f"metrics {metrics}", "evaluate --calibration writes"
    check_fields(evaluation, {"calibration": {"checksum": CHECKSUM}}, what, writer)
    if calibration is None or evaluation["calibration"]["checksum"] != calibration.checksum:
        raise ValueError(
            f"{what} are of probabilities that were calibrated: expected the calibration that evaluate was "
            "given (--calibration)"
        )
    check_measured(evaluation["calibration"], calibration.content, what, "calibration.", writer)


def _check_rounded(trained: Trained, checkpoint: str | Path) -> None:
    """Check that weights that were rounded to float16 are still finite."""
    faults = [key for key, value in trained.model.state_dict().items() if not value.isfinite().all()]
    if faults:
        raise ValueError(
            f"half: checkpoint {checkpoint} has weights beyond the largest of float16, "
            f"{torch.finfo(torch.float16).max:,.0f}: {shorten(faults, 4)}; publish it without half (--half)"
        )


def _check_measured_weights(evaluation: dict, metrics: str | Path, weights: str, half: bool) -> None:
    """Check that metrics are of the weights that are published, as far as they tell; those of rounded ones must."""
    # an average, a run of version 0.1 and numbers of any origin do not say of which weights they are
    measured = evaluation["conditions"].get("weights") if evaluation.get("kind") == "evaluation" else None
    if measured == weights or (measured is None and not half):
        return
    if half:
        expected = "the rounded weights: publish --half --dry-run DIR without metrics first, and evaluate local-dir:DIR"
    else:
        expected = "this checkpoint, and the same weights of it (--use-ema)"
    raise ValueError(f"metrics {metrics} are not of the weights to publish: expected what evaluate wrote of {expected}")


def _check_classes(trained: Trained, checkpoint: str | Path, tag: str, data: Dataset) -> None:
    """Check that the classes of the weights are those of the dataset, in the order in which they are published."""
    labels = tuple(data.labels)
    if trained.model.num_classes != len(labels):
        raise ValueError(
            f"checkpoint {checkpoint} has {trained.model.num_classes or 'no'} classes, {tag} has {len(labels)}: "
            f"{shorten(labels)}"
        )
    if trained.class_names not in (None, labels):
        raise ValueError(
            f"checkpoint {checkpoint} has classes in the order of its class map, {shorten(trained.class_names)}; those "
            f"of {tag} are published as {shorten(labels)}"
        )


def _make_config(trained: Trained, tag: str, data: Dataset, half: bool) -> dict:
    """The config.json that timm and transformers read.

    timm's own writer repeats num_classes under model_args, and transformers then passes it twice.
    """
    model = trained.model
    cfg = {k: v for k, v in model.pretrained_cfg.items() if k not in ("hf_hub_id", "hf_hub_filename", "architecture")}
    cfg |= trained.data_config | dict(tag=tag, num_classes=model.num_classes, license=data.license)
    cfg["pool_size"] = [-(-size // model.stride) for size in cfg["input_size"][1:]]
    return dict(
        architecture=model.pretrained_cfg["architecture"],
        num_classes=model.num_classes,
        num_features=model.num_features,
        global_pool=model.head.global_pool.pool_type,
        label_names=list(data.labels),
        label_descriptions=data.labels,
        **(dict(model_args=trained.model_args) if trained.model_args else {}),
        **(dict(dtype="float32") if half else {}),  # in which transformers computes then; else as the file has them
        pretrained_cfg=cfg,
    )


def _upload(publication: _Publication, private: bool) -> str:
    """Upload a repository in one commit; gives the address of the commit."""
    repo_id = publication.repo_id
    with tempfile.TemporaryDirectory() as directory:
        publication.write(Path(directory))
        try:
            api = HfApi(library_name="hifuse-timm")
            api.create_repo(repo_id, private=private or None, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=directory,
                commit_message=f"{publication.trained.name} trained on {publication.tag}",
            )
        except Exception as e:  # the client's HTTP library, and so its errors, differ from version to version
            raise OSError(
                f"upload to {repo_id} failed: {redact(first_line(e))}; check that the token may write there, then try "
                "again"
            ) from hide_secrets(e)
    return str(commit.commit_url)


def _list_published(directory: Path) -> set[str]:
    """The files of an earlier dry run: all of them, the cards with the checksums of what else has been written."""
    try:
        card = (directory / "README.md").read_text(encoding="utf-8")
        ours = (directory / "config.json").is_file() and sha256(directory / "model.safetensors") in card
    except (OSError, UnicodeDecodeError):
        ours = False
    if not ours:
        return set()
    published = _PUBLISHED_NAMES | {f"{_SPACE_NAME}/{name}" for name in list_space(directory / _SPACE_NAME)}
    calibration = directory / _CALIBRATION_NAME
    return published | ({calibration.name} if calibration.is_file() and sha256(calibration) in card else set())
