"A stranger adds a rule, a kernel and a format, as CONTRIBUTING shows: one row and one lesson each, and API, command, help and site know them"
import json, os, re, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import build # noqa: E402

WHERE = {"RULES |=": "04d_rules", "FORMS |=": "01_kernels", "WRITERS |=": "03e_writers"}

def examples():
    "(row, lesson) of each, from the page that people read"
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## A row\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.S)
    return list(zip(blocks[::2], blocks[1::2]))

@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    "The package as it is after the rows were added to their notebooks and exported"
    from nbdev.export import nb_export
    home = tmp_path_factory.mktemp("stranger")
    (home / "nbs").mkdir()
    shutil.copytree(ROOT / "loragrass", home / "loragrass", ignore=shutil.ignore_patterns("__pycache__", "data"))
    (home / "loragrass" / "data").symlink_to(ROOT / "loragrass" / "data")
    for row, _ in examples():
        page = next(page for table, page in WHERE.items() if table in row)
        book = json.loads((ROOT / "nbs" / f"{page}.ipynb").read_text(encoding="utf-8"))
        book["cells"].insert(-1, {"cell_type": "code", "id": "added", "metadata": {}, "outputs": [], "execution_count": None, "source": row})
        path = home / "nbs" / f"{page}.ipynb"
        path.write_text(json.dumps(book), encoding="utf-8")
        nb_export(path, lib_path=home / "loragrass")
    return home

def run(home, *args):
    "A process that finds their package first"
    ran = subprocess.run([sys.executable, *args], cwd=home, env=os.environ | {"PYTHONPATH": str(home), "COLUMNS": "200"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout

def test_each_is_ten_lines_at_most():
    assert [max(part.count("\n") for part in example) <= 10 for example in examples()] == [True] * 3

def test_the_api_knows_them(theirs):
    imports = "import tempfile, torch\nfrom pathlib import Path\nfrom loragrass import gram, load, load_zoo, merge, orthonormalize, save\ntorch.manual_seed(0)\n"
    listed = "from loragrass.merging import RULES\nfrom loragrass.kernels import KERNELS\nfrom loragrass.writers import WRITERS\n"
    names = "print('largest' in RULES, {'projection_cauchy', 'binet_cauchy_cauchy', 'det_regularized_cauchy'} <= set(KERNELS), 'dotted' in WRITERS)"
    lessons = "".join(lesson for _, lesson in examples())
    assert run(theirs, "-c", imports + lessons + listed + names) == "True True True\n"

def test_the_command_knows_them(theirs):
    command = ("-c", "from loragrass.cli import app; app(prog_name='loragrass')")
    said = run(theirs, *command, "merge", "--help")
    assert {"largest", "dotted"} <= set(re.findall(r"\w+", said))
    asked = ["--method", "largest", "--kernel", "projection_cauchy", "--format", "dotted", "-k", "2", "-o", "means"]
    zoo = [str(p) for p in sorted((ROOT / "loragrass" / "data").rglob("adapter_model.safetensors"))[:4]]
    assert "mean_0.safetensors" in run(theirs, *command, "merge", *[str(Path(p).parent) for p in zoo], *asked) and (theirs / "means" / "mean_0.safetensors").exists()

def test_the_site_shows_them(theirs):
    site = build.Book(theirs)
    shown = {page.name: "".join(c["source"] for c in site.notebook(page)["cells"] if c["cell_type"] == "markdown") for page in site.pages}
    assert '| `RULES["largest"]` | Yours 2026: the member of largest norm |' in shown["rules"] and '`RULES["svd"]`' in shown["rules"]
    assert '| `FORMS["cauchy"]` | 1 / (1 + β(t_max − t)) |' in shown["kernels"] and '| `WRITERS["dotted"]` |' in shown["writers"]
