"""The documentation holds: its commands parse, its Python runs, and its links and pictures lead somewhere."""

import ast
import contextlib
import io
import json
import re
import runpy
import shlex
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest
import torch
from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image

from benchmarks.__main__ import COMMANDS as BENCHMARKS
from hifuse_timm.cli import _COMMANDS as COMMANDS
from hifuse_timm.errors import describe_install

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks/README.md"]
PAGES += [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]
REPOSITORY = "https://github.com/hifuse-timm/hifuse-timm"
PROGRAMS = {"hifuse_timm": COMMANDS, "benchmarks": BENCHMARKS}

# What the Python blocks need that are not run, by page and how their last line begins.
NOT_RUN = {
    ("docs/evaluate.md", "probs = read_calibration("): "a calibration",
    ("docs/evaluate.md", "write_report("): "a run and its predictions",
    ("docs/explain.md", "heat = heat_map("): "an image",
    ("docs/other-software.md", 'smp.Unet("tu-hifuse_tiny", encoder_weights=True'): "weights",
    ("docs/other-software.md", "TimmBackbone("): "weights and an image",
    ("docs/other-software.md", "quantize_(model"): "a network for each line",
    ("docs/predict-and-export.md", 'print(about["classes"]'): "an exported network and an image",
    ("docs/weights.md", 'timm.create_model("hf-hub:'): "the Hub",
    ("docs/weights.md", 'timm.create_model("hifuse_small_dense"'): "a checkpoint",
}

# Options of timm's scripts that sentences name.
TIMM = {
    *("--bce-pos-weight", "--checkpoint-hist", "--device-modules", "--epochs", "--eval-metric", "--loss"),
    *("--loss-class-weight", "--loss-pos-weight", "--lr", "--model-ema", "--no-aug", "--reparam", "--warmup-epochs"),
    "--weight-decay",
}


def read_tokens(text: str) -> list[Token]:
    """Tokens of a page in their order, those within lines too."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    return [part for token in tokens for part in (token, *(token.children or []))]


def read_blocks(text: str, *languages: str) -> list[str]:
    """What stands between fences of these languages; commands have none."""
    return [t.content for t in read_tokens(text) if t.type == "fence" and t.info.strip() in languages]


def read_spans(text: str) -> list[str]:
    """What stands between backticks within lines."""
    return [token.content for token in read_tokens(text) if token.type == "code_inline"]


def test_all_pages_are_there():
    names = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert names == {path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]} | {
        "benchmarks/README.md"
    }


def each(items: dict[str, list[str]]) -> pytest.MarkDecorator:
    """Parametrizes a test by page and item."""
    cases = [pytest.param(page, item, id=f"{page}-{i}") for page in items for i, item in enumerate(items[page])]
    return pytest.mark.parametrize("page, item", cases)


# Commands


class Parser(ArgumentParser):
    """A parser that raises what is wrong, and takes no beginnings of options for them."""

    def __init__(self):
        super().__init__(allow_abbrev=False, add_help=False)

    def error(self, message: str):
        raise ValueError(message)

    def relax(self) -> None:
        """Take arguments that lack what the reader knows."""
        for action in self._actions:
            action.required = False
            action.nargs = {None: "?", "+": "*"}.get(action.nargs, action.nargs)
        for group in self._mutually_exclusive_groups:
            group.required = False


def find_commands(block: str) -> Iterator[list[str]]:
    """The commands of a block that are ours, or make's, as words; those within $( ) too."""
    for line in block.replace("\\\n", " ").splitlines():
        if not re.search(r"-m (hifuse_timm|benchmarks)\b|^\s*(make|hifuse-timm) ", line):
            continue
        for inner in re.findall(r"\$\(([^()]*)\)", line):
            yield from find_commands(inner)
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        command = []
        for word in [*lexer, ";"]:
            if word.strip(";&|"):
                command.append(word)
            elif command:
                yield command
                command = []


def check_command(words: list[str], partial: bool = False) -> None:
    """Parse a command of ours as the command line would.

    Args:
        words: The command. What `...` and variables of the shell stand for may lack.
        partial: Whether it is named in a sentence, where anything may lack.

    Raises:
        ValueError: It does not parse.
    """
    if words[0] == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
        if unknown := {word for word in words[1:] if "=" not in word and word != "..."} - targets:
            raise ValueError(f"no target {unknown}")
        return
    if words[0] == "hifuse-timm":
        program, rest = "hifuse_timm", words[1:]
    elif "-m" in words:
        program, *rest = words[words.index("-m") + 1 :]
    else:
        return
    if program not in PROGRAMS or not rest:
        return
    name, *arguments = rest
    if name not in PROGRAMS[program]:
        raise ValueError(f"no command {name}")
    if name == "run":  # what follows the script is the script's
        arguments = arguments[:1]
    parser = Parser()
    PROGRAMS[program][name].add_arguments(parser)
    said = [word for word in arguments if word != "--help" and not re.fullmatch(r"\.\.\.|\$\w+", word)]
    if partial or said != arguments:
        parser.relax()
    parser.parse_args(said)


