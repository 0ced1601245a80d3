"""The book as a site: notebooks → MyST notebooks in _docs/src → HTML in _docs/html. A link that leads nowhere fails the build.

nbdev's directives (`#| hide`, `#| export`, …) decide what a page shows. An exported cell becomes what it defines, with its source folded below;
backticked names of the package become links, links between notebooks links between pages; `> **Note.** …` and claims become boxes.
"""
import ast, hashlib, json, os, re, shutil, subprocess, sys, tarfile, tomllib
from pathlib import Path

from docutils.nodes import make_id
from nbdev import processors
from nbdev.config import nbpath2html
from nbdev.process import NBProcessor

import api, ledger

ROOT = Path(__file__).resolve().parent.parent
BLOB = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"] + "/blob/main/"
PROCS = [processors.populate_language, processors.strip_ansi, processors.hide_line, processors.filter_stream_, processors.clean_magics, processors.hide_]
FURTHER = {"bench/RESULTS.md": "benchmarks", "CHANGELOG.md": "changelog"} # pages that are no notebooks, where they exist
BOXES = {"true": "tip", "false": "danger", "not settled": "attention"}
MATHJAX, MATHJAX_SHA256 = "mathjax@3.2.2", "a4354ff94fd868aea0cc6eaaa79a57fda0588646fc46ee3700a349ee0a11cbe6"

def label(page, name): # labels have no case: the prefix keeps a class and a function of the same name apart
    return f"{page}.{'class-' * name[0].isupper()}{name}"

def is_export(cell): return cell.cell_type == "code" and bool({"export", "exports", "exporti"} & cell.directives_.keys())

def fenced(kind, body, *options):
    return "\n".join([f"``````{{{kind[0]}}} {kind[1]}".rstrip(), *options, "", body, "``````"])

class Page:
    "One notebook, as nbdev's directives leave it"
    def __init__(self, path):
        self.path, self.name = path, nbpath2html(path).stem
        nb = NBProcessor(path, procs=PROCS, process=True).nb
        self.cells = [c for c in nb.cells if c.source.strip()]
        self.definitions = {c.id: list(api.public(ast.parse(c.source))) for c in self.cells if is_export(c)}

