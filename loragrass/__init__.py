"See what is inside your LoRA adapters: compare, group, average and merge them as subspaces"
__version__ = "0.1.0"

import sys, types
import lazy_loader

# names load when first used; `__init__.pyi` is the list of them, for people, type checkers and the loader alike
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

class _Package(types.ModuleType):
    "Importing the submodule `cluster_merge`, the one that is called like its function, must not hide the function"
    def __setattr__(self, name, value):
        super().__setattr__(name, value.cluster_merge if name == "cluster_merge" and isinstance(value, types.ModuleType) else value)

sys.modules[__name__].__class__ = _Package
