"""The page of a report: its numbers against plain NumPy, whatever the leaves are called, and nothing from elsewhere."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxprune as jp
from jaxprune.reports import Report, measures
from jaxprune.reports import page as pages
from jaxprune.reports.measures import Histogram
from jaxprune.reports.summary import Row

VOID = {"meta", "wbr", "br", "hr", "input", "link", "img"}
COLUMNS = "leaf parameters sparsity zeros bits dense bytes coded bytes rel. error max error"


class Element:
    """What a start tag says, and all text up to its end."""

    def __init__(self, tag, attributes):
        self.tag, self.at, self.parts = tag, dict(attributes), []
        assert len(self.at) == len(attributes), f"{tag} has an attribute twice: {attributes}"

    @property
    def text(self):
        return "".join(self.parts)


class Page(HTMLParser):
    """The elements of a page, and its tables as rows of cells; complains about tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.tables = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append(element := Element(tag, attributes))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        for element in self.open:
            element.parts.append(data)

    def all(self, tag, **attributes):
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [e for e in self.elements if e.tag == tag and wanted.items() <= e.at.items()]

    def values(self, table):
        """Path and full numbers of each body row and the total."""
        rows = self.tables[table][1:]
        return {row[0].text: [float(cell.at["data-value"]) for cell in row[1:]] for row in rows}


