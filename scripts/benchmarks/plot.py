"""Draws the results as an SVG: times on one logarithmic scale, shorter is better.

    python -m benchmarks.plot RESULTS.json PLOT.svg

It has its own background, and follows the reader's preference for light or dark colours.
"""

import json
import math
import sys
from dataclasses import dataclass
from html import escape

WIDTH, MARGIN = 880, 24
LABELS, VALUES = 250, 76
BAR, GAP, PANEL_GAP = 14, 7, 22
AXIS_LEFT, AXIS_RIGHT = MARGIN + LABELS, WIDTH - MARGIN - VALUES

STFS, NATIVE, OTHER = "stfs", "native", "other"
LEGEND = [(STFS, "through stfs"), (NATIVE, "native safetensors file or the source itself"), (OTHER, "without stfs")]

STYLE = """
text { font: 12px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #1f2328; }
.title { font-size: 13px; font-weight: 600; }
.small { font-size: 11px; fill: #59636e; }
.back { fill: #ffffff; stroke: #d1d9e0; }
.grid { stroke: #d1d9e0; stroke-width: 1; }
.range { stroke: #1f2328; stroke-width: 1.5; }
.stfs { fill: #2f7fd8; } .native { fill: #8c959f; } .other { fill: #e08a3c; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .small { fill: #9198a1; }
  .back { fill: #0d1117; stroke: #3d444d; }
  .grid { stroke: #30363d; }
  .range { stroke: #f0f6fc; }
  .stfs { fill: #4493f8; } .native { fill: #767e88; } .other { fill: #c9742a; }
}
"""


@dataclass
class Panel:
    title: str
    meaning: str
    section: str
    # Label, row, kind.
    bars: list


def loads(way):
    return [
        ("torch.load", f"{way}: torch.load", OTHER),
        ("torch.load, mmap=True", f"{way}: torch.load mmap=True", OTHER),
        ("load_file, mount, first time", f"{way}: mount, first", STFS),
        ("load_file, mount, again", f"{way}: mount, again", STFS),
        ("load_file, mount, promoted", f"{way}: promoted, first", STFS),
        ("load_file, native file", f"{way}: native file", NATIVE),
    ]


def loader(title, row):
    return [
        (f"{title}, mount, first time", f"{row}: mount, first", STFS),
        (f"{title}, native files", f"{row}: native files", NATIVE),
    ]


PANELS = [
    Panel(
        "Look at a checkpoint nobody has looked at: GPT-2",
        "the size of the converted file, against converting it",
        "looking",
        [("convert.py", "convert.py", OTHER), ("first stat on a mount", "first stat", STFS)],
    ),
    Panel("Load GPT-2, no byte touched", "until the loader returns", "loading_gpt2", loads("load")),
    Panel(
        "Load GPT-2 and copy every tensor",
        "until every tensor is in memory that existed before",
        "loading_gpt2",
        loads("load and copy"),
    ),
    Panel(
        "Load a Llama in bfloat16, every page read",
        "fastsafetensors and run:ai read around the page cache: native files from the disk",
        "peers",
        [
            ("torch.load", "torch.load", OTHER),
            ("from_pretrained, pickles", "transformers from_pretrained of pickles", OTHER),
            *loader("from_pretrained", "transformers from_pretrained"),
            *loader("fastsafetensors", "fastsafetensors, CPU"),
            *loader("run:ai streamer", "run:ai model streamer, CPU"),
        ],
    ),
    Panel(
        "Read a whole file from the disk: GPT-2",
        "page cache dropped before",
        "cold",
        [
            ("mount", "the mount's file", STFS),
            ("the checkpoint itself", "the checkpoint itself", NATIVE),
            ("native file", "native file", NATIVE),
        ],
    ),
    Panel(
        "ls -lR of many small checkpoints",
        "every checkpoint's converted size is listed",
        "tree",
        [
            ("mount, nothing planned", "ls -lR, nothing planned", STFS),
            ("mount, plans cached", "ls -lR, plans cached", STFS),
            ("mount, plans cached, again", "ls -lR, plans cached, again", STFS),
            ("the source", "ls -lR of the source", NATIVE),
        ],
    ),
    Panel(
        "First ls -l of a checkpoint far away",
        "sshfs, 30 ms before every reply",
        "distance",
        [
            ("tensors by Python's zipfile", "the list of tensors by Python's zipfile", OTHER),
            ("mount", "first ls -l", STFS),
            ("the source", "ls -l of the source", NATIVE),
        ],
    ),
]


