"""Pictures of reports and sweeps: the bars and points against the numbers."""

import importlib

import numpy as np
import pytest

import jaxprune as jp

pyplot = pytest.importorskip("matplotlib.pyplot", reason="draws")
pyplot.switch_backend("agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def report():
    draw = np.random.default_rng(0).normal
    params = {f"layer_{i}/$k$": draw(size=(4 + i, 8)).astype(np.float32) for i in range(5)}
    masks = {name: np.abs(w) > 0.5 for name, w in params.items()}
    after = {name: np.where(masks[name], w, 0) for name, w in params.items()}
    return jp.report(params, after, masks=masks)


def bars(ax):
    return [[patch.get_width() for patch in container] for container in ax.containers]


def test_bars_are_the_bytes():
    found = report()
    ax = found.plot()
    assert bars(ax) == [[row.dense_bytes for row in found.rows], [row.coded_bytes for row in found.rows]]
    assert [text.get_text() for text in ax.get_yticklabels()] == [rf"layer_{i}/\$k\$" for i in range(5)]
    notes = [text.get_text() for text in ax.texts]
    assert notes == [f"sparsity {row.mask_sparsity:.2f}, 32 bits" for row in found.rows]
    ax.figure.canvas.draw()


def test_most_leaves_are_summed_up():
    found = report()
    _, ax = pyplot.subplots()
    assert found.plot(ax, most=2) is ax
    sizes = [row.dense_bytes for row in found.rows]
    assert bars(ax)[0] == [sizes[3], sizes[4], sum(sizes[:3])]
    assert ax.get_yticklabels()[-1].get_text() == "3 others"
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        found.plot(most=0)


def test_an_empty_report_and_a_long_name():
    jp.report({}, {}).plot().figure.canvas.draw()
    ax = jp.report({"deep/" * 50 + "end": np.ones(3)}, {"deep/" * 50 + "end": np.ones(3)}).plot()
    label = ax.get_yticklabels()[0].get_text()
    assert len(label) == 44 and label.startswith("…") and label.endswith("deep/end")


def test_the_frontier():
    result = {"bytes": np.array([100, 200, 60, 110]), "accuracy": np.array([0.9, 0.97, 0.91, 0.97])}
    ax = jp.reports.plot_frontier(result, settings=jp.grid(bits=[2, 3, 4, 5]), chosen=2, baseline=0.98)
    points, ring = (collection.get_offsets().tolist() for collection in ax.collections)
    assert points == [[100, 0.9], [200, 0.97], [60, 0.91], [110, 0.97]] and ring == [[60, 0.91]]
    assert ax.lines[0].get_xydata().tolist() == [[60, 0.91], [110, 0.97]]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_xscale()) == ("bytes", "accuracy", "log")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "4 settings",
        "front",
        "before compression",
        "bits 4",
    ]
    with pytest.raises(ValueError, match=r"chosen must be an index in \[0, 3\], got -1"):
        jp.reports.plot_frontier(result, chosen=-1)


def test_without_matplotlib(monkeypatch):
    def missing(name):
        raise ImportError(name)

    found = report()
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"matplotlib is not installed: pip install 'jaxprune\[plots\]'"):
        found.plot()