def page_of(report, folder, **options):
    return Page(report.to_html(folder / "report.html", **options).read_text(encoding="utf-8"))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def case():
    """Leaves of all kinds before and after, masks, and the bits that the leaves take."""
    odd = draw(7, 5, seed=1)
    odd.ravel()[[0, 3, 9]] = np.nan, np.inf, -np.inf
    outlier = draw(40, 10, seed=2)
    outlier[3, 3] = 90
    before = {
        'a/<kernel> & "co"': draw(30, 20),
        "bias": draw(20, seed=3),
        "constant": np.full((4, 4), 0.1, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "half": jnp.asarray(draw(9, 9, seed=4), jnp.bfloat16),
        "ids": np.arange(5000, dtype=np.int32),
        "odd": odd,
        "outlier": outlier,
        "scalar": np.float32(-2.5),
        "zeros": np.zeros((3, 3), np.float32),
    }
    masks = {name: np.ones((), bool) for name in before}
    masks['a/<kernel> & "co"'] = np.abs(before['a/<kernel> & "co"']) >= 0.5
    masks["outlier"] = np.abs(outlier) >= 1
    after = {name: np.where(masks[name], leaf, np.zeros((), leaf.dtype)) for name, leaf in before.items()}
    after["half"] = (after["half"].astype(np.float32) * 4).round() / 4
    after["half"] = after["half"].astype(before["half"].dtype)
    kernel = after['a/<kernel> & "co"']
    after['a/<kernel> & "co"'] = np.asarray(jp.fake_quant(jnp.asarray(kernel), 4))
    bits = {name: 8 * leaf.dtype.itemsize for name, leaf in before.items()} | {'a/<kernel> & "co"': 4}
    return before, after, masks, bits


def reported(before, after, masks):
    where = lambda path, _: path == 'a/<kernel> & "co"'  # noqa: E731
    return jp.report(before, after, masks=masks, bits=4, where=where)


def norms(old, new):
    """Squared error, squared norm, largest difference, one number at a time."""
    pairs = [(float(a), float(b)) for a, b in zip(np.ravel(old), np.ravel(new), strict=True)]
    apart = [abs(a - b) for a, b in pairs if not (a == b or a != a and b != b)]
    return sum(d * d for d in apart), sum(a * a for a, _ in pairs if np.isfinite(a)), max(apart, default=0.0)


# --- numbers --------------------------------------------------------------------------------------------------------


def test_the_table_says_what_numpy_says(tmp_path):
    before, after, masks, bits = case()
    report = reported(before, after, masks)
    page = page_of(report, tmp_path)
    found = page.values(0)
    assert list(found) == [*before, "total"]
    assert " ".join(cell.text for cell in page.tables[0][0]) == COLUMNS
    errors = {}
    for name, old in before.items():
        new, size = np.asarray(after[name]), np.size(old)
        kept = int(np.broadcast_to(masks[name], new.shape).sum())
        pruned, scales = size - kept, 4 * (bits[name] == 4)
        coded = -(-kept * bits[name] // 8) + (-(-size // 8) if pruned else 0) + scales
        squared, norm, largest = errors[name] = norms(old, new)
        zeros = sum(value == 0 for value in new.ravel().tolist()) / size if size else 0
        relative = (squared / norm) ** 0.5 if norm else 0
        sparsity = pruned / size if size else 0
        expected = [size, sparsity, zeros, bits[name], np.asarray(old).nbytes, coded, relative, largest]
        assert found[name] == pytest.approx(expected, rel=1e-12, nan_ok=True), name
    total = found["total"]
    assert [total[0], total[4], total[5]] == [sum(row[i] for row in list(found.values())[:-1]) for i in (0, 4, 5)]
    weights = [errors[name] for name in before if name != "ids"]  # its numbers are no weights
    relative = (sum(squared for squared, _, _ in weights) / sum(norm for _, norm, _ in weights)) ** 0.5
    assert total[3] == 8 * total[5] / total[0] and total[6] == pytest.approx(relative, rel=1e-12)
    tiles = [float(e.at["data-value"]) for e in page.all("dd") if "data-value" in e.at]
    assert tiles == [*total[:6], total[4] / total[5], total[6]]


def test_what_is_shown_is_the_number_in_the_cell(tmp_path):
    forms = ("{:,.0f}", "{:.4f}", "{:.4f}", "{:.0f}", "{:,.0f}", "{:,.0f}", "{:.2e}", "{:.2e}")
    report = reported(*case()[:3])
    page = page_of(report, tmp_path)
    for row in page.tables[0][1:-1]:
        for form, cell in zip(forms, row[1:], strict=True):
            assert cell.text == form.format(float(cell.at["data-value"]))
    terminal = str(report).split("\n\n")[0].split("\n")
    assert [cell.text for cell in page.tables[0][-1]] == terminal[-1].split()


def test_bars_are_as_long_as_the_numbers(tmp_path):
    before, after, masks, bits = case()
    page = page_of(reported(before, after, masks), tmp_path)
    lengths = [float(re.fullmatch(r"width:([\d.]+)%", e.at["style"])[1]) for e in page.all("i")][1:]
    largest = max(np.asarray(leaf).nbytes for leaf in before.values())
    expected = []
    for _, sparsity, _, width, dense, coded, *_ in list(page.values(0).values())[:-1]:
        expected += [100 * sparsity, 100 * width / 32, 100 * dense / largest, 100 * coded / largest]
    assert lengths == pytest.approx(expected, abs=0.051)


def shown(leaf):
    values = np.asarray(leaf).astype(np.float64).ravel()
    return values[np.isfinite(values) & (values != 0)]


def test_histograms_count_what_lies_in_each_bin(tmp_path):
    before, after, masks, _ = case()
    report = reported(before, after, masks)
    drawn = {row.path: row for row in report.rows if row.histogram and row.histogram.before}
    assert {row.path for row in report.rows} - set(drawn) == {"empty", "ids", "zeros"}
    assert report.rows[5].path == "ids" and report.rows[5].histogram is None and report.total.histogram is None
    for name, row in drawn.items():
        spread, both = row.histogram, np.concatenate([shown(before[name]), shown(after[name])])
        if name not in ("constant", "scalar"):
            reach = 4 * np.std(both)
            ends = max(both.min(), both.mean() - reach), min(both.max(), both.mean() + reach)
            assert (spread.low, spread.high) == pytest.approx(ends, rel=1e-12)
        assert spread.edges == pytest.approx(np.linspace(spread.low, spread.high, 65), rel=1e-12, abs=1e-12)
        for side, leaf in enumerate((before[name], after[name])):
            values, counts = shown(leaf).tolist(), (spread.before, spread.after)[side]
            edges = spread.edges.tolist()
            inner = [sum(a <= v < b for v in values) for a, b in zip(edges[:-1], edges[1:], strict=True)]
            inner[-1] += sum(v == edges[-1] for v in values)
            assert list(counts) == inner
            everything = np.asarray(leaf).astype(float).ravel()
            assert spread.beyond[side] == sum(not spread.low <= v <= spread.high for v in values)
            assert spread.zeros[side] == (everything == 0).sum()
            assert spread.not_finite[side] == (~np.isfinite(everything)).sum()
    assert drawn["outlier"].histogram.beyond == (1, 1) and drawn["odd"].histogram.not_finite == (3, 3)
    page = page_of(report, tmp_path)
    pictures = [e.at for e in page.all("svg", role="img")]
    changed = [name for name, row in drawn.items() if row.max_error]
    names = changed + [name for name in drawn if name not in changed]
    assert [e.text for e in page.all("figcaption")] == names
    for picture, name in zip(pictures, names, strict=True):
        spread = drawn[name].histogram
        assert tuple(map(int, picture["data-before"].split())) == spread.before
        assert tuple(map(int, picture["data-after"].split())) == spread.after
        assert (float(picture["data-low"]), float(picture["data-high"])) == (spread.low, spread.high)


def test_a_histogram_is_drawn_as_high_as_it_counts(tmp_path):
    page = page_of(jp.report(w := draw(50, 40), jp.quantize(w, 4)), tmp_path)
    (picture,) = (e.at for e in page.all("svg", role="img"))
    counts = [list(map(int, picture[f"data-{kind}"].split())) for kind in ("before", "after")]
    for kind, numbers in zip(("before", "after"), counts, strict=True):
        (path,) = (e.at["d"] for e in page.all("path", class_=kind))
        heights = [1000 - int(height) for height in re.findall(r"V(\d+)h1", path)]
        assert heights == [round(1000 * n / max(map(max, counts))) for n in numbers]


@pytest.mark.parametrize(
    "values",
    [[3e38, -3e38, 1.0], [1e-45, 1e-45], [1.7e308, -1.7e308], [1.7e308], [5e-324, 1e-323], [1.0, 1.0 + 1e-16], [-7.0]],
)
def test_extreme_values_are_all_counted(values):
    w = np.array(values)
    spread = measures.histogram(w, w)
    assert spread.before == spread.after and sum(spread.before) + spread.beyond[0] == len(values)
    assert np.isfinite(spread.edges).all() and (np.diff(spread.edges) >= 0).all() and len(spread.edges) == 65


def test_blocks_are_summed_up():
    w = draw(3, 2**18 - 1)
    row = jp.report(w, w * 0.5).rows[0]
    assert row.relative_error == pytest.approx(0.5, rel=1e-12) and row.max_error == np.abs(w).max() / 2
    inner = np.histogram(w.astype(float), row.histogram.edges)[0]
    assert row.histogram.before == tuple(inner) and sum(inner) + row.histogram.beyond[0] == w.size


def test_to_dict_holds_histograms_if_asked():
    report = reported(*case()[:3])
    assert "histogram" not in report.to_dict()["rows"][0]
    plain = json.loads(json.dumps(report.to_dict(histograms=True)))
    assert plain["rows"][0]["histogram"]["before"] == list(report.rows[0].histogram.before)
    assert plain["rows"][5]["histogram"] is None and len(json.dumps(report.to_dict())) < 5000


@pytest.mark.parametrize("tree", [{}, draw(6, 5), {"k": np.zeros((0, 5), np.float32)}, [np.arange(3), jnp.tanh]])
def test_small_trees(tree, tmp_path):
    page = page_of(report := jp.report(tree, tree), tmp_path)
    assert [row[0].text for row in page.tables[0][1:-1]] == [row.path or "(array)" for row in report.rows]
    Page(report._repr_html_())


# --- names ----------------------------------------------------------------------------------------------------------


def rows(paths):
    spread = Histogram(-1.0, 1.0, (1,) * 64, (2,) * 64, (0, 0), (3, 4), (0, 0))
    return tuple(Row(path, 128, 128, 64, 64, 4, 512, 52, 0.1, 0.2, spread) for path in paths)


def of(*paths):
    return Report(rows(paths), Row("total", 0, 0, 0, 0, 0.0, 0, 0, 0.0, 0.0))


def escaped(text):
    """What cannot be printed as in a Python string, everything else as it is."""
    return "".join(repr(c)[1:-1] if not c.isprintable() else c for c in text)


PLAIN = of("plain")
nasty = st.one_of(
    st.text(st.characters(codec=None), min_size=1, max_size=40),
    st.lists(
        st.sampled_from(
            ["<b>", "</script>", "<!--", "-->", "&lt;", "&", '"', "'", "]]>", "/", "\x00", "\ud800", "\u202e"]
        ),
        min_size=1,
        max_size=6,
    ).map("".join),
)


@given(path=nasty, title=nasty)
def test_names_are_text_and_nothing_else(path, title):
    for text, plain in (
        (of(path)._repr_html_(), PLAIN._repr_html_()),
        (pages.render(of(path), title, None), pages.render(PLAIN, "title", None)),
    ):
        page, expected = Page(text), Page(plain)
        tags = [e.tag for e in page.elements if e.tag != "wbr"]
        assert tags == [e.tag for e in expected.elements if e.tag != "wbr"]
        head = page.tables[0][1][0]
        assert head.text == head.at["title"] == escaped(path)
        assert text.encode("utf-8").decode("utf-8") == text
    assert page.all("h1")[0].text == page.all("title")[0].text == escaped(title)


def test_a_thousand_leaves_and_very_long_paths(tmp_path):
    paths = [f"layer_{i}/" + "deep/" * (1000 if i == 7 else 1) + "kernel" for i in range(1000)]
    path = of(*paths).to_html(tmp_path / "many.html")
    page = Page(path.read_text())
    assert [row[0].text for row in page.tables[0][1:-1]] == paths
    assert path.stat().st_size < 3_000_000
    short = Page(of(*paths)._repr_html_())
    assert len(short.tables[0]) == 62 and short.elements[-1].text.startswith("940 more leaves")


# --- the document ---------------------------------------------------------------------------------------------------


def test_the_page_stands_alone_and_says_what_it_is(tmp_path):
    path = of("a", "b").to_html(tmp_path / "r.html", title="Mine", sweep=SWEEP, settings=SETTINGS, chosen=2)
    text = path.read_text()
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>\n") and page.all("html", lang="en") and page.all("meta", charset="utf-8")
    assert page.all("meta", name="viewport") and page.all("title")[0].text == "Mine"
    assert (
        page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0].at["content"].startswith("default-src 'none'")
    )
    assert not re.search(r"https?:|@import|url\(", text)
    assert not [e for e in page.elements if {"src", "href", "onclick", "srcset"} & set(e.at)]
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("script")) == 1
    assert all(e.at.get("aria-label") for e in page.all("svg", role="img"))
    assert all(e.at["scope"] in ("row", "col") for e in page.all("th"))
    assert all(e.at["tabindex"] == "0" and e.at["aria-label"] for e in page.all("section", class_="scrolling"))