SHELL = {
    page.relative_to(ROOT).as_posix(): [
        shlex.join(command) for block in read_blocks(page.read_text(), "") for command in find_commands(block)
    ]
    for page in PAGES
}


@each(SHELL)
def test_command_parses(page, item):
    check_command(shlex.split(item))


def find_mentions(text: str) -> Iterator[list[str]]:
    """Commands that are named within sentences: `make test`, `python -m benchmarks scaling`, `evaluate --by site`."""
    names = {name for commands in PROGRAMS.values() for name in commands}
    for span in read_spans(text):
        words = span.split()
        if words[0] in names and len(words) > 1:
            yield words
        else:
            yield from find_commands(span)


def check_mention(words: list[str]) -> None:
    """Parse a command that is named within a sentence, of one program or the other where its name stands alone."""
    programs = [program for program, commands in PROGRAMS.items() if words[0] in commands]
    if not programs:
        return check_command(words, partial=True)
    errors = []
    for program in programs:
        try:
            return check_command(["python", "-m", program, *words], partial=True)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


MENTIONS = {
    page.relative_to(ROOT).as_posix(): [" ".join(words) for words in find_mentions(page.read_text())] for page in PAGES
}


@each(MENTIONS)
def test_command_within_a_sentence_parses(page, item):
    check_mention(item.split())


@pytest.mark.parametrize(
    "block, reason",
    [
        ("python -m hifuse_timm evaluate --model hifuse_tiny --checkpoint F --data-dir DIR --jsn F", "jsn"),
        ("python -m hifuse_timm evaluate --model hifuse_tiny \\\n  --checkpoint F --data-dri DIR", "data-dir"),
        ("python -m hifuse_timm evaluate --model hifuse_tiny", "required"),
        ("python -m hifuse_timm evaluat ... --by site", "evaluat"),
        ("python -m hifuse_timm evaluate ... --bye site", "bye"),
        ('python train.py --config "$(python -m hifuse_timm recipe isic2018 --balance)"', "balance"),
        ("torchrun --nproc_per_node 4 -m hifuse_timm predict DIR --model M --pretrained --cvs F", "csv|cvs"),
        ("for SET in a b; do python -m benchmarks accuracy --dat-dir $SET; done", "dat-dir|required"),
        ("A=1 python -m benchmarks throughput --mode train", "train"),
        ("make reproduces", "reproduces"),
    ],
)
def test_command_that_does_not_parse_is_found(block, reason):
    with pytest.raises(ValueError, match=reason):
        for command in find_commands(block):
            check_command(command)


@pytest.mark.parametrize("text", ["`evaluate --bye`", "`make tests`", "`python -m benchmarks scalings`"])
def test_command_within_a_sentence_that_does_not_parse_is_found(text):
    with pytest.raises(ValueError):
        for words in find_mentions(text):
            check_mention(words)


def find_options(text: str) -> set[str]:
    """Options that are named within sentences, whosesoever they are."""
    return {option for span in read_spans(text) for option in re.findall(r"(?<![\w-])--[\w-]+", span)}


def list_options() -> set[str]:
    """All options of our commands."""
    options = {"--help"}
    for commands in PROGRAMS.values():
        for module in commands.values():
            parser = Parser()
            module.add_arguments(parser)
            options |= parser._option_string_actions.keys()
    return options


def test_options_within_sentences_are_ours_or_timms():
    named = set().union(*(find_options(page.read_text()) for page in PAGES))
    assert named - list_options() == TIMM
    assert find_options("`evaluate --bye` and `--resampels 10`") - list_options() == {"--bye", "--resampels"}


def test_every_command_is_shown():
    shown = {" ".join(shlex.split(command)) for commands in SHELL.values() for command in commands}
    for program, commands in PROGRAMS.items():
        for name in commands:
            assert any(f"-m {program} {name} " in f"{command} " for command in shown), f"{program} {name} is not shown"


