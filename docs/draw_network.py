"""Draw the network, docs/network-light.svg and docs/network-dark.svg: python docs/draw_network.py."""

from pathlib import Path
from xml.sax.saxutils import escape

# of the page, of its text, and of each branch: fill and line
SCHEMES = {
    "light": dict(
        text="#1f2328",
        faint="#59636e",
        arrow="#59636e",
        local=("#ddf4ff", "#0969da"),
        fused=("#dafbe1", "#1a7f37"),
        attention=("#fff1e5", "#bc4c00"),
        plain=("#f6f8fa", "#818b98"),
    ),
    "dark": dict(
        text="#f0f6fc",
        faint="#9198a1",
        arrow="#9198a1",
        local=("#0c2d6b", "#58a6ff"),
        fused=("#033a16", "#3fb950"),
        attention=("#5a1e02", "#f0883e"),
        plain=("#161b22", "#656c76"),
    ),
}
WIDTH, HEIGHT = 640, 372
BOX, TALL = 92, 52  # width and height of a block
COLUMNS = (102, 216, 330, 444)  # left edge of each stage
LOCAL, FUSED, GLOBAL = 62, 166, 270  # top edge of each branch
STAGES = (("56x56", "96"), ("28x28", "192"), ("14x14", "384"), ("7x7", "768"))
TITLE = "HiFuse: a local and a global branch of four stages each, and a third that fuses both at every stage"


def draw(scheme: dict) -> str:
    """The drawing, as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{TITLE}" '
        'font-family="-apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="18" text-anchor="middle">',
        f"<title>{TITLE}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{scheme["arrow"]}"/></marker></defs>',
    ]

    def text(x: float, y: float, content: str, color: str = "text", **attributes) -> None:
        extra = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
        parts.append(f'<text x="{x:g}" y="{y:g}" fill="{scheme[color]}"{extra}>{escape(content)}</text>')

    def box(x: float, y: float, width: float, height: float, kind: str, *lines: str) -> None:
        fill, line = scheme[kind]
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" fill="{fill}" stroke="{line}" '
            'stroke-width="2"/>'
        )
        for i, content in enumerate(lines):
            text(x + width / 2, y + height / 2 + 6 + 21 * (i - (len(lines) - 1) / 2), content)

    def arrow(*points: tuple[float, float]) -> None:
        path = "L".join(f"{x:g} {y:g}" for x, y in points)
        parts.append(
            f'<path d="M{path}" fill="none" stroke="{scheme["arrow"]}" stroke-width="2" marker-end="url(#tip)"/>'
        )

    middle = FUSED + TALL / 2
    box(6, FUSED, 68, TALL, "plain", "image")
    for top in (LOCAL, GLOBAL):
        edge = FUSED if top == LOCAL else FUSED + TALL
        arrow((40, edge), (40, top + TALL / 2), (COLUMNS[0], top + TALL / 2))
    for i, (x, (size, channels)) in enumerate(zip(COLUMNS, STAGES, strict=True)):
        text(x + BOX / 2, 24, size, "faint")
        text(x + BOX / 2, 46, f"{channels} ch.", "faint", font_size=16)
        box(x, LOCAL, BOX, TALL, "local", "conv")
        box(x, GLOBAL, BOX, TALL, "attention", "attention")
        box(x, FUSED, BOX, TALL, "fused", "fuse")
        arrow((x + BOX / 2, LOCAL + TALL), (x + BOX / 2, FUSED))
        arrow((x + BOX / 2, GLOBAL), (x + BOX / 2, FUSED + TALL))
        if i < len(COLUMNS) - 1:
            for top in (LOCAL, FUSED, GLOBAL):
                arrow((x + BOX, top + TALL / 2), (COLUMNS[i + 1], top + TALL / 2))
    box(562, FUSED, 72, TALL, "plain", "classes")
    arrow((COLUMNS[-1] + BOX, middle), (562, middle))
    # in the middle of the page, as some machines have wider fonts than others
    text(
        WIDTH // 2, 352, "local branch (top), global branch (bottom), both fused at four scales", "faint", font_size=16
    )
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    for name, scheme in SCHEMES.items():
        Path(__file__).with_name(f"network-{name}.svg").write_text(draw(scheme))
