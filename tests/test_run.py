"""`python -m hifuse_timm run SCRIPT ARGS...` runs a script as `python SCRIPT ARGS...` does, with the models known."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hifuse_timm.__main__ import main

SCRIPT = """\
import sys
from pathlib import Path

import helper  # beside the script

def divide(x):
    return 1 / x


if sys.argv[1:] == ["fail"]:
    divide(0)
elif sys.argv[1:] == ["exit"]:
    sys.exit(7)
else:
    import timm

    assert sys.modules["__main__"].divide is divide  # as pickle and multiprocessing look it up
    facts = sys.argv[1:], Path(__file__).name, __name__, timm.is_model("hifuse_tiny"), helper.NAME
    sys.stdout.write(" ".join(map(str, facts)) + "\\n")  # at once, since two processes of torchrun write here
"""


@pytest.fixture
def script(tmp_path):
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    (folder / "helper.py").write_text("NAME = 'helper'\n")
    return folder / "script.py"


def run(*args, launcher=("-m", "hifuse_timm", "run")) -> subprocess.CompletedProcess:
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1]), OMP_NUM_THREADS="1")
    return subprocess.run(
        [sys.executable, *launcher, *map(str, args)], env=env, capture_output=True, text=True, timeout=120
    )


def test_script_gets_its_arguments_its_folder_and_the_models(script):
    result = run(script, "--help", "--", "-x", "a b")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "['--help', '--', '-x', 'a b'] script.py __main__ True helper\n"


def test_exit_code_is_the_scripts(script):
    assert run(script, "exit").returncode == 7


def test_traceback_is_the_one_of_the_script_alone(script):
    result, expected = run(script, "fail"), run("fail", launcher=[str(script)])
    assert result.returncode == expected.returncode == 1
    assert result.stderr == expected.stderr
    assert result.stderr.count("File ") == 2


def test_interruption_is_the_one_of_the_script_alone(script):
    script.write_text("import signal\nprint('begun', flush=True)\nsignal.raise_signal(signal.SIGINT)\n")
    result, expected = run(script), run(launcher=[str(script)])
    assert (result.returncode, expected.returncode) == (130, -signal.SIGINT)  # to a shell, both are 130
    assert (result.stdout, result.stderr) == (expected.stdout, expected.stderr) and result.stdout == "begun\n"


def test_syntax_error_is_the_one_of_the_script_alone(script):
    script.write_text("x = (\n")
    result, expected = run(script), run(launcher=[str(script)])
    assert result.returncode == expected.returncode == 1
    assert result.stderr == expected.stderr


def test_missing_script_is_one_clear_error(tmp_path, capsys):
    assert main(["run", str(tmp_path / "none.py")]) == 2
    assert (
        capsys.readouterr().err == f"error: script {tmp_path / 'none.py'} cannot be read: No such file or directory\n"
    )


def test_torchrun_runs_a_script_in_every_process(script):
    result = run(
        script, "a", launcher=("-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "hifuse_timm", "run")
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("['a'] script.py __main__ True helper") == 2