def test_readme_lists_every_command_once():
    listed = re.findall(r"^\| \[`([\w-]+)`\]\(docs/", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


def list_extras() -> set[str]:
    section = re.search(
        r"^\[project.optional-dependencies\]\n(.*?)^\[", (ROOT / "pyproject.toml").read_text(), re.M | re.S
    )
    return set(re.findall(r"^([\w-]+) = \[", section[1], flags=re.MULTILINE))


def find_install_faults(text: str) -> list[str]:
    """Lines that install this package as if it were released, or with extras that it has not."""
    extras, faults = list_extras(), []
    for code in read_blocks(text, "") + read_spans(text):
        for line in re.findall(r"\bpip install .*", code):
            named = re.search(r"(hifuse-timm|'\.|\.)\[([\w,-]+)\]", line)
            unknown = set(named[2].split(",")) - extras if named else set()
            released = "hifuse-timm" in line and f"git+{REPOSITORY}" not in line
            faults += [line] * bool(unknown or released)
    return faults


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_install_lines_need_no_release(page):
    assert find_install_faults(page.read_text()) == []


def test_package_names_no_install_line_that_needs_a_release():
    sources = {path: path.read_text() for path in (ROOT / "hifuse_timm").rglob("*.py")}
    released = re.compile(r"hifuse-timm\[[^]]*\](?! @ git\+)|pip install '?hifuse-timm\b(?!\[| @)")
    assert [path for path, text in sources.items() if released.search(text)] == []
    for extra in list_extras():
        git, clone = describe_install(extra).split(", or in a clone ")
        assert find_install_faults(f"```\n{git}\n{clone}\n```") == []


@pytest.mark.parametrize(
    "text",
    ["`pip install 'hifuse-timm[explain]'`", "```\npip install hifuse-timm\n```", "`pip install -e '.[medicine]'`"],
)
def test_install_line_that_needs_a_release_is_found(text):
    assert len(find_install_faults(text)) == 1


# Python

PYTHON = {page.relative_to(ROOT).as_posix(): read_blocks(page.read_text(), "python") for page in PAGES}
BLOCKS = [(page, block) for page, blocks in PYTHON.items() for block in blocks]


def run_block(block: str, **given) -> None:
    """Run Python, and compare what it prints with the comments behind its calls of print, or in the lines below.

    Raises:
        AssertionError: It prints something else.
    """
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(block, "<block>", "exec"), given)
    promised = re.findall(r"^print\(.*\)(?:  |\n)# (.*)$", block, flags=re.MULTILINE)
    assert output.getvalue().splitlines() == promised


