"""Pages whole in a Jupyter kernel, as "Run All" in JupyterLab has them: what the runner in `conftest.py` cannot see.

`make test` runs a few quick pages, `make notebooks` (`LORAGRASS_NOTEBOOKS=all`) every one.
"""
import os, shutil, subprocess, sys
from pathlib import Path

import nbformat, pytest
from conftest import compare_outputs
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NBS = ROOT/"nbs"
QUICK = ["00_plucker", "03_lora_io", "03d_formats", "07_geolora"]
ALL = sorted(p.stem for p in NBS.glob("*.ipynb"))

def read(name): return nbformat.read(NBS/f"{name}.ipynb", as_version=4)
def written(folder): return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if "__pycache__" not in p.parts}

@pytest.mark.parametrize("name", ALL if os.environ.get("LORAGRASS_NOTEBOOKS") == "all" else QUICK)
def test_runs_whole_in_a_kernel(name, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False) # pictures appear in the page, as a reader sees them
    before, page = (written(ROOT/"loragrass"), written(NBS)), read(name)
    NotebookClient(page, timeout=1200, resources={"metadata": {"path": NBS}}).execute()
    outputs = [o for cell in page.cells if cell.cell_type == "code" for o in cell.outputs]
    assert not [o for o in outputs if o.get("name") == "stderr" and "TqdmWarning" in o.text]
    assert (written(ROOT/"loragrass"), written(NBS)) == before

def test_pages_end_alike():
    "The last cell of every page but the index exports"
    last = {name: read(name).cells[-1].source for name in ALL if name != "index"}
    assert len(last) >= 24 and len(set(last.values())) == 1 and "nbdev_export()" in last["00_plucker"]

def printed(text): return [{"output_type": "stream", "name": "stdout", "text": text}]

@pytest.mark.parametrize("stored, fresh", [("0.011", "0.012"), ("0.02", "0.01"), ("-0.0", "0.0"), ("1.234e-3", "1.235e-3"),
                                           ("0.998", "0.96"), ("120", "124"), ("tensor([0.25])", "tensor([0.2500])")])
def test_outputs_that_agree(stored, fresh): compare_outputs(printed(stored), printed(fresh))

@pytest.mark.parametrize("stored, fresh", [("0.011", "0.031"), ("0.0004", "0.0090"), ("1.2e-3", "1.9e-3"), ("0.02", "-0.01"),
                                           ("3", "4"), ("1e-12", "1e-7"), ("0.98", "0.92"), ("0.5 of 3", "0.5 in 3")])
def test_outputs_that_do_not(stored, fresh):
    "What a page shows is wrong when a small number moves, which an absolute tolerance would not notice"
    with pytest.raises(AssertionError, match="run `make outputs`"): compare_outputs(printed(stored), printed(fresh))

def run_last_cell(folder):
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    subprocess.run([sys.executable, "-c", read("00_plucker").cells[-1].source], cwd=folder, env=env, check=True, timeout=300)

def test_the_last_cell_exports_in_a_checkout(tmp_path):
    (tmp_path/"nbs").mkdir(); (tmp_path/"loragrass").mkdir()
    shutil.copy(ROOT/"pyproject.toml", tmp_path)
    shutil.copy(NBS/"00_plucker.ipynb", tmp_path/"nbs")
    run_last_cell(tmp_path/"nbs")
    assert (tmp_path/"loragrass/plucker.py").read_text() == (ROOT/"loragrass/plucker.py").read_text()

def test_the_last_cell_writes_nothing_elsewhere(tmp_path):
    "A page that was copied out of the checkout runs to its end, wherever it lies"
    shutil.copy(NBS/"00_plucker.ipynb", tmp_path)
    before = written(tmp_path)
    run_last_cell(tmp_path)
    assert written(tmp_path) == before
