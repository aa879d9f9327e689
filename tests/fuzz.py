"""Fuzz the commands: `make fuzz`, or `python tests/fuzz.py --count 1000 --seed 0`.

Changed files of every kind that the commands read (tests/fuzz_inputs.py) go through `main`, as from a shell. Each ends
in a success, whose output is there, or in a refusal: exit code 1, one line on stderr (of prepare, a report), nothing
left behind. Anything else is a fault: another exception or exit code, a crash of the process, a command without end, a
file left behind, changed, or opened elsewhere, a connection, a program that is started, code that is run from a file,
memory that grows. Prints how many inputs of each kind ended how, and each fault with the command that repeats it. Exit
code 1 if there is any.
"""

import argparse
import io
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import torch
from fuzz_inputs import KINDS, Command, Originals

from hifuse_timm.__main__ import main as run_command

SUCCESS, REFUSAL = "success", "refusal"

LONGEST_LINE = 2000  # characters of an error
LONGEST_TIME = 60  # seconds
MOST_GROWTH = 512 << 20  # bytes of memory, at the highest
MOST_MEMORY = 8 << 30  # bytes of addresses, above which the system gives a worker no more


@dataclass
class Watch:
    """What a command does beside its output, seen by Python's audit hooks.

    Attributes:
        folder: The folder of the input, where the command may do as it pleases.
        originals: Files that it may read.
        seen: What it did elsewhere, each as a kind and words.
    """

    folder: Path
    originals: Path
    seen: list[tuple[str, str]] = field(default_factory=list)

    def see(self, event: str, args: tuple) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
            self.seen.append(("connects", str(args[:2])))
            raise ConnectionRefusedError("the fuzzer allows no connection")
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty"):
            self.seen.append(("starts a program", str(args[:2])))
        elif event == "exec" and self._is_inside(args[0].co_filename, self.folder.parent):
            if not args[0].co_filename.startswith("<"):  # of no file, as dataclasses make some
                self.seen.append(("runs code", args[0].co_filename))
        elif event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            self._see_file(os.fsdecode(args[0]), args[2])

    def _see_file(self, path: str, flags: int) -> None:
        if self._is_inside(path, self.folder) or path == os.devnull:
            return
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self.seen.append(("writes elsewhere", path))
        elif self._is_inside(path, self.folder.parent) and not self._is_inside(path, self.originals):
            self.seen.append(("reads elsewhere", path))

    def _is_inside(self, path: str, folder: Path) -> bool:
        return os.path.realpath(path).startswith(f"{folder}{os.sep}")


_watches: list[Watch] = []  # the one that is at work


def _see(event: str, args: tuple) -> None:
    for watch in _watches:
        watch.see(event, args)


sys.addaudithook(_see)  # which stays for good


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Hands the watch what this process does meanwhile, in its folder."""
    before = os.getcwd()
    os.chdir(watch.folder)
    _watches.append(watch)
    try:
        yield
    finally:
        _watches.clear()
        os.chdir(before)


class TookTooLong(BaseException):
    """No error that a command would report."""


def stop(*_) -> None:
    raise TookTooLong


def run_watched(
    command: Command, folder: Path, originals: Path, run: Callable[[list[str]], int] = run_command
) -> tuple[str, str]:
    """Run a command in the folder of its input; says how it ended, and the words of it."""
    watch, err, code, fault = Watch(folder.resolve(), originals.resolve()), io.StringIO(), None, None
    before, memory = list_files(folder), reset_peak_memory()
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST_TIME)
    try:
        with watching(watch), redirect_stdout(io.StringIO()), redirect_stderr(err), warnings.catch_warnings():
            code = run(command.arguments)
    except (Exception, SystemExit, TookTooLong) as e:
        where = traceback.extract_tb(e.__traceback__)[-1]
        fault = type(e).__name__, f"{e!s:.200} at {Path(where.filename).name}:{where.lineno}"
    finally:
        signal.alarm(0)
    if watch.seen:
        return watch.seen[0]
    if fault:
        return fault
    if (growth := peak_memory() - memory) > MOST_GROWTH:
        return "memory", f"{growth >> 20} MiB more"
    after = list_files(folder)
    is_written = code == 0 or (command.partial and code == 1 and command.output in after)
    return judge_files(before, after, command.output if is_written else None) or judge_code(
        0 if is_written else code, err.getvalue(), report=command.arguments[0] == "prepare"
    )


def judge_files(before: dict[str, tuple], after: dict[str, tuple], output: str | None) -> tuple[str, str] | None:
    """What is wrong with the files that a command left, or did not; `output` is what it was to write."""
    if changed := [name for name in before if after.get(name) != before[name]]:
        return "input changed", changed[0]
    new = after.keys() - before.keys()
    if left := [name for name in new if output is None or not f"{name}/".startswith(f"{output}/")]:
        return "files left", min(left)
    return ("no output", output) if output and not new else None


def judge_code(code: int, err: str, report: bool) -> tuple[str, str]:
    """Whether an exit code goes with what was said on stderr: after an error one line, or a report of several."""
    if code == 0:
        return SUCCESS, ""
    _, is_error, words = f"\n{err}".rpartition("\nerror: ")
    words = words.rstrip("\n")
    if code != 1 or not is_error:
        return f"exit code {code}", words
    if "allocate memory" in words:
        return "memory", words
    if not report and ("\n" in words or len(words) > LONGEST_LINE):
        return "no line", f"{len(words):,} characters in {len(words.splitlines())} lines: {words!r:.200}"
    return REFUSAL, words


def list_files(folder: Path) -> dict[str, tuple]:
    """What lies in a folder, and what says that it was changed."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(root, name)
            state = os.lstat(path)
            is_file = name in files
            found[os.path.relpath(path, folder)] = (state.st_mode, is_file and (state.st_size, state.st_mtime_ns))
    return found


