"README.md from nbs/index.ipynb: `python docs/readme.py` writes it, `--check` fails when it is not what the notebook says"
import base64, json, re, sys, tomllib
from difflib import unified_diff
from pathlib import Path

from nbdev.config import nbpath2html

ROOT = Path(__file__).resolve().parent.parent
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
SITE, BLOB = URLS["Documentation"], URLS["Repository"] + "/blob/main/"
PICTURE = "docs/static/readme.png" # of the one cell that draws

def absolute(link, folder):
    "A link of the notebook, as it must stand on a code host and on PyPI: a page of the site, or a file of the repository"
    url, _, anchor = link.partition("#")
    if ":" in url or not url: return link
    file = (folder / url).resolve()
    if not file.exists(): raise ValueError(f"nbs/index.ipynb links to {link}, and {file} does not exist; links are relative to nbs/")
    if file.parent.name == "pages": return f"{SITE}{file.stem}.html" + (f"#{anchor}" if anchor else "")
    if file.suffix == ".ipynb": return SITE + nbpath2html(Path(file.name)).name + (f"#{anchor}" if anchor else "")
    return BLOB + file.relative_to(folder.parent.resolve()).as_posix() + (f"#{anchor}" if anchor else "")

def output(out):
    "An output as Markdown"
    data = out.get("data", {})
    if out.get("name") == "stderr": return ""
    if "image/png" in data: return f"![What the notebook draws]({BLOB.replace('/blob/', '/raw/')}{PICTURE})"
    if "text/markdown" in data: return "".join(data["text/markdown"])
    text = "".join(out.get("text") or data.get("text/plain", "")).rstrip()
    return text and f"```text\n{text}\n```"

def readme(path):
    "The README's text"
    parts = ["<!-- Made from nbs/index.ipynb by docs/readme.py: edit the notebook. -->"]
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        directives = dict(m.groups() for m in re.finditer(r"^#\|\s*(\w+):?\s*(.*?)\s*$", source, re.M))
        if cell["cell_type"] == "markdown": parts.append(re.sub(r"(?<=\]\()([^\s()]+)(?=\))", lambda m: absolute(m[1], path.parent), source))
        if cell["cell_type"] != "code" or {"hide", "default_exp"} & directives.keys() or directives.get("include") == "false": continue
        code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
        if code and directives.get("echo") != "false": parts.append(f"```python\n{code}\n```")
        if directives.get("output") != "false": parts += [text for text in map(output, cell["outputs"]) if text]
    return "\n\n".join(part.strip() for part in parts) + "\n"

def picture(path):
    "The README's picture, of which there is one"
    outputs = [out for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] for out in cell.get("outputs", [])]
    found = [out["data"]["image/png"] for out in outputs if "image/png" in out.get("data", {})]
    if len(found) != 1: raise ValueError(f"{path} has {len(found)} pictures; the README has room for one")
    return base64.b64decode("".join(found[0]))

def main(check=False):
    target, notebook = ROOT / "README.md", ROOT / "nbs" / "index.ipynb"
    text, drawn = readme(notebook), picture(notebook)
    if not check:
        (ROOT / PICTURE).write_bytes(drawn)
        return target.write_text(text, encoding="utf-8")
    if (ROOT / PICTURE).read_bytes() != drawn: sys.exit(f"{PICTURE} is not what nbs/index.ipynb draws; run python docs/readme.py and commit it")
    if diff := list(unified_diff(target.read_text(encoding="utf-8").splitlines(), text.splitlines(), "README.md", "nbs/index.ipynb", lineterm="")):
        sys.exit("\n".join(diff) + "\n\nREADME.md is not what nbs/index.ipynb says; run python docs/readme.py and commit it")

if __name__ == "__main__": main(check="--check" in sys.argv[1:])