class Scale:
    """Seconds to pixels, from one power of ten to another."""

    def __init__(self, values):
        self.low = math.floor(math.log10(min(values)))
        self.high = max(math.ceil(math.log10(max(values))), self.low + 1)

    def x(self, seconds):
        share = (math.log10(seconds) - self.low) / (self.high - self.low)
        return AXIS_LEFT + share * (AXIS_RIGHT - AXIS_LEFT)

    def decades(self):
        return [10.0**power for power in range(self.low, self.high + 1)]


def draw(results):
    """The SVG's text. Panels of sections that were not run are left out."""
    panels = [(panel, measured) for panel in PANELS if (measured := bars_of(panel, results["sections"]))]
    times = [value for _, bars in panels for _, row, _ in bars for value in row["values"]]
    if not times:
        return message("nothing of what the plot shows was measured")
    scale = Scale(times)
    parts, y = legend(MARGIN + 12)
    for panel, bars in panels:
        drawn, y = draw_panel(panel, bars, results["sections"][panel.section]["title"], scale, y + PANEL_GAP)
        parts += drawn
    for line in footer(results):
        y += 16
        parts.append(text(MARGIN, y, line, "small"))
    return document(parts, y + MARGIN - 6)


def bars_of(panel, sections):
    rows = sections.get(panel.section, {}).get("rows", {})
    return [(label, rows[row], kind) for label, row, kind in panel.bars if "values" in rows.get(row, {})]


def draw_panel(panel, bars, measured, scale, y):
    meaning = size_of(measured) + panel.meaning
    parts = [text(MARGIN, y, panel.title, "title"), text(MARGIN, y + 15, meaning, "small")]
    top = y + 26
    bottom = top + len(bars) * (BAR + GAP)
    for decade in scale.decades():
        x = scale.x(decade)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4}" y2="{bottom}"/>')
        parts.append(text(x, bottom + 13, shown(decade), "small", "middle"))
    for index, (label, row, kind) in enumerate(bars):
        parts += draw_bar(label, row, kind, scale, top + index * (BAR + GAP))
    return parts, bottom + 20


def draw_bar(label, row, kind, scale, y):
    end, middle = scale.x(row["median"]), y + BAR / 2
    low, high = scale.x(min(row["values"])), scale.x(max(row["values"]))
    return [
        text(AXIS_LEFT - 8, y + BAR - 3, label, anchor="end"),
        f'<rect class="{kind}" x="{AXIS_LEFT}" y="{y}" width="{max(end - AXIS_LEFT, 1):.1f}" height="{BAR}" rx="2"/>',
        f'<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>',
        text(max(end, high) + 6, y + BAR - 3, shown(row["median"])),
    ]


def size_of(title):
    """What the section says of its model's size: its title ends in it."""
    return f"{title.rpartition(', ')[2]}; " if title.endswith(" MB") else ""


def legend(y):
    parts, x = [], MARGIN
    for kind, meaning in LEGEND:
        parts.append(f'<rect class="{kind}" x="{x}" y="{y - 10}" width="12" height="12" rx="2"/>')
        parts.append(text(x + 18, y, meaning))
        x += 40 + 5.8 * len(meaning)
    parts.append(text(WIDTH - MARGIN, y, "shorter is better, logarithmic", "small", "end"))
    return parts, y + 8


def footer(results):
    machine = results["machine"]
    memory = machine["memory_bytes"] / 2**30
    yield f"Medians of {results['rounds']} rounds in one run; the line in a bar goes from the least to the most."
    yield (
        f"{machine['cpus']} x {machine['cpu']}, {memory:.0f} GiB, Linux {machine['kernel']}, {machine['filesystem']}, "
        f"{machine['stfs']}, torch {machine['torch']}, safetensors {machine['safetensors']}"
    )
    if results["scale"] != 1:
        yield f"Models scaled by {results['scale']:g}: these numbers only try the benchmark."


def shown(seconds):
    if seconds >= 1:
        return f"{seconds:.3g} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} µs"


def text(x, y, words, kind="", anchor="start"):
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def message(words):
    return document([text(MARGIN, MARGIN + 12, words)], 2 * MARGIN + 12)


def document(parts, height):
    size = f'viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    back = f'<rect class="back" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:.0f}" rx="6"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", back, *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    source, target = sys.argv[1:]
    with open(source) as file, open(target, "w") as plot:
        plot.write(draw(json.load(file)))
