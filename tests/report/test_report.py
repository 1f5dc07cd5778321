"""The pictures can be drawn for any model and any run, and the page needs nothing but itself."""

import base64
import html.parser
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import lnz
from lnz import report
from lnz.report._pictures import _likelihood_panel
from lnz.report._style import Canvas

GENERATOR = np.random.default_rng(3)


def picture(path):
    """A picture's size, and how many colours it has: an empty one has few."""
    with Image.open(path) as image:
        colours = image.convert("RGB").getcolors(maxcolors=1 << 24)
        assert colours is not None
        return image.size, len(colours)


def record(step, value, *, gap=0.5):
    figures = {"disagreement": 0.3} | ({} if gap is None else {"energy_gap": gap})
    look = None
    if value is not None:
        look = {"log_likelihood": value, "lower": value - 0.1, "upper": None}
    return {"step": step, "epoch": step / 10, "seconds": 1.0, "figures": figures, "validation": look}


@pytest.mark.parametrize(
    "records",
    [
        [record(10, -5.0), record(20, -4.0)],
        [record(10, -5.0, gap=None)],
        [record(10, None), record(20, None)],
        [],
        [record(10, -5.0, gap=None) | {"figures": {"objective": 3.0, "gradient_norm": 1.0}}],
    ],
    ids=["usual", "exact phase", "no validation data", "no records", "an objective without Z"],
)
def test_curves(records, tmp_path):
    path = tmp_path / "curves.png"
    report.curves(path, records, levels={"train": -3.0, "test": -3.5}, baseline=-8.0, unit="image")
    size, colours = picture(path)
    assert size[0] > size[1] > 300
    assert colours > 50


@pytest.mark.parametrize("image_shape", [(3, 4), None])
@pytest.mark.parametrize("n", [1, 7, 300])
def test_samples(n, image_shape, tmp_path):
    drawn, data = GENERATOR.integers(0, 2, (2, n, 12)).astype(np.uint8)
    report.samples(tmp_path / "samples.png", drawn, data, image_shape, name="Data (test)")
    assert picture(tmp_path / "samples.png")[1] > 20


@pytest.mark.parametrize(
    ("values", "marked"), [((0, 1), [0, 1]), ((-1, 1), [-1, 1]), ((0, 1, 2, 3, 4), [0, 1, 2, 3, 4])]
)
def test_values_of_discrete_samples_are_marked(values, marked, tmp_path, monkeypatch):
    seen = []
    leave = Canvas.__exit__

    def look(self, *error):
        seen.append([round(tick) for tick in self.figure.axes[-1].get_yticks()])
        images = [image for axes in self.figure.axes[:2] for image in axes.get_images()]
        colours = {tuple(image.cmap(image.norm(value))) for image in images for value in values}
        assert len(colours) == len(values)  # a colour each
        return leave(self, *error)

    monkeypatch.setattr(Canvas, "__exit__", look)
    states = GENERATOR.choice(values, (40, 6)).astype(np.int8)
    report.samples(tmp_path / "samples.png", states, states, None)
    assert seen == [marked]


def test_samples_of_real_data_are_drawn_in_standard_units(tmp_path):
    mean, scale = np.array([1e6, 0.0, -3.0]), np.array([1e3, 1e-6, 1.0])
    standard = GENERATOR.normal(size=(40, 3))
    for name, units in (("a.png", (mean, scale)), ("b.png", (np.zeros(3), np.ones(3)))):
        states = standard if name == "b.png" else mean + scale * standard
        report.samples(tmp_path / name, states, states, None, units=units)
    first, second = (np.asarray(Image.open(tmp_path / name).convert("L"), float) for name in ("a.png", "b.png"))
    assert np.abs(first - second).mean() < 1


ENERGIES = {
    "rbm": lambda key: lnz.RBM(12, 5, key=key),
    "potts rbm": lambda key: lnz.RBM(lnz.Categorical(4, k=3), 5, key=key),
    "gaussian rbm": lambda key: lnz.GaussianRBM(12, 5, key=key),
    "ising": lambda key: lnz.Ising(jnp.ones((4, 4)) - jnp.eye(4)),
    "no couplings yet": lambda key: lnz.Ising(jnp.zeros((4, 4))),
    "potts": lambda key: lnz.Potts(jnp.zeros((4, 3, 4, 3)), q=3),
}


@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.parametrize("image_shape", [(3, 4), None])
def test_filters(name, image_shape, tmp_path):
    report.filters(tmp_path / "filters.png", ENERGIES[name](jax.random.key(0)), image_shape)
    size, _ = picture(tmp_path / "filters.png")
    assert size[0] > 300


