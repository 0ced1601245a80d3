"See what is inside your LoRA adapters: compare, group, average and merge them as subspaces"
__version__ = "0.1.0"

import importlib.abc, importlib.util, sys, types, warnings
import lazy_loader

# names load when first used; `__init__.pyi` is the list of them, for people, type checkers and the loader alike
_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# names that are not here any more, for one release: where to find them
_MOVED = dict.fromkeys(("polynomial_kernel", "rbf_kernel", "laplace_kernel", "binomial_kernel", "logarithm_kernel", "bc_distance"),
                       "loragrass.det_kernels")
_ROWS = ("Flat", "Stats", "Spectral", "Norms", "Distribution", "Frequency", "Information", "Ensemble") # of Features now

def __getattr__(name):
    if name in _ROWS: return getattr(importlib.import_module("loragrass.features"), name) # which warns
    if name not in _MOVED: return _load(name)
    warnings.warn(f"loragrass.{name} is now {_MOVED[name]}.{name}", FutureWarning, stacklevel=2)
    return getattr(importlib.import_module(_MOVED[name]), name)

# modules that have another name now, for one release
_RENAMED = {f"{__name__}.{old}": f"{__name__}.{new}" for old, new in
            {"names": "module_names", "kinds": "factors", "tables": "lora_datasets", "scale": "subspace_index"}.items()}

class _Renamed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    "Finds a module under its old name"
    def find_spec(self, name, path=None, target=None): return importlib.util.spec_from_loader(name, self) if name in _RENAMED else None
    def create_module(self, spec): return None
    def exec_module(self, module):
        name = module.__name__
        warnings.warn(f"{name} is now {_RENAMED[name]}", FutureWarning, stacklevel=2)
        sys.modules[name] = importlib.import_module(_RENAMED[name])

sys.meta_path.append(_Renamed())

class _Package(types.ModuleType):
    "Importing the submodule `cluster_merge`, the one that is called like its function, must not hide the function"
    def __setattr__(self, name, value):
        super().__setattr__(name, value.cluster_merge if name == "cluster_merge" and isinstance(value, types.ModuleType) else value)

sys.modules[__name__].__class__ = _Package
