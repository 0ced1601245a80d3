"Which page may stand on which: read from the exported modules, imports inside functions included"
import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OPENS_LAST = {"00", "04"} # opening pages that stand on their lettered pages; elsewhere these stand on it

def pages():
    "Module → its page's number: chapter and letter"
    out = {}
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        out[first.split("default_exp")[1].split()[0]] = re.match(r"(\d+)([a-z]?)_", path.name).groups()
    return out

def imports(source):
    "(module, name) of everything that is taken from another page: `from loragrass.x import y`, `from .x import y`, `import loragrass.x`, `lg.x` of the package"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.level == 1 or (node.module or "").startswith("loragrass")):
            module = (node.module or "").removeprefix("loragrass").lstrip(".")
            for alias in node.names: yield (module, alias.name) if module else (alias.name, "")
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("loragrass."): yield alias.name.split(".")[1], ""

PAGES = pages()
SOURCES = {m: (ROOT / "loragrass" / f"{m}.py").read_text(encoding="utf-8") for m in PAGES}
TAKEN = {m: [(other, name) for other, name in imports(source) if other in PAGES and other != m] for m, source in SOURCES.items()}

def may(a, b):
    "May page a stand on page b?"
    (chapter, letter), (other, other_letter) = a, b
    if chapter != other: return other < chapter
    if chapter in OPENS_LAST and not (letter and other_letter): return not letter
    return other_letter < letter

def circles(edges):
    "Modules that reach themselves"
    def reached(m, seen):
        for other in edges.get(m, ()):
            if other not in seen: reached(other, seen | {other} if seen.add(other) else seen)
        return seen
    return sorted(m for m in edges if m in reached(m, set()))

@pytest.mark.parametrize("module", PAGES)
def test_imports_go_to_smaller_numbers(module):
    wrong = [other for other, _ in TAKEN[module] if not may(PAGES[module], PAGES[other])]
    assert not wrong, f"{module} ({''.join(PAGES[module])}) may not import {', '.join(sorted(set(wrong)))}"

def test_no_circle(): assert not circles({m: {other for other, _ in taken} for m, taken in TAKEN.items()})

@pytest.mark.parametrize("module", PAGES)
def test_what_another_page_takes_is_not_private(module):
    private = [f"{other}.{name}" for other, name in TAKEN[module] if re.match("_[^_]", name)]
    assert not private, f"{module} takes {', '.join(private)}: give it a name without underscore, and docments"

def test_the_test_sees_what_it_is_for():
    lazy = "def f():\n    from loragrass.merging import RULES\n    import loragrass.report\n    from . import cli"
    assert list(imports(lazy)) == [("merging", "RULES"), ("report", ""), ("cli", "")]
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c"]
    assert may(("04", ""), ("04", "c")) and not may(("04", "c"), ("04", "")) and may(("03", "a"), ("03", "")) and not may(("03", ""), ("03", "a"))
    assert may(("05", ""), ("04", "e")) and not may(("04", "e"), ("05", "")) and not may(("04", "a"), ("04", "b"))
