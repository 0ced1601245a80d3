"""What a plain `import loragrass` may say: nothing"""
import subprocess, sys
from textwrap import dedent

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
