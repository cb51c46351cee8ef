"""The notebook of the first results runs from its first cell to its last, offline."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "first_results.ipynb"
# Appended to the notebook: the mean average precision of each method by scikit-learn, from the invented labels.
ORACLE = """
from sklearn.metrics import average_precision_score
for method, path in runs.items():
    scores = mb.read_predictions(path).to_pandas().loc[frame["video_id"][450:], classes]
    print(method, average_precision_score(has_class[450:], scores, average="macro"))
"""


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_has_at_most_40_lines_of_code_and_no_outputs(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(bool(line.strip()) for cell in cells for line in cell.source.splitlines()) <= 40
    assert not any(cell.outputs or cell.execution_count for cell in cells)


def test_the_notebook_goes_from_labels_and_features_to_a_comparison_page(notebook, tmp_path):
    notebook.cells.append(nbformat.v4.new_code_cell(ORACLE))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    *_, shown, oracle = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    table = shown[-1].data["text/plain"]
    wanted = re.findall(r"^(\w+) (\S+)$", oracle[-1].text, re.MULTILINE)
    assert [method for method, _ in wanted] == ["bce", "ldam", "cbs", "linear_probe"]
    for method, value in wanted:
        assert re.search(rf"^{method} +{float(value):.4f} ", table, re.MULTILINE)
    assert "<table>" in shown[-1].data["text/html"]
    page = (tmp_path / "first-results" / "comparison.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and all(f">{method}<" in page for method, _ in wanted)
