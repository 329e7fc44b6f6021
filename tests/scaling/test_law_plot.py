import numpy as np
from PIL import Image

from scaling.isoflop import fit_parabolas
from scaling.law import fit_law
from scaling.law_plot import curves_of, law_figure, write_html, write_png
from tests.scaling.published import noisy_cells


def test_both_pictures_show_cells_law_and_parabolas(tmp_path):
    cells = noisy_cells([1e19, 3e19, 1e20], 4, noise=0.001)
    law = fit_law(cells, draws=100)
    curves = curves_of(law, fit_parabolas(law.grid, draws=100, seed=0), [law.predict(1e21)])
    assert np.isclose(curves.budgets[0], 1e19)
    assert np.isclose(curves.budgets[-1], 1e21)
    assert len(curves.parabolas) == 3
    for n, loss, _ in curves.parabolas:  # a minimum between its ends
        assert 0 < np.argmin(loss) < len(n) - 1
    write_png(law, curves, tmp_path / "law.png")
    assert Image.open(tmp_path / "law.png").size == (1440, 960)
    figure = law_figure(law, curves, [cell.name for cell in cells])
    assert len(figure.data) == 4 + 2 * 3 + 3
    write_html(figure, tmp_path / "law.html", words="train <N>")
    page = (tmp_path / "law.html").read_text()
    assert "train &lt;N&gt;" in page
    assert "Plotly.newPlot" in page
    assert cells[0].name in figure.data[0].text[0]
