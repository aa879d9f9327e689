"""The conditions under which a result was made."""

import os
import platform
import shlex
import subprocess
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


def _query_gpu(device: torch.device, *fields: str) -> list[str] | None:
    """What nvidia-smi says of a GPU, None where it says nothing."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    command = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    values = process.stdout.strip().split(", ")
    return values if len(values) == len(fields) else None


def gpu_state(device: torch.device) -> str | None:
    """Clocks, power and temperature of a GPU at this moment, as nvidia-smi gives them; None without them."""
    if device.type != "cuda":
        return None
    values = _query_gpu(device, "clocks.sm", "clocks.mem", "power.draw", "power.limit", "temperature.gpu")
    return values and "SM {}, memory {}, {} of {}, {} °C".format(*values)


def _driver(device: torch.device) -> str | None:
    """Version of the NVIDIA driver, as Linux gives it, or nvidia-smi."""
    try:
        with open("/proc/driver/nvidia/version") as lines:
            return lines.readline().partition(":")[2].strip()
    except OSError:
        return (_query_gpu(device, "driver_version") or [None])[0]


def _command() -> str:
    """The command line, behind the environment variables that change what it measures."""
    variables = [
        f"{name}={shlex.quote(os.environ[name])}" for name in sorted(os.environ) if name.startswith(_VARIABLES)
    ]
    return " ".join([*variables, "python -m benchmarks", shlex.join(sys.argv[1:])])


def conditions(device: torch.device, tf32: bool | None = None) -> dict[str, str | int | None]:
    """Device, threads, versions, date and command line, and how a GPU is now.

    Args:
        device: What is measured.
        tf32: Whether a GPU rounds what it multiplies in float32; None where that is not known.
    """
    on_gpu = device.type == "cuda"
    return dict(
        device=torch.cuda.get_device_name(device) if on_gpu else _processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        driver=_driver(device) if on_gpu else None,
        cuda=torch.version.cuda if on_gpu else None,
        tf32=("on" if tf32 else "off") if on_gpu and tf32 is not None else None,
        gpu_before=gpu_state(device),
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