@pytest.fixture
def torch_hub(tmp_path, monkeypatch):
    """What torch.hub has downloaded of the repository is this checkout, and it cannot look for more."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "hifuse-timm_hifuse-timm_main").symlink_to(ROOT)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)

    def refuse(*args):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)


def find_reasons(page: str, block: str) -> list[tuple[str, str]]:
    """What of NOT_RUN is of a block."""
    return [case for case in NOT_RUN if case[0] == page and block.splitlines()[-1].startswith(case[1])]


@pytest.mark.parametrize("page, block", [case for case in BLOCKS if not find_reasons(*case)])
@pytest.mark.filterwarnings("ignore")
def test_python_runs(page, block, torch_hub, narrow, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = {} if page == "README.md" else dict(model=narrow(), x=torch.rand(1, 3, 64, 64))  # docs go on from there
    run_block(block, **given)


def test_python_that_is_not_run_is_there_and_imports_what_exists():
    not_run = [case for case in BLOCKS if find_reasons(*case)]
    assert sorted(reason for case in not_run for reason in find_reasons(*case)) == sorted(NOT_RUN)
    for _, block in not_run:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(ast.unparse(node), {})


@pytest.mark.parametrize(
    "block", ["import hifuse_timm\nhifuse_timm.hifuse_huge()", "print(1 + 1)  # 3", "print(2)\n# 3", "print(2)"]
)
def test_python_that_does_not_hold_is_found(block):
    with pytest.raises((AttributeError, AssertionError)):
        run_block(block)


# The notebook

NOTEBOOK = ROOT / "docs/quickstart.ipynb"


def read_cells(kind: str) -> list[dict]:
    """The cells of the notebook that are code or markdown."""
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.mark.filterwarnings("ignore")
def test_notebook_runs_offline_and_learns(offline, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    cells = ["".join(cell["source"]) for cell in read_cells("code")]
    (settings,) = [i for i, source in enumerate(cells) if re.fullmatch(r"epochs = \d+", source)]
    cells[settings] = "epochs = 1"
    namespace = {}
    for source in cells:
        exec(compile(source, "<cell>", "exec"), namespace)
    assert namespace["accuracy"] > 0.5  # of ten classes
    assert "normal-test1 normal 78.7% pneumonia 21.3%" in capsys.readouterr().out


def test_notebook_has_no_outputs():
    assert [(cell["outputs"], cell["execution_count"]) for cell in read_cells("code")] == [([], None)] * 6


def test_notebook_installs_from_git_and_its_links_lead_somewhere():
    (package,) = re.findall(r'"(hifuse-timm\[.*)"', "".join(read_cells("code")[0]["source"]))
    assert find_install_faults(f"```\npip install '{package}'\n```") == []
    for cell in read_cells("markdown"):
        for link in find_targets("".join(cell["source"]))[0]:
            check_link(NOTEBOOK, link)


# Links and pictures


def find_anchors(text: str) -> set[str]:
    """Anchors of a page's headings by GitHub's rule, and those that HTML gives."""
    anchors = set(re.findall(r'<\w+ (?:id|name)="([^"]+)"', text))
    tokens = read_tokens(text)
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            title = "".join(t.content for t in tokens[i + 1].children if t.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            number, anchor = 0, slug
            while anchor in anchors:
                number += 1
                anchor = f"{slug}-{number}"
            anchors.add(anchor)
    return anchors


def find_targets(text: str) -> tuple[list[str], list[str]]:
    """What a page links to, and its pictures, in Markdown and in HTML."""
    tokens = read_tokens(text)
    html = "".join(token.content for token in tokens if token.type in ("html_block", "html_inline"))
    links = [token.attrs["href"] for token in tokens if token.type == "link_open"] + re.findall(r'href="([^"]*)"', html)
    pictures = [token.attrs["src"] for token in tokens if token.type == "image"]
    return links, pictures + re.findall(r'(?:src|srcset)="([^"]*)"', html)


def check_link(page: Path, link: str) -> None:
    """Follow a link to a file or a heading of this repository.

    Raises:
        AssertionError: It leads nowhere.
    """
    blob = f"{REPOSITORY}/blob/main/"
    folder = ROOT if link.startswith(blob) else page.parent
    parts = urlsplit(link.removeprefix(blob))
    if parts.scheme:
        assert parts.scheme in ("https", "mailto"), f"{link} is not https"
        return
    target = (folder / unquote(parts.path)).resolve() if parts.path else page
    assert target.is_relative_to(ROOT) and target.exists(), f"{link} does not exist"
    if parts.fragment:
        assert parts.fragment in find_anchors(target.read_text()), f"{link} is no heading"


def check_picture(page: Path, source: str) -> None:
    """Open a picture of this repository.

    Raises:
        AssertionError: It is not there, or not of this repository.
        OSError, ElementTree.ParseError: It is no picture.
    """
    path = page.parent / source
    assert path.is_file(), f"{source} does not exist"
    if path.suffix == ".svg":
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    else:
        with Image.open(path) as image:
            image.verify()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_pictures_lead_somewhere(page):
    links, pictures = find_targets(page.read_text())
    for link in links:
        check_link(page, link)
    for picture in pictures:
        check_picture(page, picture)


@pytest.mark.parametrize(
    "text",
    [
        "[a](docs/gone.md)",
        "[a](docs/evaluate.md#no-such-heading)",
        "[a](#Licence)\n\n# Licence",
        "[a](../outside.md)",
        '<a href="gone.md">a</a>',
        "![a](docs/gone.png)",
        "![a](README.md)",
        '<picture><source srcset="docs/gone.svg"></picture>',
        f"[a]({REPOSITORY}/blob/main/gone.md)",
    ],
)
def test_link_or_picture_that_leads_nowhere_is_found(text, tmp_path):
    page = ROOT / "README.md"
    links, pictures = find_targets(text)
    assert len(links) + len(pictures) == 1
    with pytest.raises((AssertionError, OSError)):
        for link in links:
            check_link(page, link)
        for picture in pictures:
            check_picture(page, picture)


def test_anchors_are_githubs():
    text = '# What\'s `fuse()` for?\n\n## A-B, c\n\n## A-B, c\n\n## Über 2\n\n<a id="x"></a>\n\n```\n# none\n```\n'
    assert find_anchors(text) == {"whats-fuse-for", "a-b-c", "a-b-c-1", "über-2", "x"}


def test_readme_leads_to_every_page():
    seen, left = set(), [ROOT / "README.md"]
    while left:
        page = left.pop()
        if page not in seen and page.suffix == ".md" and page.is_file():
            seen.add(page)
            left += [(page.parent / urlsplit(link).path).resolve() for link in find_targets(page.read_text())[0]]
    assert set(PAGES) <= seen, f"unreached: {set(PAGES) - seen}"


def test_drawings_are_what_the_script_draws():
    script = runpy.run_path(str(ROOT / "docs/draw_network.py"))
    for name, scheme in script["SCHEMES"].items():
        assert (ROOT / f"docs/network-{name}.svg").read_text() == script["draw"](scheme)
