"""The page: Bokeh's widgets and figures over a `Scene`. Each browser tab has a page of its own; all share the scene."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.events import Tap
from bokeh.layouts import column, row
from bokeh.models import (
    BasicTicker,
    BoxAnnotation,
    Button,
    ColumnDataSource,
    Div,
    HoverTool,
    Legend,
    LinearColorMapper,
    RadioButtonGroup,
    Select,
    Slider,
    Span,
    Spinner,
)
from bokeh.plotting import figure

from parspike.errors import ParspikeError
from parspike.tables import COLOURS
from parspike.view.scene import Scene, Shown

__all__ = ["Page"]

NEURONS = 150
"""Rows of a raster: more are drawn as every n-th neuron."""
STEPS = 256
"""Columns of a raster."""
MAP = 160_000
"""Elements of all channel maps of a layer: more are drawn as fewer channels, then as every n-th element."""
LINES = 5
"""Classes whose scores are drawn."""
STRIP = 12
"""Inputs in the strip of pictures."""
TILE = 64
WIDTH = 370
PLAY = 400
"""Milliseconds of a time-step while it plays."""
MARKS = ["#D55E00", "#FFFFFF", "#0072B2", "#56B4E9", "#000000"]
"""A spike taken back, none, one, two, more."""
WRAPPED = {"flex-wrap": "wrap"}
STYLE = ":host { font: 14px/1.45 system-ui, sans-serif; color: #222 } b { font-weight: 600 }"


class Page:
    """The widgets of one tab. `add_to` puts them into a Bokeh document."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.doc = scene, None
        self.playing: Any = None
        most = max(T for forms in scene.networks.values() for T in forms)
        self.item = Spinner(title="input", low=0, high=len(scene.items) - 1, value=0, step=1, width=90, name="input")
        layers: list[Any] = list(dict.fromkeys(_layers(scene)))
        self.layer = Select(title="layer", value=layers[0], options=layers, width=260, name="layer")
        self.time = Slider(title="time-step", start=1, end=max(2, most), value=most, step=1, width=420, name="time")
        self.time.disabled = most == 1
        self.play = Button(label="► play", width=90, align="end", name="play", disabled=most == 1)
        self.about = Div(text="", name="about", css_classes=["about"], stylesheets=[STYLE])
        self.strip = _Strip(self)
        self.columns = [_Column(self, name) for name in scene.networks]
        self.item.on_change("value", lambda attr, old, new: self.chosen())
        self.layer.on_change("value", lambda attr, old, new: self.drawn())
        self.time.on_change("value", lambda attr, old, new: self.moved())
        self.play.on_click(self.toggled)
        self.chosen()

    @property
    def number(self) -> int:
        """The input that is shown."""
        value = self.item.value
        return min(max(int(value), 0), len(self.scene.items) - 1) if isinstance(value, (int, float)) else 0

    def add_to(self, doc: Document) -> None:
        """Put the page into a document."""
        self.doc = doc
        doc.title = "parspike view"
        head = Div(text="<b>parspike view</b>", stylesheets=[STYLE])
        doc.add_root(
            column(
                head,
                self.strip.figure,
                row(self.item, self.layer, self.time, self.play, styles=WRAPPED, sizing_mode="stretch_width"),
                self.about,
                row(*(one.root for one in self.columns), styles=WRAPPED, sizing_mode="stretch_width"),
                sizing_mode="stretch_width",
            )
        )

    def chosen(self) -> None:
        """Another input."""
        item = self.scene.items[self.number]
        known = [f"input {self.number}" + (f": {escape(item.name)}" if item.name else "")]
        if item.label is not None:
            known.append(f"label <b>{escape(self.scene.called(item.label))}</b>")
        if (said := self.scene.network_answer(self.number)) is not None:
            known.append(f"the network itself says <b>{escape(self.scene.called(said))}</b>")
        self.about.text = ", ".join(known)
        self.strip.mark(self.number)
        for one in self.columns:
            try:
                one.ran()
            except (ParspikeError, RuntimeError) as error:  # an input of another size than the first
                self.about.text += f"<br>{escape(one.name)}: {escape(str(error))}"

    def drawn(self) -> None:
        """Another layer."""
        for one in self.columns:
            one.drawn()

    def moved(self) -> None:
        """Another time."""
        for one in self.columns:
            one.moved()

    def toggled(self) -> None:
        """Play or stop."""
        if self.doc is None:
            return
        if self.playing is None:
            if self.time.value >= self.time.end:
                self.time.value = self.time.start
            self.playing = self.doc.add_periodic_callback(self._step, PLAY)
            self.play.label = "■ stop"
        else:
            self.doc.remove_periodic_callback(self.playing)
            self.playing, self.play.label = None, "► play"

    def _step(self) -> None:
        if self.time.value >= self.time.end:
            self.toggled()
        else:
            self.time.value = self.time.value + 1


