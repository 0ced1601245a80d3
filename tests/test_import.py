"""What a plain `import loragrass` may say: nothing"""
import importlib, pkgutil, subprocess, sys
from textwrap import dedent

import pytest

def test_every_module_imports_without_a_warning_and_leaves_the_filters_alone():
    code = """
        import importlib, pkgutil, warnings
        import loragrass
        for module in pkgutil.iter_modules(loragrass.__path__): importlib.import_module(f"loragrass.{module.name}")
        import torch
        try: torch.jit.script(lambda x: x) # deprecated in new versions: a user's own warning is still one
        except DeprecationWarning: pass
        else: assert tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9), "torch.jit.script warns, and nobody heard"
    """
    subprocess.run([sys.executable, "-W", "error", "-c", dedent(code)], check=True, timeout=300)

@pytest.mark.parametrize("old, new", [("names", "module_names"), ("kinds", "factors"), ("tables", "lora_datasets"), ("scale", "subspace_index")])
def test_modules_are_imported_by_their_old_names_for_one_release(old, new):
    with pytest.warns(FutureWarning, match=f"loragrass.{old} is now loragrass.{new}"): module = importlib.import_module(f"loragrass.{old}")
    assert module is importlib.import_module(f"loragrass.{new}") and module.__spec__.name == f"loragrass.{new}"
    with pytest.raises(ModuleNotFoundError, match="loragrass.nothing"): importlib.import_module("loragrass.nothing")
    del sys.modules[f"loragrass.{old}"]

@pytest.mark.parametrize("old, new", [("cluster_merge.compare", "comparing.compare"), ("cluster_merge.MEANS", "merging.RULES"), ("clustering.METHODS", "clustering.CLUSTERINGS"),
    ("karcher.METHODS", "karcher.SOLVERS"), ("formats.difference", "lora_io.LoRAUpdate.difference"), ("report.score_groups", "cluster_merge.score_groups")])
def test_names_that_moved_are_found_for_one_release(old, new):
    module, name = (importlib.import_module(f"loragrass.{old.split('.')[0]}"), old.split(".")[1])
    with pytest.warns(FutureWarning, match=f"loragrass.{old} is now loragrass.{new}"): found = getattr(module, name)
    assert found is pkgutil.resolve_name(f"loragrass.{new}")
    assert not hasattr(module, "nothing")