def test_the_page_says_why(tmp_path):
    weights = {"<b>": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}
    told = jp.report(weights, jp.quantize(weights, 4), why=True)
    page = Page(told.to_html(tmp_path / "r.html").read_text())
    assert len(page.all("section", class_="why")) == 1 and page.all("dd")[-1].text == told.rows[0].why
    assert "5 bits: +" in told.rows[0].why and not Page(of("a").to_html(tmp_path / "r.html").read_text()).all(
        "section", class_="why"
    )


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_the_contrast_of_wcag(scheme):
    """4.5 for text, 3 for what is drawn; before and after also differ in how bright they are, for all eyes."""
    block = re.findall(r":root \{(.*?)\}", pages.asset("page.css"), re.DOTALL)[scheme]
    light = {name: luminance(color) for name, color in re.findall(r"--(\w+): (#\w{6})", block)}

    def contrast(a, b):
        return (max(light[a], light[b]) + 0.05) / (min(light[a], light[b]) + 0.05)

    for ground in ("page", "panel"):
        assert all(contrast(text, ground) >= 4.5 for text in ("text", "quiet", "chosen")), ground
    assert all(contrast(mark, "page") >= 3 for mark in ("before", "after", "dots", "chosen"))
    assert contrast("before", "after") >= 1.5


