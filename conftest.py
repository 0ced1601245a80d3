"""pytest runs the notebooks: one item a code cell, one shell a notebook, nbdev's own directives honoured.

`--exported` leaves the export cells out and takes their names from the installed module, so that the lessons test what `pip install` gives.
`--save` writes the outputs into the notebooks (then `nbdev-clean`); without it, a cell whose stored output is no longer true fails.
"""
import os, re

import pytest


def pytest_addoption(parser):
    parser.addoption("--exported", action="store_true", help="notebooks: test the exported modules, not the export cells")
    parser.addoption("--save", action="store_true", help="notebooks: write the outputs instead of comparing them")

def pytest_configure(): os.environ["IN_TEST"] = "1" # nbdev's own switch: `nbdev_export()`, the last cell of a page, writes nothing

def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".ipynb" and file_path.parent.name == "nbs": return Notebook.from_parent(parent, path=file_path)

class Notebook(pytest.File):
    def collect(self):
        from nbdev.test import nb_test_cells
        self.cells, module = nb_test_cells(self.path), None
        for i, cell in enumerate(self.cells):
            directives = cell.directives_ or {}
            module = directives.get("default_exp", module)
            first = next((line for line in cell.source.splitlines() if line.strip() and not line.startswith("#|")), "")
            item = Cell.from_parent(self, name=f"{i:03d} {first[:70]}")
            if self.config.getoption("exported") and {"export", "exports", "exporti"} & directives.keys():
                cell.source = f"import importlib; globals().update({{k: v for k, v in vars(importlib.import_module('loragrass.{module}')).items() if k[:2] != '__'}})"
            item.cell, item.volatile = cell, "volatile" in directives
            yield item

    def setup(self):
        from execnb.shell import CaptureShell
        self.failed, self.shell, self.cwd = False, CaptureShell(self.path, mpl_format="png"), os.getcwd()
        os.chdir(self.path.parent)

    def teardown(self):
        if self.config.getoption("save") and not self.failed: self.save()
        self.shell.run("import matplotlib.pyplot as plt; plt.close('all')")
        self.shell.close()
        os.chdir(self.cwd)
        import torch
        torch.set_default_dtype(torch.float32) # a page may have set another; the next one of this process starts as a reader does

    def save(self):
        from fastcore.nbio import read_nb, write_nb
        nb, ran = read_nb(self.path), {cell.id: cell.ran for cell in self.cells if hasattr(cell, "ran")}
        for cell in nb.cells:
            if cell.cell_type == "code": cell.outputs, cell.execution_count = ran.get(cell.id, []), None
        write_nb(nb, self.path)

class Cell(pytest.Item):
    def runtest(self):
        if self.parent.failed: pytest.skip("an earlier cell of this notebook failed")
        shell = self.parent.shell
        outputs = shell.run(self.cell.source)
        if shell.exc: self.parent.failed = True; raise CellFailed(shell.prettytb(fname=self.parent.path))
        self.cell.ran = outputs
        if not (self.volatile or self.config.getoption("save")): compare_outputs(self.cell.get("outputs", []), outputs)

    def repr_failure(self, excinfo):
        if isinstance(excinfo.value, CellFailed): return f"{self.cell.source}\n\n{excinfo.value}"
        return super().repr_failure(excinfo)

    def reportinfo(self): return self.path, None, f"{self.path.stem}: {self.name}"

class CellFailed(Exception): pass

NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")

def shape(output): # what must stay: which kinds of output, in which order; progress bars and warnings go to stderr and do not count
    return tuple(sorted(k for k in output.get("data", {}) if k != "text/html")) or output.get("name", output["output_type"])

def text(outputs):
    parts = ["".join(o.get("text", "") or o.get("data", {}).get("text/plain", "")) for o in outputs]
    return " ".join(p for o, p in zip(outputs, parts) if "image/png" not in o.get("data", {}))

def last_place(number): # 0.001 of 0.123, 1e-6 of 1.234e-3; 0 of a number without decimals
    mantissa, _, exponent = number.partition("e")
    decimals = len(mantissa.partition(".")[2])
    return 10.0 ** (int(exponent or 0) - decimals) if decimals else 0.0

def agree(stored, fresh): # numbers as they were printed
    x, y = float(stored), float(fresh)
    return x == y or abs(x - y) <= 1.001 * max(0.05 * abs(y), last_place(stored), last_place(fresh))

def compare_outputs(stored, fresh):
    "Stored and fresh outputs agree: same kinds, same words, numbers to 5 % or one in the last place, pictures by presence"
    stored, fresh = ([o for o in outs if o.get("name") != "stderr"] for outs in (stored, fresh))
    assert [shape(o) for o in stored] == [shape(o) for o in fresh], "the stored output is of another kind: run `make outputs`"
    a, b = text(stored), text(fresh)
    words = [re.sub(r"[\s+-]+", " ", NUMBER.sub("#", t)) for t in (a, b)]
    assert words[0] == words[1], f"the stored output is not true any more: run `make outputs`\nstored: {a}\nfresh:  {b}"
    for x, y in zip(NUMBER.findall(a), NUMBER.findall(b)):
        assert agree(x, y), f"stored {x}, fresh {y}: run `make outputs`\nstored: {a}\nfresh:  {b}"
