"""Pictures of a law: a PNG, and an interactive page that opens without a server."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib
import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from scaling.interval import Array
from scaling.isoflop import Parabolas
from scaling.law import Law, Prediction

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

_POINTS = 40


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What both pictures show, in plain units."""

    budgets: Array
    predictions: list[Prediction]
    """Along `budgets`."""
    asked: list[Prediction]
    parabolas: list[tuple[Array, Array, str]]


def curves_of(law: Law, parabolas: Parabolas | None, asked: Sequence[Prediction]) -> Curves:
    """From the cheapest cell to the furthest prediction."""
    furthest = max([law.largest, *(told.budget for told in asked)])
    budgets = np.geomspace(float(np.exp(law.grid.log_c.min())), furthest, _POINTS)
    lines = []
    for (centre, *theta), log_c in zip(parabolas.curves, parabolas.log_c) if parabolas else ():
        near = law.grid.log_n[np.abs(law.grid.log_c - log_c) < np.log(1.1)]
        log_n = np.linspace(near.min(), near.max(), _POINTS)
        offset = log_n - centre
        loss = np.exp(theta[0] + theta[1] * offset + theta[2] * offset**2)
        lines.append((np.exp(log_n), loss, f"{np.exp(log_c):.2g} FLOPs"))
    told = [law.predict(float(budget)) for budget in budgets]
    return Curves(budgets=budgets, predictions=told, asked=list(asked), parabolas=lines)


def write_png(law: Law, curves: Curves, path: Path) -> None:
    """Loss over compute, loss over size, best size over compute, residuals."""
    figure, ((loss, size), (best, left)) = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    compute, log_c = np.exp(law.grid.log_c), law.grid.log_c
    points = {"c": log_c, "cmap": "viridis", "s": 14}
    loss.scatter(compute, np.exp(law.grid.log_loss), **points)
    loss.plot(curves.budgets, [told.loss.value for told in curves.predictions], color="tab:red")
    low, high = ([getattr(told.loss, end) for told in curves.predictions] for end in ("low", "high"))
    loss.fill_between(curves.budgets, low, high, color="tab:red", alpha=0.2, linewidth=0)
    for told in curves.asked:
        ends = [[told.loss.value - told.loss.low], [told.loss.high - told.loss.value]]
        loss.errorbar(told.budget, told.loss.value, ends, fmt="D", color="black", capsize=3)
    loss.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel="held-out loss", title="loss of the best size")
    size.scatter(np.exp(law.grid.log_n), np.exp(law.grid.log_loss), **points)
    for n, value, _ in curves.parabolas:
        size.plot(n, value, color="gray", linewidth=0.8)
    size.set(xscale="log", yscale="log", xlabel="parameters", ylabel="held-out loss", title="IsoFLOP parabolas")
    best.scatter(compute, np.exp(law.grid.log_n), **points)
    best.plot(curves.budgets, [told.parameters.value for told in curves.predictions], color="tab:red")
    low, high = ([getattr(told.parameters, end) for told in curves.predictions] for end in ("low", "high"))
    best.fill_between(curves.budgets, low, high, color="tab:red", alpha=0.2, linewidth=0)
    best.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel="parameters", title="best size")
    left.axhline(0, color="gray", linewidth=0.8)
    left.scatter(compute, 100 * law.residual, **points)
    left.set(xscale="log", xlabel="training FLOPs", ylabel="% of the loss", title="residuals")
    for axis in (loss, size, best, left):
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e+", "e"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    figure.savefig(path, dpi=120)
    plt.close(figure)


def law_figure(law: Law, curves: Curves, names: Sequence[str]) -> go.Figure:
    """The same, interactive; `names` are the cells', in the grid's order."""
    titles = ("loss of the best size", "IsoFLOP parabolas", "best size", "residuals, % of the loss")
    figure = make_subplots(rows=2, cols=2, subplot_titles=titles)
    compute, n, loss = (np.exp(values) for values in (law.grid.log_c, law.grid.log_n, law.grid.log_loss))
    marker = {"color": law.grid.log_c, "colorscale": "Viridis", "size": 6}
    text = [f"{name}<br>N {size:.3g}, C {c:.3g}, loss {at:.4g}" for name, size, c, at in zip(names, n, compute, loss)]
    panels = ((compute, loss), (n, loss), (compute, n), (compute, 100 * law.residual))
    for k, (x, y) in enumerate(panels):
        points = go.Scatter(x=x, y=y, mode="markers", marker=marker, text=text, hoverinfo="text", showlegend=False)
        figure.add_trace(points, row=k // 2 + 1, col=k % 2 + 1)
    for row, quantity in ((1, "loss"), (2, "parameters")):
        band = [getattr(told, quantity) for told in curves.predictions]
        for end in ("low", "high"):
            figure.add_trace(
                go.Scatter(
                    x=curves.budgets,
                    y=[getattr(value, end) for value in band],
                    line={"width": 0},
                    fill="tonexty" if end == "high" else None,
                    fillcolor="rgba(214,39,40,0.2)",
                    hoverinfo="skip",
                    showlegend=False,
                ),
                row=row,
                col=1,
            )
        line = go.Scatter(
            x=curves.budgets, y=[value.value for value in band], line={"color": "#d62728"}, name=f"law: {quantity}"
        )
        figure.add_trace(line, row=row, col=1)
    for x, y, name in curves.parabolas:
        figure.add_trace(go.Scatter(x=x, y=y, line={"width": 1}, name=name), row=1, col=2)
    figure.update_xaxes(type="log", exponentformat="power")
    for row, col in ((1, 1), (1, 2), (2, 1)):
        figure.update_yaxes(type="log", exponentformat="power", row=row, col=col)
    return figure.update_layout(height=800, template="plotly_white")


def write_html(figure: go.Figure, path: Path, *, words: str) -> None:
    """One file with the library inside, so that it opens offline."""
    drawn = figure.to_html(full_html=False, include_plotlyjs=True)
    path.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Scaling law</title></head>'
        '<body style="font-family:sans-serif;max-width:1200px;margin:auto">'
        f"<p>{escape(words)}</p>{drawn}</body></html>\n",
        encoding="utf-8",
    )
