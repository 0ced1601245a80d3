"The texts of bench/topic.py: modules of Python's library, whose packages are topics, and texts of other kinds on this machine"
import hashlib, sys
from pathlib import Path

TOPICS = ("asyncio", "distutils", "email", "importlib", "multiprocessing", "tkinter", "unittest", "xml")

def mixed(paths): return sorted(paths, key=lambda p: hashlib.sha256(p.name.encode()).hexdigest())

def library(topic, least=3500):
    "Modules of a package; those of no package under '.'"
    root = Path(sys.modules["os"].__file__).parent
    found = (root / topic).glob("*.py") if topic == "." else (root / topic).rglob("*.py")
    return [p.read_text(errors="ignore") for p in mixed(found) if p.stat().st_size > least and not {"test", "tests"} & set(p.parts)]

def foreign(each=8, least=6000):
    "Perl modules, C headers and licences, as Debian has them"
    kinds = {"perl": Path("/usr/share/perl").rglob("*.pm"), "C": Path("/usr/include").glob("*.h"), "licence": Path("/usr/share/common-licenses").glob("*")}
    for kind, paths in kinds.items():
        texts = [p.read_text(errors="ignore") for p in mixed({q.resolve() for q in paths}) if p.is_file() and p.stat().st_size > least]
        yield from ((kind, t) for t in texts[:each])

def corpus(fits, each=8, n_validation=24):
    "(topic, text) of the corpus, of validation documents and of foreign ones; `fits(text)`: is it long enough?"
    of_topics = [(t, text) for t in TOPICS for text in [x for x in library(t) if fits(x)][:each]]
    validation = [(".", text) for text in [x for x in library(".") if fits(x)][:n_validation]]
    return of_topics, validation, [(kind, text) for kind, text in foreign(2 * each) if fits(text)][:3 * each]
