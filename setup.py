"Package metadata: everything comes from settings.ini, read with the standard library alone"
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="])
parser.read("settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
def lines(key): return [line for line in cfg.get(key, "").splitlines() if line.strip()]

setup(
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license=cfg["license"],
    author=cfg["author"],
    keywords=cfg["keywords"].split(),
    packages=find_packages(include=["loragrass", "loragrass.*"]),
    package_data={"loragrass": ["py.typed", "*.pyi", "data/**/*", "data/*"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=lines("requirements"),
    extras_require={key.removesuffix("_requirements"): lines(key) for key in cfg if key.endswith("_requirements")},
    entry_points={"console_scripts": lines("console_scripts"), "nbdev": ["loragrass=loragrass._modidx:d"]},
)