class _Strip:
    """Pictures of the inputs, of which a click chooses one; where they are no images, nothing."""

    def __init__(self, page: Page) -> None:
        self.page, scene = page, page.scene
        shown = min(STRIP, len(scene.items))
        options: Any = {"x_range": (0, shown), "y_range": (0, 1.3)}
        self.figure = figure(
            width=shown * (TILE + 4) + 10, height=TILE + 30, **options,
            toolbar_location=None, tools="", name="strip", css_classes=["strip"],
        )  # fmt: skip
        self.figure.axis.visible = self.figure.grid.visible = False
        self.figure.outline_line_color = None
        pictures = [(n, item.picture) for n, item in enumerate(scene.items[:shown]) if item.picture is not None]
        self.figure.visible = bool(pictures)
        for n, picture in pictures:
            self.figure.image_rgba([_rgba(picture)], x=n + 0.04, y=0.02, dw=0.92, dh=1.0)
        numbers = [(str(n), n + 0.5) for n in range(shown)]
        source = ColumnDataSource({"x": [x for _, x in numbers], "text": [text for text, _ in numbers]})
        self.figure.text("x", 1.07, "text", source=source, text_align="center", text_font_size="11px")
        self.frame = BoxAnnotation(
            left=0, right=1, bottom=0, top=1.04, fill_alpha=0, line_color=COLOURS[1], line_width=3, editable=False
        )
        self.figure.add_layout(self.frame)
        self.figure.on_event(Tap, self._tapped)

    def mark(self, number: int) -> None:
        """Frame an input."""
        self.frame.left, self.frame.right = number, number + 1

    def _tapped(self, event: Any) -> None:
        number = math.floor(event.x) if event.x is not None else -1
        if 0 <= number < len(self.page.scene.items):
            self.page.item.value = number