def test_reports_in_a_notebook_keep_out_of_each_others_way():
    fragment = PLAIN._repr_html_()
    page = Page(fragment + fragment)
    assert not page.all("script") and not [e for e in page.elements if "id" in e.at]
    rules = re.sub(r"\{.*?\}", "", pages.asset("notebook.css"), flags=re.DOTALL)
    assert all(selector.strip().startswith(".jaxprune-report") for selector in re.split(r"[,\n]+", rules.strip()))
    assert len(page.tables) == 2 and page.tables[0][1][0].text == "plain"


def test_the_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = PLAIN.to_html(str(tmp_path / "r.html"))
    assert path == tmp_path / "r.html" and isinstance(path, Path)
    old = path.read_text()

    def fail(source, target):
        assert Path(source).parent == tmp_path
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        of("other").to_html(path)
    assert path.read_text() == old and os.listdir(tmp_path) == ["r.html"]
    with pytest.raises(FileNotFoundError):
        PLAIN.to_html(tmp_path / "nowhere" / "r.html")


# --- the frontier ---------------------------------------------------------------------------------------------------

SETTINGS = jp.grid(sparsity=[0.0, 0.5, 0.9], bits=[2, 4])
SWEEP = {
    "bytes": np.array([100, 200, 60, 110, 25, 50]),
    "accuracy": np.array([0.9, 0.97, 0.91, 0.97, np.nan, 0.1], np.float32),
}