class Book:
    "All pages, and what links on them lead to"
    def __init__(self, root=ROOT):
        self.root = root
        notebooks = sorted((root / "nbs").glob("[!_]*.ipynb"), key=lambda p: (p.stem != "index", p.name))
        self.pages = [Page(path) for path in notebooks]
        self.symbols = {name: p.name for p in self.pages for defined in p.definitions.values() for name, _ in defined}
        self.sources = {p.path: f"{p.name}.ipynb" for p in self.pages} | {root / s: f"{name}.md" for s, name in FURTHER.items() if (root / s).exists()}

    def write(self, out):
        "The sources of the site"
        for page in self.pages: (out / f"{page.name}.ipynb").write_text(json.dumps(self.notebook(page)), encoding="utf-8")
        for path, name in self.sources.items():
            if name.endswith(".md"): (out / name).write_text(self.prose(path.read_text(encoding="utf-8"), path), encoding="utf-8")
        claims = ledger.collect([p.path for p in self.pages])
        (out / "ledger.md").write_text(ledger.page(claims, lambda path: f"[]({self.sources[path]})"), encoding="utf-8")

    def notebook(self, page):
        cells = [c for cell in page.cells for c in self.cell(cell, page)]
        if page.name == "index": cells.append(markdown(self.contents()))
        info = {"name": "python", "pygments_lexer": "ipython3"}
        return dict(cells=cells, metadata={"language_info": info, "kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}, nbformat=4, nbformat_minor=5)

    def contents(self):
        book = [p.name for p in self.pages if p.name != "index"]
        reference = ["ledger"] + [Path(name).stem for name in self.sources.values() if name.endswith(".md")]
        return "\n\n".join(fenced(("toctree", ""), "\n".join(names), ":hidden:", f":caption: {caption}") for caption, names in (("The book", book), ("Reference", reference)))

    def cell(self, cell, page):
        "What one cell of the notebook becomes: markdown and code cells"
        if cell.cell_type == "markdown": yield markdown(self.prose(self.head(cell.source, page), page.path))
        if cell.cell_type != "code" or "default_exp" in cell.directives_ or "false" == cell.directives_.get("include"): return
        if is_export(cell):
            for name, node in page.definitions[cell.id]: yield markdown(self.definition(name, node, cell.source, page))
            if not all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(cell.source).body): yield code(cell, "hide-input", prompt="Source")
        else: yield code(cell, *(tag for key, tag in (("echo", "remove-input"), ("output", "remove-output")) if cell.directives_.get(key) == "false"))

    def head(self, source, page):
        "Under the title: the subtitle, and where the page comes from"
        notebook = page.path.relative_to(self.root).as_posix()
        source_links = f"{{.origin}}\nNotebook: [`{notebook}`]({BLOB}{notebook})"
        if page.definitions: source_links += f" · module: [`loragrass.{page.name}`]({BLOB}loragrass/{page.name}.py)"
        return re.sub(r"\A(# .+)\n+> (.+)", lambda m: f"{m[1]}\n\n{{.subtitle}}\n{m[2]}\n\n{source_links}", source)

    def definition(self, name, node, source, page):
        "A function, class or method: heading with its name as anchor, signature, docstring, docments"
        module = f"loragrass/{page.name}.py"
        line = next((n.lineno for found, n in api.public(ast.parse((self.root / module).read_text(encoding="utf-8"))) if found == name), None)
        if not line: raise ValueError(f"{module} has no {name}, which {page.path.name} exports; run nbdev-export")
        anchor = f'<div id="{name}"></div>\n\n' if make_id(name) != name else ""
        heading = f"{'####' if '.' in name else '###'} `{name}`"
        doc = f"{self.links(ast.get_docstring(node) or '', page.path)} [source]({BLOB}{module}#L{line})"
        signature = fenced(("code-block", "python"), api.signature(node, name), ":class: signature")
        return "\n\n".join([f"{anchor}({label(page.name, name)})=\n{heading}", signature, doc, self.links(api.table(node, source), page.path)])

    def prose(self, text, path):
        "Markdown with links and boxes; fenced code stays as it is"
        out, box, fence = [], [], False
        for line in [*text.splitlines(), ""]:
            if line.startswith("```"): fence = not fence
            if box and not line.startswith(">"):
                out.append(fenced((box[0].lower(), ""), "\n".join(box[1:]))); box = []
            if fence or line.startswith(("```", "#")): out.append(line)
            elif claim := ledger.parse(line, path):
                out.append(fenced(("admonition", f"Claim {claim.id}"), self.links(f"{claim.text} **Verdict: {claim.verdict}", path), f":class: {BOXES[claim.kind]}", f":name: claim-{claim.id.lower()}"))
            elif m := re.match(r"> \*\*(Note|Tip|Important|Caution|Warning)\.\*\* (.*)", line): box = [m[1], self.links(m[2], path)]
            elif box: box.append(self.links(line.lstrip("> "), path))
            else: out.append(self.links(line, path))
        return "\n".join(out)

    def links(self, text, path):
        "Names of the package and relative links, as links on the site"
        def symbol(m): return f"[{m[0]}](#{label(self.symbols[m[1]], m[1])})" if m[1] in self.symbols else m[0]
        text = re.sub(r"(?<!\[)`(?:lg\.|loragrass\.)?([A-Za-z_][\w.]*)(?:\(\))?`(?!\])", symbol, text)
        return re.sub(r"(?<=\]\()([^\s()]+)(?=\))", lambda m: self.target(m[1], path), text)

    def target(self, link, path):
        "Where a relative link leads on the site: a page, an anchor, or a file of the repository; MyST refuses what is none of them"
        url, _, anchor = link.partition("#")
        if ":" in url or (not url and anchor.partition(".")[0] in self.symbols.values()): return link
        file = (path.parent / url).resolve() if url else path
        if file in self.sources:
            if self.symbols.get(anchor) == Path(self.sources[file]).stem: return f"#{label(self.symbols[anchor], anchor)}"
            return self.sources[file] + (f"#{anchor.lower()}" if anchor else "")
        return BLOB + file.relative_to(self.root).as_posix() if file.exists() and file.is_relative_to(self.root) else link

def markdown(source): return dict(cell_type="markdown", metadata={}, source=source, id=hashlib.sha1(source.encode()).hexdigest()[:8])

def code(cell, *tags, prompt=""):
    return dict(cell_type="code", metadata={"tags": list(tags), "mystnb": {"code_prompt_show": prompt, "code_prompt_hide": prompt} if prompt else {}},
                source=cell.source, outputs=cell.get("outputs", []), execution_count=None, id=cell.id)

def fetch_mathjax(cache, static):
    "MathJax as one file of the site: from the npm registry the first time, then from the cache"
    if not (tarballs := list(cache.glob("mathjax-*.tgz"))):
        if not (npm := shutil.which("npm")): sys.exit("npm is not found; the docs need it once, to fetch MathJax (Debian: apt-get install npm)")
        cache.mkdir(parents=True, exist_ok=True)
        if subprocess.run([npm, "pack", "--silent", MATHJAX], cwd=cache).returncode: sys.exit(f"npm could not fetch {MATHJAX}; what it said is above")
        tarballs = list(cache.glob("mathjax-*.tgz"))
    with tarfile.open(tarballs[0]) as tar: script = tar.extractfile("package/es5/tex-svg-full.js").read()
    if hashlib.sha256(script).hexdigest() != MATHJAX_SHA256: sys.exit(f"{tarballs[0]} is not {MATHJAX}; delete it and build again")
    (static / "mathjax.js").write_bytes(script)

def main():
    out = ROOT / "_docs"
    for folder in ("src", "static", "html"):
        shutil.rmtree(out / folder, ignore_errors=True)
        (out / folder).mkdir(parents=True)
    fetch_mathjax(out / "cache", out / "static")
    Book().write(out / "src")
    sys.exit(subprocess.run([sys.executable, "-m", "sphinx", "-q", "-E", "-W", "--keep-going", "-c", ROOT / "docs", "-d", out / "doctrees", out / "src", out / "html"]).returncode)

if __name__ == "__main__": main()
