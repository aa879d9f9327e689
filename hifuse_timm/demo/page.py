"""The page, by Gradio. It asks no other machine for anything, and keeps nothing."""

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from ..errors import require
from ..text import escape_markdown
from .answering import Answerer, decode_files, render_template

__all__ = ["launch", "load_gradio", "make_page"]

_TEMPLATES = Path(__file__).parent / "templates"
_WARNING = "**Not a medical device.** For research and teaching: nothing here is to decide on anyone's treatment."
_SCRIPT = "async (files, layers) => [await readFiles(), layers]"


def load_gradio() -> ModuleType:
    """Import Gradio so that it reports to nobody.

    Raises:
        RuntimeError: If it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # is read on import
    return require("gradio", "demo")


def make_page(answerer: Answerer, title: str, examples: Sequence[Path] = (), credit: str = ""):
    """Make the page.

    Args:
        answerer: Answers for the files.
        title: What the page is called: which network this is.
        examples: PNG files to click on.
        credit: Whose they are, which stands below them.

    Returns:
        The page, as `gradio.Blocks`.

    Raises:
        RuntimeError: If Gradio is not installed.
        OSError: If an example cannot be read.
    """
    gradio = load_gradio()

    def answer(files: object, layers: list[str]) -> str:
        try:
            return answerer.answer_html(decode_files(files), layers)
        except ValueError as e:
            raise gradio.Error(str(e), print_exception=False) from e

    calibrated = "not calibrated" if answerer.calibration is None else "calibrated"
    pictures = [(path.name, base64.b64encode(path.read_bytes()).decode()) for path in examples]
    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(f"# {escape_markdown(title)}\n\n{_WARNING} The probabilities are {calibrated}.")
        gradio.HTML(render_template("files.html", examples=pictures, credit=credit), padding=False)
        layers = gradio.Dropdown(
            list(answerer.layers),
            value=list(answerer.layers[:1]),
            multiselect=True,
            label="Layers at which to draw where the network looks",
            visible=bool(answerer.layers),
        )
        button = gradio.Button("Predict", elem_id="ask", variant="primary")
        answers = gradio.HTML(padding=False)
        gradio.on(
            [button.click, layers.input],
            answer,
            inputs=[gradio.JSON(visible=False), layers],
            outputs=answers,
            js=_SCRIPT,
            api_visibility="private",
            concurrency_limit=1,  # heat maps hang hooks into the network
        )
    return page


def launch(page, host: str, port: int) -> None:
    """Serve a page of `make_page` until Ctrl-C.

    Args:
        page: The page.
        host: Address to serve it at.
        port: Port to serve it at.

    Raises:
        OSError: If the port is taken.
    """
    gradio = load_gradio()
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            max_file_size=0,  # of Gradio's own uploads, which it would keep: the page sends files with the question
            run_history=False,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css_paths=_TEMPLATES / "style.css",
            head_paths=_TEMPLATES / "head.html",
        )
    except OSError as e:
        raise OSError(f"port {port} of {host} cannot be served at: give another one (--port)") from e
    print(f"http://{host}:{port} (Ctrl-C ends it)", flush=True)
    page.block_thread()