def test_the_frontier_is_that_of_every_pair(tmp_path):
    page = page_of(PLAIN, tmp_path, sweep=SWEEP, settings=SETTINGS, chosen=2, baseline=0.975)
    cost, metric = SWEEP["bytes"].tolist(), SWEEP["accuracy"].tolist()
    beaten = [
        any(
            cost[j] <= cost[i] and metric[j] >= metric[i] and (cost[j], metric[j]) != (cost[i], metric[i])
            for j in range(6)
        )
        for i in range(6)
    ]
    front = sorted((i for i in range(6) if not beaten[i] and metric[i] == metric[i]), key=lambda i: cost[i])
    assert front == [5, 2, 3]
    table = page.tables[0]
    assert [cell.text for cell in table[0]] == ["setting", "sparsity", "bits", "bytes", "accuracy"]
    names = ("sparsity", "bits")
    expected = [[i, *(float(SETTINGS[n][i]) for n in names), cost[i], metric[i]] for i in front]
    assert [[float(cell.at["data-value"]) for cell in row] for row in table[1:]] == expected
    assert [e.at.get("class") for e in page.all("tr")[1:4]] == [None, "chosen", None]
    text = page.all("section", class_="frontier")[0].text
    assert "6 settings tried" in text and "3 on the front" in text and "chosen: sparsity 0.5, bits 4" not in text
    assert "chosen: sparsity 0.5, bits 2" in text and "before compression: 0.975" in text
    lowest = 0.97 - 4 * (0.97 - 0.91)  # the best, the median
    assert f"Not drawn: 1 below {lowest:.4g}, 1 without a finite cost and metric." in text


