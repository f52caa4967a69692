"""What the documents show runs, and nothing in them points at a file that is not there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCTC

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "egs").glob("*/RESULTS.md"))


def test_the_snippet_runs():
    [snippet] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    scope = {}
    exec(compile(snippet, "README.md", "exec"), scope)  # noqa: S102
    assert 0.65 <= scope["pinch_sparsity"] <= 0.651


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_in_the_documents_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text):
        if "://" in target:
            continue
        linked = page.parent / target if target else page
        assert linked.exists(), (page, target)
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, (page, target, anchor)


@pytest.mark.parametrize("name", ["any_training_loop", "transformers_trainer"])
def test_the_examples_end_on_their_target_with_a_model_that_loads(name, tmp_path):
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "sparsity 75.0" in done.stdout
    model = AutoModelForCTC.from_pretrained(tmp_path / "out")
    linears = [p for n, p in model.named_parameters() if re.search(r"layers\..*(proj|dense)\.weight", n)]
    zeros = sum(int((p == 0).sum()) for p in linears) / sum(p.numel() for p in linears)
    assert 0.75 <= zeros <= 0.751
    if name == "transformers_trainer":  # again: it goes on from its last checkpoint
        assert subprocess.run(command, capture_output=True, text=True, env=environment).returncode == 0
