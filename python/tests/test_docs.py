"""Runs the Python snippets of the book."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "src" / "python.md"
OPTIONAL = {"PyTorch": "torch", "pandas": "pandas", "Weights & Biases": "wandb", "MLflow": "mlflow"}


def test_the_pages_snippets_run_in_order(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    # The database of the page needs all of MLflow; the tests have its small client.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "recipe.ron").write_text(recipe, encoding="utf-8")
    names: Dict[str, Any] = {}
    ran = []
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
        title = section.splitlines()[0]
        for snippet in re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE):
            if title in OPTIONAL:
                try:
                    __import__(OPTIONAL[title])
                except ImportError:
                    continue
            exec(compile(snippet.replace("sqlite:///mlflow.db", tmp_path.as_uri() + "/mlruns"), title, "exec"), names)
            ran.append(title)
    assert {"Runs and metrics", "Embeddings", "A function"} <= set(ran)
    assert names["run"].status == "finished" and names["test"].features.shape == (48, 24)