class _Column:
    """One network: the answer after the steps so far, its scores over time, a raster, and maps of channels."""

    def __init__(self, page: Page, name: str) -> None:
        self.page, self.name = page, name
        self.steps = list(page.scene.networks[name])
        self.chosen = RadioButtonGroup(
            labels=[f"T = {T}" for T in self.steps], active=len(self.steps) - 1, name="T", visible=len(self.steps) > 1
        )
        self.chosen.on_change("active", lambda attr, old, new: self.ran())
        title = Div(text=f"<b>{escape(name)}</b>", stylesheets=[STYLE])
        self.what = Div(text="", width=WIDTH, css_classes=["what"], stylesheets=[STYLE])
        self.answer = Div(text="", width=WIDTH, css_classes=["answer"], stylesheets=[STYLE])
        self.by_T = Div(text="", width=WIDTH, css_classes=["by-T"], visible=len(self.steps) > 1, stylesheets=[STYLE])
        self.lines = ColumnDataSource({"xs": [], "ys": [], "colour": [], "label": []})
        self.scores = figure(
            width=WIDTH, height=220, x_axis_label="time-step", y_axis_label="score", toolbar_location=None, tools="",
        )  # fmt: skip
        self.scores.add_layout(Legend(label_text_font_size="10px", border_line_alpha=0, margin=0), "right")
        self.scores.multi_line("xs", "ys", color="colour", line_width=2, legend_field="label", source=self.lines)
        _whole_steps(self.scores)
        self.now = Span(location=1, dimension="height", line_color="#888", line_dash="dashed")
        self.scores.add_layout(self.now)
        self.spikes = ColumnDataSource({"image": [], "dh": [], "dw": []})
        self.raster = _plain(320, x_axis_label="time-step", y_axis_label="neuron", css_classes=["raster"])
        _whole_steps(self.raster)
        self.raster.y_range.range_padding = self.raster.x_range.range_padding = 0
        self.raster.image(
            "image", x=0, y=0, dw="dw", dh="dh", source=self.spikes,
            color_mapper=LinearColorMapper(palette=MARKS, low=-1.5, high=3.5),
        )  # fmt: skip
        self.raster.add_tools(HoverTool(tooltips=[("neuron", "$y{0}"), ("step", "$x{0}"), ("spikes", "@image")]))
        self.future = BoxAnnotation(left=1, fill_color="#ffffff", fill_alpha=0.75, editable=False)
        self.raster.add_layout(self.future)
        self.maps = ColumnDataSource({"image": [], "dh": [], "dw": []})
        self.map = _plain(300, css_classes=["map"])
        self.map.axis.visible = self.map.grid.visible = False
        self.map.y_range.range_padding = self.map.x_range.range_padding = 0
        self.map.match_aspect = True
        mapper = LinearColorMapper(palette="Viridis256", low=0, high=1, nan_color="#ffffff")
        self.map.image("image", x=0, y=0, dw="dw", dh="dh", source=self.maps, color_mapper=mapper)
        self.map.add_tools(HoverTool(tooltips=[("spikes a step", "@image{0.00}")]))
        self.shown: Shown
        self.train: np.ndarray | None = None
        self.root = column(title, self.chosen, self.what, self.answer, self.by_T, self.scores, self.raster, self.map)

    def ran(self) -> None:
        """Run the network on the input that is chosen."""
        scene, item = self.page.scene, self.page.number
        self.shown = scene.shown(self.name, self.steps[self.chosen.active or 0], item)
        shown = self.shown
        code = ", ".join(dict.fromkeys(neuron.label for neuron in shown.snn.neurons().values()))
        how = "its answer if it stopped there" if shown.snn.over_time else "what its trains say up to there"
        self.what.text = f"T = {shown.T}, {escape(code)}; after each step: {how}"
        if len(self.steps) > 1:
            each = [f"T = {T}: <b>{escape(_said(scene, scene.shown(self.name, T, item), T))}</b>" for T in self.steps]
            self.by_T.text = "the answer converted for " + ", ".join(each)
        last = shown.answers[-1]
        best = last.argsort(descending=True)[:LINES].tolist() if shown.classes else range(min(LINES, len(last)))
        steps = list(range(1, shown.T + 1))
        self.lines.data = {
            "xs": [steps for _ in best],
            "ys": [shown.answers[:, k].tolist() for k in best],
            "colour": [COLOURS[i % len(COLOURS)] for i, _ in enumerate(best)],
            "label": [scene.called(k) for k in best],
        }
        self.drawn()

    def drawn(self) -> None:
        """Draw the layer that is chosen."""
        layer = self.page.layer.value
        own = [node.layer for node in self.shown.snn.graph.neurons if node.name in self.shown.snn.neurons()]
        self.train = self.shown.train(layer) if layer in own else None
        self.raster.visible = self.map.visible = self.train is not None
        if self.train is not None:
            rows = self.train.reshape(len(self.train), -1)[:STEPS]
            every = max(1, -(-rows.shape[1] // NEURONS))
            picked = rows[:, ::every]
            # From the top down, as a list is read.
            self.spikes.data = {
                "image": [np.ascontiguousarray(picked.T).clip(-1, 3).astype(np.int8)],
                "dh": [picked.shape[1] * every], "dw": [len(picked)],
            }  # fmt: skip
            size = "×".join(map(str, self.train.shape[1:]))
            self.raster.title.text = f"{layer}: {size} neurons" + (f", every {every}th" if every > 1 else "")
        self.moved()

    def moved(self) -> None:
        """Show the time that is chosen."""
        scene, shown = self.page.scene, self.shown
        t = min(int(self.page.time.value), shown.T)
        self.now.location = self.future.left = t
        self.answer.text = f"after {t} of {shown.T} steps: <b>{escape(_said(scene, shown, t))}</b>"
        if self.train is not None:
            image, what = mosaic(self.train[:t].sum(0) / t)
            self.maps.data = {"image": [image[::-1]], "dh": [image.shape[0]], "dw": [image.shape[1]]}
            self.map.title.text = f"{what}, spikes a step so far (yellow: 1)"


def _plain(height: int, **options: Any) -> Any:
    plot = figure(
        width=WIDTH, height=height, toolbar_location="above", tools="pan,wheel_zoom,reset", title=" ", **options
    )
    plot.toolbar.logo = None
    return plot


def _whole_steps(plot: Any) -> None:
    plot.xaxis.ticker = BasicTicker(min_interval=1)
    plot.xaxis.minor_tick_line_color = None


def _layers(scene: Scene) -> list[str]:
    return [
        node.layer
        for forms in scene.networks.values()
        for snn in forms.values()
        for node in snn.graph.neurons
        if node.name in snn.neurons()
    ]


def _said(scene: Scene, shown: Shown, t: int) -> str:
    """The answer after t steps, as text: a class, or the first values."""
    if shown.classes:
        return f"class {scene.called(shown.answer(t))}"
    values = shown.answers[t - 1]
    more = ", …" if len(values) > LINES else ""
    return "values " + ", ".join(f"{v:.4g}" for v in values[:LINES].tolist()) + more


def _rgba(picture: np.ndarray) -> np.ndarray:
    """A picture 0 … 1 as Bokeh draws it: (H, W) uint32, its first row at the bottom."""
    colour = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2)
    image = np.full((*colour.shape[:2], 4), 255, np.uint8)
    every = max(1, max(colour.shape[:2]) // (2 * TILE))
    image[..., :3] = np.rint(colour * 255)
    return np.ascontiguousarray(image[::every, ::every][::-1]).view(np.uint32)[..., 0]


def mosaic(values: np.ndarray) -> tuple[np.ndarray, str]:
    """The neurons of one sample as one image, with its first row on top, and what it shows. Channels (C, H, W) stand
    side by side with a gap (NaN) between them; any other layer is one rectangle in row-major order."""
    if values.ndim != 3:
        flat = values.reshape(-1)[:MAP]
        width = max(1, math.isqrt(max(0, flat.size - 1)) + 1)
        image = np.full((max(1, -(-flat.size // width)), width), np.nan)
        image.reshape(-1)[: flat.size] = flat
        return image, f"neurons 0 … {flat.size - 1}, row by row"
    C, H, W = values.shape
    every = max(1, -(-max(H, W) // 112))
    values = values[:, ::every, ::every]
    kept = max(1, min(C, 64, MAP // max(1, values[0].size)))
    across = math.isqrt(kept - 1) + 1
    down = -(-kept // across)
    H, W = values.shape[1:]
    image = np.full((down * (H + 1) - 1, across * (W + 1) - 1), np.nan)
    for number in range(kept):
        top, left = number // across * (H + 1), number % across * (W + 1)
        image[top : top + H, left : left + W] = values[number]
    some = f"channels 0 … {kept - 1}" + (f" of {C}" if kept < C else "")
    return image, some + (f", every {every}th place" if every > 1 else "")
