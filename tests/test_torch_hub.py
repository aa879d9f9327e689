"""torch.hub users have a copy of the repository and no installed package."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

CHECK = """
import importlib.util, sys, torch
sys.path[:] = [p for p in sys.path if p != sys.argv[1]]  # put there by an editable install
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f)]
assert importlib.util.find_spec("hifuse_timm") is None
names = torch.hub.list("hifuse-timm/hifuse-timm:main", trust_repo=True, verbose=False)
print(*sorted(names))
print("HiFuse-Base" in torch.hub.help("hifuse-timm/hifuse-timm:main", "hifuse_base", trust_repo=True))
model = torch.hub.load(sys.argv[1], "hifuse_base", source="local", num_classes=3, device="meta")
print(type(model).__name__, sum(p.numel() for p in model.parameters()), model.num_classes)
"""


def test_entrypoints_are_listed_and_load_where_the_package_is_not_installed(tmp_path):
    # where torch.hub keeps what it downloaded: owner_name_branch
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "hifuse-timm_hifuse-timm_main").symlink_to(ROOT)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | dict(TORCH_HOME=str(tmp_path))
    result = subprocess.run(
        [sys.executable, "-c", CHECK, str(ROOT)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    names, described, model = result.stdout.splitlines()[-3:]
    sizes = ("base", "small", "tiny")
    assert names.split() == sorted(f"hifuse_{size}{form}" for size in sizes for form in ("", "_dense"))
    assert described == "True"
    assert model == f"HiFuse {68_984_321 - 4 * 769} 3"