def reset_peak_memory() -> int:
    """Bytes of memory in use; the peak is counted from here on where the system can do so, which is Linux."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> int:
    """The most bytes of memory in use so far."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) << 10
    except (OSError, IndexError):
        return 0


def run_input(number: int, seed: int, originals: Originals, folder: Path) -> tuple[str, str]:
    """Make an input in a new folder, run its command, and say how it ended."""
    folder.mkdir()
    command = make_input(number, seed, originals, folder)
    return run_watched(command, folder, originals.folder)


def make_input(number: int, seed: int, originals: Originals, folder: Path) -> Command:
    """Make an input; the same number and seed make the same one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, on odd files that they are to write
        return KINDS[find_kind(number)](originals, folder, random.Random(f"{seed} {number}"))


def find_kind(number: int) -> str:
    return list(KINDS)[number % len(KINDS)]


def work(connection, root: Path, numbers: list[int], seed: int) -> None:
    """Run inputs in a process of their own, and send how each ended."""
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    root.mkdir()
    with redirect_stderr(io.StringIO()):
        originals = Originals.make(root / "originals")
        warm_up(originals, root / "warm")
    connection.send("ready")
    for number in numbers:
        connection.send(run_input(number, seed, originals, root / f"{number}"))


def warm_up(originals: Originals, folder: Path) -> None:
    """Let the libraries write their caches, of fonts for instance, and import what they import late."""
    folder.mkdir()
    for name, make in KINDS.items():
        for i in range(4):
            place = folder / f"{name}{i}"
            place.mkdir()
            command = make(originals, place, random.Random(f"warm {i}"))
            before = os.getcwd()
            os.chdir(place)
            try:
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                    run_command(command.arguments)
            except (Exception, SystemExit):
                pass  # counted where inputs are
            finally:
                os.chdir(before)


def run_all(numbers: list[int], seed: int, root: Path) -> Iterator[tuple[int, str, str]]:
    """Run inputs in a process, and in another where that one dies; gives number, ending and words of each."""
    pending, context = list(numbers), multiprocessing.get_context("spawn")
    while pending:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, root / f"from_{pending[0]}", pending, seed))
        process.start()
        theirs.close()
        ours.recv()
        try:
            while pending:
                ending = ours.recv()
                yield pending.pop(0), *ending
        except EOFError:
            process.join()
            yield pending.pop(0), "crash", f"the process ended with {process.exitcode}"
        process.join()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    parser.add_argument("--count", type=int, default=1000, metavar="N", help="inputs (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of all inputs (default: 0)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first input (default: 0)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="new folder to keep the inputs in")
    parser.add_argument("--refusals", action="store_true", help="print each refusal too")
    args = parser.parse_args(argv)
    numbers = list(range(args.first, args.first + args.count))
    counts, faults = Counter(), []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        root = args.keep or Path(scratch, "fuzz")
        root.mkdir()
        for number, ending, words in run_all(numbers, args.seed, root):
            kind = find_kind(number)
            counts[kind, ending if ending in (SUCCESS, REFUSAL) else "fault"] += 1
            if ending not in (SUCCESS, REFUSAL):
                faults.append(ending)
                print(
                    f"{kind}: {ending}: {words}\n  python {sys.argv[0]} --seed {args.seed} --first {number} --count 1"
                )
            elif args.refusals and ending == REFUSAL:
                print(f"{kind}: {words!r:.300}")
    print(f"\n{'seed ' + str(args.seed):12}{'successes':>12}{'refusals':>12}{'anything else':>16}")
    for kind in KINDS:
        print(f"{kind:12}{counts[kind, SUCCESS]:>12}{counts[kind, REFUSAL]:>12}{counts[kind, 'fault']:>16}")
    for ending, count in Counter(faults).most_common():
        print(f"{ending}: {count}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
