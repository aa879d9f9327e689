"""The conditions under which a result was made."""

import os
import platform
import shlex
import sys
from datetime import datetime, timezone
from importlib import metadata

import torch

import hifuse_timm

# beginnings of the names of environment variables that change how fast a network runs
_VARIABLES = ("GLIBC_TUNABLES", "KMP_", "LD_PRELOAD", "MALLOC_", "MKL_", "OMP_", "ONEDNN_", "THP_MEM_ALLOC_ENABLE")


def _processor() -> str:
    """Name of the processor, as Linux gives it."""
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _driver() -> str | None:
    """Version of the NVIDIA driver, as Linux gives it."""
    try:
        with open("/proc/driver/nvidia/version") as lines:
            return lines.readline().partition(":")[2].strip()
    except OSError:
        return None


def _command() -> str:
    """The command line, behind the environment variables that change what it measures."""
    variables = [
        f"{name}={shlex.quote(os.environ[name])}" for name in sorted(os.environ) if name.startswith(_VARIABLES)
    ]
    return " ".join([*variables, "python -m benchmarks", shlex.join(sys.argv[1:])])


def conditions(device: torch.device) -> dict[str, str | int | None]:
    """Device, threads, versions, date and command line."""
    on_gpu = device.type == "cuda"
    return dict(
        device=torch.cuda.get_device_name(device) if on_gpu else _processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        driver=_driver() if on_gpu else None,
        cuda=torch.version.cuda if on_gpu else None,
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        timm=metadata.version("timm"),
        hifuse_timm=hifuse_timm.__version__,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=_command(),
    )


def format_conditions(conditions: dict) -> str:
    """One line."""
    return "; ".join(f"{key} {value}" for key, value in conditions.items() if value is not None)
