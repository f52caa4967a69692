"""What the README shows runs, and nothing in the repository points at a file that is not there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_snippet_runs():
    [snippet] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    scope = {}
    exec(compile(snippet, "README.md", "exec"), scope)  # noqa: S102
    assert 0.65 <= scope["pinch_sparsity"] <= 0.651


def test_links_in_the_documents_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "egs" / "librispeech_100" / "RESULTS.md"):
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), (page, target)
