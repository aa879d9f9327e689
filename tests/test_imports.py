"""The house stands: which module may import which, read off the sources."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]

# From the ground up: a module imports those of the lines above its own, and none beside it but in its own room.
HOUSE = """\
layers.onednn
layers.linear layers.chunking
layers.maps
layers.attention
layers
version paper text packaged
errors
files fields images+pixels+dicom train_args
runs exported
datasets metrics predictions tables
bootstrap curves image_folders calibration
operating_points
checkpoint
convert
hub
hifuse
__init__ loading
inference
warm_start publish+model_card+space prepare evaluate compare calibrate explain demo export predict report recipes
cli
__main__"""
PLACES = {
    module: (floor, room)
    for floor, line in enumerate(HOUSE.splitlines())
    for room in line.split()
    for module in room.split("+")
}


def read_imports(package: str) -> dict[str, set[str]]:
    """All that each module of a package imports, also within its functions, by full names."""
    imports = {}
    for path in (ROOT / package).rglob("*.py"):
        *folder, name = path.relative_to(ROOT).with_suffix("").parts
        names = imports[".".join([*folder, name]).removesuffix(".__init__")] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                origin = [*folder[: len(folder) + 1 - node.level]] if node.level else []
                names |= {".".join([*origin, *filter(None, [node.module]), alias.name]) for alias in node.names}
    return imports


def find_place(module: str) -> tuple[int, str]:
    """The floor of the house that a module is on, and its room."""
    first, *rest = module.split(".")[1:] or ["__init__"]
    return PLACES[f"layers.{rest[0]}" if first == "layers" and rest else first]


def test_modules_import_only_what_lies_below_them():
    imports = read_imports("hifuse_timm")
    for module, names in imports.items():
        ours = find_place(module)
        for name in names:
            assert not name.startswith(("benchmarks", "tests")), f"{module} imports {name}"
            if name.partition(".")[0] == "hifuse_timm":
                theirs = find_place(name if name in imports else name.rpartition(".")[0])
                assert theirs == ours or theirs[0] < ours[0], f"{module} imports {name}"


def test_benchmarks_take_public_names():
    for module, names in read_imports("benchmarks").items():
        private = {name for name in names if name.startswith("hifuse_timm.") and "._" in name}
        assert private <= {"hifuse_timm.__version__"}, f"{module} imports {private}"
