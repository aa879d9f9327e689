"""Peak memory of one network.

On the CPU it runs in a process of its own, `python -m benchmarks.measure.memory CONFIG` with CONFIG in JSON: a process
that ran other networks before would show their peaks, and what the allocator kept of them.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .config import RunnerConfig, make_runner
from .runner import NetworkRunner

_STATUS = Path("/proc/self/status")


@dataclass
class Memory:
    """Memory of a network in bytes.

    Attributes:
        peak: Highest of all; on the CPU with the interpreter and its imports.
        excess: What of it exceeds weights, gradients, optimizer state, and the interpreter with its imports.
    """

    peak: int
    excess: int


def _resident(key: str) -> int:
    """VmRSS or VmHWM, its highest value, of this process in bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def last_line(text: str, status: int) -> str:
    """What a process that failed wrote last, or its exit status where it wrote nothing."""
    return (text.strip().splitlines() or [f"exit status {status}"])[-1]


def measure_in_child(config: RunnerConfig) -> Memory | None:
    """Peak memory of a network on the CPU, which runs in a process of its own.

    Returns:
        Its memory; None where the system does not tell it in /proc, as Linux does.

    Raises:
        RuntimeError: If the process fails.
    """
    if not _STATUS.exists():
        return None
    command = [sys.executable, "-m", "benchmarks.measure.memory", json.dumps(asdict(config))]
    process = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if process.returncode:
        raise RuntimeError(f"memory: {last_line(process.stderr, process.returncode)}")
    return Memory(**json.loads(process.stdout.splitlines()[-1]))


def measure_on_cuda(runner: NetworkRunner) -> Memory:
    """Peak memory of a network on a GPU, from PyTorch's allocator; what else is there does not count."""
    runner.keep_gradients = True
    for _ in range(2):  # a first training step makes gradients and optimizer state, and compilers their workspaces
        runner.step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    runner.step()
    torch.cuda.synchronize()
    excess = torch.cuda.max_memory_allocated() - before
    return Memory(runner.weight_bytes() + runner.state_bytes() + excess, excess)


def _measure_here(config: RunnerConfig) -> Memory:
    runner = make_runner(config)
    runner.keep_gradients = True
    gc.collect()
    built = _resident("VmRSS")  # with the weights
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here: building is no part of running
    for _ in range(2):  # a first training step makes gradients and optimizer state, the second runs with them
        runner.step()
    peak = _resident("VmHWM")
    return Memory(peak, peak - built - runner.state_bytes())


def peak_memory(config: RunnerConfig, runner: NetworkRunner | None = None) -> Memory | None:
    """Peak memory of a network, on the CPU in a process of its own; None where the system does not tell.

    Args:
        config: The network.
        runner: The same, where it is there already on a GPU.
    """
    if torch.device(config.device).type == "cpu":
        return measure_in_child(config)
    if config.cuda_graphs:  # they hold their memory between calls, so that no call shows it
        return None
    return measure_on_cuda(runner or make_runner(config))


if __name__ == "__main__":
    print(json.dumps(asdict(_measure_here(RunnerConfig(**json.loads(sys.argv[1]))))))