def test_points_lie_where_they_should(tmp_path):
    page = page_of(PLAIN, tmp_path, sweep=SWEEP, settings=SETTINGS, chosen=2)
    corners = page.all("circle", class_="corner")
    assert [e.text for e in corners] == [
        "sparsity 0.5, bits 2: bytes 60, accuracy 0.91",
        "sparsity 0.5, bits 4: bytes 110, accuracy 0.97",
    ]
    (ring,) = page.all("circle", class_="chosen")
    assert (ring.at["cx"], ring.at["cy"]) == (corners[0].at["cx"], corners[0].at["cy"])
    room = (200 / 60) ** 0.03  # to both sides of an axis by factors
    low, high = np.log(60 / room), np.log(200 * room)
    across = [100 * (np.log(c) - low) / (high - low) for c in (60, 110)]
    assert [float(e.at["cx"].rstrip("%")) for e in corners] == pytest.approx(across, abs=0.006)
    (dots,) = page.all("path", class_="dots")
    assert dots.at["d"].count("M") == 4


def test_sweeps_of_other_kinds(tmp_path):
    """Numbers instead of names, a list of settings, none at all, and equal costs."""
    page = page_of(PLAIN, tmp_path, sweep={}, cost=[3, 3, 3], metric=[1.0, 2.0, 2.0], settings=[0.1, 0.2, 0.3])
    assert [cell.text for row in page.tables[0] for cell in row] == [
        "setting",
        "setting",
        "cost",
        "metric",
        "1",
        "0.2",
        "3",
        "2",
    ]
    page = page_of(PLAIN, tmp_path, sweep={"a<b": [1.0, 2.0], "m": [0.1, 0.2]}, cost="a<b", metric="m", chosen=1)
    assert page.tables[0][0][1].text == "a<b" and page.all("h2")[0].text == "M against a<b"
    assert "chosen: setting 1" in page.all("ul", class_="key")[0].text


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"chosen": 1}, ValueError, "about a sweep; give sweep="),
        ({"sweep": SWEEP, "metric": "loss"}, KeyError, "metric='loss' is not in the result, which has"),
        ({"sweep": SWEEP, "chosen": 6}, ValueError, r"chosen must be an index in \[0, 5\], got 6"),
        ({"sweep": SWEEP, "chosen": 1.5}, TypeError, "float"),
        ({"sweep": SWEEP, "settings": jp.grid(bits=[2, 3])}, ValueError, r"'bits' must have shape \(6,\).* got \(2,\)"),
        ({"sweep": {"bytes": [1.0], "accuracy": [np.nan]}}, ValueError, "no setting of the sweep has a finite cost"),
        ({"sweep": {"bytes": [1.0], "accuracy": [1.0, 2.0]}}, ValueError, "equal lengths, got 1 and 2"),
    ],
)
def test_bad_sweeps(options, error, match, tmp_path):
    with pytest.raises(error, match=match):
        PLAIN.to_html(tmp_path / "r.html", **options)
    assert not list(tmp_path.iterdir())


@given(low=st.floats(1e-9, 1e9), factor=st.floats(1.0, 1e6), log=st.booleans())
def test_ticks_are_few_and_inside(low, factor, log):
    axis = pages.around(np.array([low, low * factor]), log)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 12 and ticks == sorted(set(ticks))
    assert all(-1e-9 <= axis.share(tick) <= 1 + 1e-9 for tick in ticks)
    assert len({pages.brief(tick) for tick in ticks}) == len(ticks) or factor < 1.001
    assert 0 < axis.share(low) <= axis.share(low * factor) < 1


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (0.85, "0.85"), (20_000, "20k"), (-1.5e6, "-1.5M"), (3e9, "3G")])
def test_ticks_are_brief(value, text):
    assert pages.brief(value) == text
