"""A page in which a network answers for images that are dropped on it, by Gradio.

Needs the extra `demo`.
"""

from .answering import Answerer, decode_files
from .page import launch, load_gradio, make_page

__all__ = ["Answerer", "decode_files", "launch", "load_gradio", "make_page"]