@pytest.mark.parametrize("columns", [1, 2, 30])
@pytest.mark.parametrize("categories", [None, 3])
def test_moments(columns, categories, tmp_path):
    drawn, data = GENERATOR.integers(0, 3 if categories else 2, (2, 50, columns))
    report.moments(tmp_path / "moments.png", drawn, data, categories=categories)
    assert picture(tmp_path / "moments.png")[1] > 50


def likelihood(split, known="conditional"):
    return {
        "log_likelihood": -16.0,
        "standard_error": 0.006,
        "known": known,
        "n": 1234,
        "data_standard_error": 0.2 if split == "test" else None,
    }


RESULTS = {
    "model": "restricted Boltzmann machine",
    "data": "<script>alert(1)</script>.csv",
    "unit": "image",
    "splits": {"train": likelihood("train"), "test": likelihood("test")},
    "factorised": {
        "train": likelihood("train", "exact"),
        "test": likelihood("test", "exact") | {"log_likelihood": -25.0},
    },
    "log_z_estimate": {
        "log_z": 119.5,
        "standard_error": 0.006,
        "lower": 119.4,
        "upper": None,
        "known": "conditional",
        "route": "annealed importance sampling",
        "confidence": 0.99,
        "assumption": "the annealed chains reach every mode",
        "effective_sample_size": 500.0,
    },
    "phases": {"disagreement": 0.05, "energy_gap": -1.6, "states": 1000, "negative_phase": "model samples"},
    "samples": "annealed chains",
    "best_step": 19_000,
    "updates": 20_000,
    "seconds": {"training": 12.0, "measuring": 8000.0},
}
CONFIG = {
    "command": ["lnz", "train", "<b>"],
    "begun": "2026-01-01T00:00:00+00:00",
    "settings": {"hidden": 128, "learning_rate": 0.2, "split": [0.7, 0.1, 0.2], "array": None},
    "data": {"rows": {"train": 10}, "sha256": "0" * 64, "coding": {"kind": "binary", "levels": None}},
    "versions": {"lnz": "0"},
}


class Reader(html.parser.HTMLParser):
    """Collects what a page refers to, and checks that its elements close."""

    def __init__(self):
        super().__init__()
        self.sources, self.open, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "white").save(buffer, format="PNG")
    pictures = {name: buffer.getvalue() for name in ("curves", "samples", "moments", "filters")}
    path = tmp_path / "report.html"
    report.page(path, title="mine & <yours>", results=RESULTS, config=CONFIG, pictures=pictures)
    text = path.read_text()
    reader = Reader()
    reader.feed(text)
    assert not reader.open
    assert "Alarms" not in reader.text
    assert len(reader.sources) == 4
    for source in reader.sources:
        start, data = source.split(",")
        assert start == "data:image/png;base64"
        assert base64.b64decode(data) == buffer.getvalue()
    assert "<script" not in text
    assert "url(" not in text
    assert "@import" not in text
    shown = " ".join(reader.text.split())
    for words in (
        "mine & <yours>",
        "-16.0000",
        "+9.00 nats",
        "119.5000 ± 0.006",
        "119.4000 to unknown",
        "2.2 h",
    ):
        assert words in shown, words
    assert "the annealed chains reach every mode" in shown
    assert "after update 19,000 of 20,000" in shown


def test_a_picture_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="reshape"):
        report.samples(tmp_path / "samples.png", np.ones((3, 5)), np.ones((3, 5)), (2, 2))
    assert not list(tmp_path.iterdir())


def test_alarms_stand_in_the_page(tmp_path):
    alarms = [{"step": 12_800, "name": "lag", "seen": "the chains <lag>", "remedy": "Lower the learning rate"}]
    path = tmp_path / "report.html"
    report.page(path, title="mine", results=RESULTS | {"alarms": alarms}, config=CONFIG, pictures={})
    reader = Reader()
    reader.feed(path.read_text())
    assert not reader.open
    for words in ("Alarms", "12,800", "The chains <lag>.", "Lower the learning rate."):
        assert words in reader.text


def test_the_band_of_a_likelihood_is_its_interval():
    looks = [{"step": t, "validation": {"log_likelihood": -3.0, "lower": -3.5, "upper": -2.75}} for t in (1, 2)]
    axes = Figure().subplots()
    _likelihood_panel(axes, looks, {"test": -3.0}, -8.0, "image")
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (-3.5, -2.75)
