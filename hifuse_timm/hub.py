"""Weights in from the Hugging Face Hub: find, download, verify, and say what failed."""

import logging
import os
import re
from pathlib import Path

import timm
from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_download, hf_hub_url
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
from timm.models import resolve_pretrained_cfg

from .checkpoint import read_checkpoint, unwrap_state_dict
from .convert import Architecture, check_extent, convert_state_dict
from .errors import first_line
from .files import sha256
from .version import REPOSITORY

__all__ = ["NAMESPACE", "check_tag", "download", "hide_secrets", "redact", "resolve_weights"]

_logger = logging.getLogger(__name__)

# Owner of the published repositories.
NAMESPACE = os.environ.get("HIFUSE_TIMM_NAMESPACE") or "hifuse-timm"

_WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")  # the second where a repository has no first


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
    """Find and read the pretrained weights of a model before it is built, and see that they are whole.

    Weights of the Hub are downloaded and their checksum is compared with the Hub's. timm is handed the weights that
    were checked, not the file. Of a file with averaged and trained weights the averaged ones are taken.
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
        checkpoint = read_checkpoint(path)
        if checkpoint.has_averaged:
            _logger.warning(f"{path} holds averaged (EMA) and trained weights: the averaged ones are taken")
        state_dict = checkpoint.state_dict
        overlay.update(file=str(path), source="")
    if state_dict is not None:
        overlay["state_dict"] = state_dict  # which timm then takes, whatever else the config names
        architecture = Architecture.of(convert_state_dict(state_dict)[0])
        check_extent(kwargs, architecture)
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
            raise _explain(e, repo_id, revision) from hide_secrets(e)
        else:
            _verify(Path(path), repo_id, filename)
            return Path(path)
    raise _explain(first_error, repo_id, revision) from hide_secrets(first_error)


def redact(text: str) -> str:
    """A text without what must stay secret: names and passwords in addresses, signatures behind them, the token."""
    text = re.sub(r"(?<=://)[^/\s'\"]*@", "", text)
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)
    text = re.sub(r"Bearer [^'\"]*", "Bearer ***", text)
    token = get_token()
    return text.replace(token, "***") if token else text


def _redact_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = redact(record.getMessage()), None
    return True


for _handler in logging.getLogger("huggingface_hub").handlers:  # the client logs addresses as HF_ENDPOINT has them
    _handler.addFilter(_redact_record)


def hide_secrets(error: Exception) -> Exception | None:
    """The error as the cause of another; none where a traceback would show a secret."""
    cause = error
    while cause is not None:
        if redact(str(cause)) != str(cause):
            return None
        cause = cause.__cause__ or cause.__context__
    return error


def _explain(error: Exception, repo_id: str, revision: str) -> Exception:
    """The error to show for one of the Hub's client: what was asked for, and what to do."""
    response = error.response if isinstance(error, HfHubHTTPError) else None
    status = None if response is None else response.status_code
    endpoint, reason = redact(constants.ENDPOINT), redact(first_line(error))
    cause = redact(first_line(error.__cause__ or error))
    if isinstance(error, HFValidationError):
        return ValueError(f"{repo_id!r} is no repository id of the Hub ({reason}); see HIFUSE_TIMM_NAMESPACE")
    if isinstance(error, GatedRepoError):
        return PermissionError(
            f"weights at {repo_id} are gated: accept their terms at {endpoint}/{repo_id}, then give a token "
            "(hf auth login, or HF_TOKEN)"
        )
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, OfflineModeIsEnabled):
        return ConnectionError(
            f"weights of {repo_id} are not in the cache, and HF_HUB_OFFLINE forbids to download them: unset it once"
        )
    if isinstance(error, LocalEntryNotFoundError):
        return ConnectionError(
            f"weights of {repo_id} are not in the cache, and the Hub at {endpoint} cannot be reached "
            f"({cause}): check the network, HF_ENDPOINT and the proxy, then try again"
        )
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"{repo_id} has no revision {revision!r}: see {endpoint}/{repo_id}")
    if isinstance(error, (RepositoryNotFoundError, EntryNotFoundError)):
        return FileNotFoundError(
            f"no weights are published at {repo_id} on the Hub ({endpoint}), or they are private and no "
            "token that may read them was given (hf auth login, or HF_TOKEN). What works:\n"
            "  pretrained=False for random weights\n"
            f"  HIFUSE_TIMM_NAMESPACE=NAME in the environment for weights in another namespace than {NAMESPACE}\n"
            "  pretrained_cfg_overlay=dict(file='checkpoint.pth') for a checkpoint of yours or of the authors' code\n"
            f"  training: {REPOSITORY}/blob/main/docs/train.md"
        )
    if status in (401, 403):
        return PermissionError(
            f"the Hub refused access to {repo_id} (HTTP {status}): check that the token (hf auth whoami, or HF_TOKEN) "
            "is valid and may read it"
        )
    return OSError(f"download of the weights of {repo_id} failed: {reason}; nothing was kept, try again")


def _verify(path: Path, repo_id: str, filename: str) -> None:
    """Compare a cached file with the checksum that the Hub gave for it; the client compares sizes only."""
    if path.is_symlink():
        etag = path.readlink().name  # to blobs/ETAG
    else:  # no symbolic links on this file system, so the cache has not kept it
        commit = path.parents[len(Path(filename).parts) - 1].name
        try:
            etag = get_hf_file_metadata(hf_hub_url(repo_id, filename, revision=commit)).etag
        except Exception as e:  # no network
            return _warn_unverified(repo_id, filename, redact(first_line(e)))
    if not re.fullmatch("[0-9a-f]{64}", etag or ""):  # not of large file storage, whose ETag alone is a SHA-256
        return _warn_unverified(repo_id, filename, "the Hub gives no SHA-256 of it")
    found = sha256(path)
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


def _warn_unverified(repo_id: str, filename: str, reason: str) -> None:
    _logger.warning(f"{filename} of {repo_id} was not compared with the Hub's checksum: {reason}")
