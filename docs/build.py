"""The book as a site: notebooks → MyST notebooks in _docs/src → HTML in _docs/html. A link that leads nowhere fails the build.

nbdev's directives (`#| hide`, `#| export`, …) decide what a page shows. An exported cell becomes what it defines, with its source folded below;
backticked names of the package become links, links between notebooks links between pages; `> **Note.** …` and claims become boxes.
"""
import ast, hashlib, json, re, shutil, subprocess, sys, tarfile

from nbdev import processors
from nbdev.config import nbpath2html
from nbdev.process import NBProcessor

import api, ledger, reference
from readme import BLOB, ROOT

PROCS = [processors.populate_language, processors.strip_ansi, processors.hide_line, processors.filter_stream_, processors.clean_magics, processors.hide_]
FURTHER = {"bench/RESULTS.md": "benchmarks", "CHANGELOG.md": "changelog"} # texts of the repository that are pages too, where they exist
CHAPTERS = {"0[0-2]": "Subspaces", "03": "Files", "04": "Compare and merge", "05": "What is inside", "0[67]": "Training", "0[89]": "Pictures, report, command"}
NAVIGATION = { # caption → pages in their order; the book stands between the second and the third
    "Start": ["start"],
    "How to": ["merge", "which-rule", "convert", "clients", "trained-on", "train", "corpus", "many"],
    "Reference": ["names", "formats-and-models", "errors", "gallery"],
    "Truth": ["ledger", "benchmarks", "limits", "sources", "changelog"],
}
BOXES = {"true": "tip", "false": "danger", "not settled": "attention"}
CALLOUT = re.compile(r"> \*\*(Note|Tip|Important|Caution|Warning)\.\*\* (.*)")
PYTHON = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}, "language_info": {"name": "python", "pygments_lexer": "ipython3"}}
MATHJAX, MATHJAX_SHA256 = "mathjax@3.2.2", "a4354ff94fd868aea0cc6eaaa79a57fda0588646fc46ee3700a349ee0a11cbe6"

class Page:
    "One notebook, as nbdev's directives leave it, and what its exported cells define"
    def __init__(self, path):
        self.path, self.name = path, nbpath2html(path).stem
        self.number = path.stem.partition("_")[0] if path.stem[0].isdigit() else ""
        self.cells = [c for c in NBProcessor(path, procs=PROCS, process=True).nb.cells if c.source.strip()]
        self.definitions = {c.id: list(api.public(ast.parse(c.source))) for c in self.cells if is_export(c)}
        titles = (re.match("# (.+)", c.source) for c in self.cells if c.cell_type == "markdown")
        self.title = next((m[1] for m in titles if m), self.name)

class Book:
    "All pages, and what the links on them lead to"
    def __init__(self, root=ROOT):
        self.root = root
        notebooks = sorted((root / "nbs").glob("[!_]*.ipynb"), key=lambda p: (p.stem != "index", p.name))
        self.pages = [Page(path) for path in notebooks]
        stub = root / "loragrass" / "__init__.pyi"
        self.stub = stub.read_text(encoding="utf-8") if stub.exists() else ""
        # of two pages with one name, the first has the function, and the other the command that calls it
        self.symbols = {name: p.name for p in reversed(self.pages) for defined in p.definitions.values() for name, _ in defined}
        written = {path: path.name for path in sorted((root / "docs" / "pages").glob("*.md"))}
        further = {root / s: f"{name}.md" for s, name in FURTHER.items() if (root / s).exists()}
        self.sources = {p.path: f"{p.name}.ipynb" for p in self.pages} | written | further

    def write(self, out):
        "The sources of the site"
        texts = {path: path.read_text(encoding="utf-8") for path, name in self.sources.items() if name.endswith(".md")}
        made = {"ledger": ledger.page(ledger.collect([p.path for p in self.pages])), "names": reference.names(self.pages, self.stub), "errors": reference.errors(self.pages),
                "formats-and-models": reference.formats()}
        for name, text in made.items():
            place = self.root / "nbs" / f"{name}.md" # as if it lay there, for its links
            self.sources[place], texts[place] = place.name, text
        self.sources[self.root / "nbs" / "gallery.md"] = "gallery.ipynb"
        (out / "gallery.ipynb").write_text(json.dumps(self.gallery()), encoding="utf-8")
        for page in self.pages: (out / self.sources[page.path]).write_text(json.dumps(self.notebook(page)), encoding="utf-8")
        for path, text in texts.items(): (out / self.sources[path]).write_text(self.prose(text, path), encoding="utf-8")

    def notebook(self, page):
        cells = [c for cell in page.cells for c in self.cell(cell, page)]
        for before, cell in zip(cells, cells[1:]): # what the prose says of a picture stands for it where it cannot be seen
            if before["cell_type"] == "markdown" and cell["cell_type"] == "code":
                said = re.sub(r"[*`$]|\]\([^)]*\)|\[", "", before["source"].strip().split("\n\n")[-1])
                cell["metadata"].setdefault("mystnb", {})["image"] = {"alt": said}
        if page.name == "index": cells.append(markdown(self.contents()))
        return dict(cells=cells, metadata=PYTHON, nbformat=4, nbformat_minor=5)

    def gallery(self):
        "Every picture that one line draws, below that line"
        cells = [markdown("# Gallery\n\nEvery picture that a function of the package draws, with the line that draws it, from the pages of the book.")]
        for page, cell in reference.gallery(self.pages):
            functions = dict.fromkeys(re.findall(r"\b(plot_\w+)\(", cell.source))
            title = markdown(self.prose(f"## {', '.join(functions)}\n\n{', '.join(f'`{f}`' for f in functions)}, on [{page.title}]({page.path.name})", page.path))
            if title not in cells: cells.append(title)
            cells.append(code(cell, [], mystnb={"image": {"alt": f"What {', '.join(functions)} draws"}}))
        return dict(cells=cells, metadata=PYTHON, nbformat=4, nbformat_minor=5)

    def contents(self):
        "The table of contents by what people want: the book by its chapters, a number before each title"
        known = {name.partition(".")[0] for name in self.sources.values()}
        other = {caption: [name for name in names if name in known] for caption, names in NAVIGATION.items()}
        book = {title: [f"{p.number} {p.title} <{p.name}>" for p in self.pages if re.match(numbers, p.number)] for numbers, title in CHAPTERS.items()}
        parts = [*list(other.items())[:2], *book.items(), *list(other.items())[2:]]
        return "\n\n".join(fenced("{toctree}", "\n".join(names), caption=caption, maxdepth=1) for caption, names in parts if names)

    def cell(self, cell, page):
        "The markdown and code cells that one cell of the notebook becomes"
        if cell.cell_type == "markdown": yield markdown(self.prose(self.head(cell.source, page), page.path))
        if cell.cell_type != "code" or "default_exp" in cell.directives_ or cell.directives_.get("include") == "false": return
        if is_export(cell):
            for name, node in page.definitions[cell.id]: yield markdown(self.definition(name, node, cell.source, page))
            body = ast.parse(cell.source).body
            if rows := list(api.rows(ast.parse(cell.source))): yield markdown(table(rows))
            if all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body): return
            prompt = ": ".join(filter(None, ["Source", ", ".join(n.name for n in body if hasattr(n, "name"))]))
            yield code(cell, ["hide-input"], mystnb={"code_prompt_show": prompt, "code_prompt_hide": prompt})
        else: yield code(cell, [tag for key, tag in (("echo", "remove-input"), ("output", "remove-output")) if cell.directives_.get(key) == "false"])

    def head(self, source, page):
        "Under the title: the subtitle, and where the page comes from"
        notebook = page.path.relative_to(self.root).as_posix()
        origin = f"Notebook: [`{notebook}`]({BLOB}{notebook})"
        if page.definitions: origin += f" · module: [`loragrass.{page.name}`]({BLOB}loragrass/{page.name}.py)"
        return re.sub(r"\A(# .+)\n+> (.+)", lambda m: f"{m[1]}\n\n{{.subtitle}}\n{m[2]}\n\n{{.origin}}\n{origin}", source)

    def definition(self, name, node, source, page):
        "A function, class or method: heading with its name as anchor, signature, docstring, docments"
        module = f"loragrass/{page.name}.py"
        line = next((n.lineno for found, n in api.public(ast.parse((self.root / module).read_text(encoding="utf-8"))) if found == name), None)
        if not line: raise ValueError(f"{module} has no {name}, which {page.path.name} exports; run nbdev-export")
        anchor = "" if re.fullmatch("[a-z0-9]+", name) else f'<div id="{name}"></div>\n\n' # Sphinx's own ids are lower case, without dots and underscores
        heading = f"({label(page.name, name)})=\n{'####' if '.' in name else '###'} `{name}`"
        doc = f"{ast.get_docstring(node) or ''} [source]({BLOB}{module}#L{line}){{.source}}"
        described = self.links(f"{doc}\n\n{api.table(node, source)}", page.path)
        return "\n\n".join([anchor + heading, fenced("{code-block} python", api.signature(node, name)), described])

    def prose(self, text, path):
        "Markdown with links and boxes; fenced code stays as it is"
        check_tables(text, path)
        out, box, fence = [], [], False
        for line in [*text.splitlines(), ""]:
            if box and not line.startswith(">"):
                out.append(fenced(f"{{{box[0].lower()}}}", "\n".join(box[1:])))
                box = []
            ticks = line.lstrip().startswith("```")
            fence ^= ticks
            if fence or ticks or line.startswith("#"): out.append(line)
            elif claim := ledger.parse(line, path):
                said = self.links(f"{claim.text} **Verdict: {claim.verdict}", path)
                out.append(fenced(f"{{admonition}} Claim {claim.id}", said, **{"class": BOXES[claim.kind], "name": f"claim-{claim.id.lower()}"}))
            elif m := CALLOUT.match(line): box = [m[1], self.links(m[2], path)]
            elif box: box.append(self.links(line.removeprefix(">").strip(), path))
            else: out.append(self.links(line, path))
        return "\n".join(out)

    def links(self, text, path):
        "Names of the package, and links between notebooks, as links on the site"
        def symbol(m): return f"[{m[0]}](#{label(self.symbols[m[1]], m[1])})" if m[1] in self.symbols else m[0]
        text = re.sub(r"(?<!\[)`(?:lg\.|loragrass\.)?([A-Za-z_][\w.]*)(?:\(\))?`(?!\])", symbol, text)
        return re.sub(r"(?<=\]\()([^\s()]+)(?=\))", lambda m: self.target(m[1], path), text)

    def target(self, link, path):
        "Where a relative link leads on the site: a page, an anchor, or a file of the repository; Sphinx refuses what is none of them"
        url, _, anchor = link.partition("#")
        if ":" in url or anchor.partition(".")[0] in self.symbols.values() or anchor.startswith("claim-"): return link
        file = (path.parent / url).resolve() if url else path
        if file not in self.sources: return BLOB + file.relative_to(self.root).as_posix() if file.exists() else link
        if anchor in self.symbols: return f"#{label(self.symbols[anchor], anchor)}"
        return self.sources[file] + f"#{slug(anchor)}" * bool(anchor)

def check_tables(text, path):
    "A row of a table has as many cells as its head: an unescaped | in a cell, in code too, cuts the line off"
    head = 0
    for line in text.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        if head and cells and cells != head: raise ValueError(f"{path}: {cells - 1} cells in a table of {head - 1} columns; write \\| for | in a cell: {line}")
        head = cells and (head or cells)

def is_export(cell): return cell.cell_type == "code" and bool({"export", "exports", "exporti"} & cell.directives_.keys())

def label(page, name): # labels have no case: the prefix keeps a class and a function of one name apart
    return f"{page}.{'class-' * name[0].isupper()}{name}"

def slug(heading): return re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) # the anchor that MyST gives it, and code hosts too

def table(rows):
    "Rows of tables of the package as a table of the page"
    return "\n".join(["| Row | What it is |", "|---|---|", *(api.table_row((f"`{name}[\"{key}\"]`", said)) for name, key, said in rows)])

def fenced(directive, body, **options):
    return "\n".join([f"``````{directive}", *(f":{key}: {value}" for key, value in options.items()), "", body, "``````"])

def markdown(source): return dict(cell_type="markdown", metadata={}, source=source, id=hashlib.sha1(source.encode()).hexdigest()[:8])

def code(cell, tags, **metadata):
    return dict(cell_type="code", metadata={"tags": tags, **metadata}, source=cell.source, outputs=cell.get("outputs", []), execution_count=None, id=cell.id)

def fetch_mathjax(cache, target):
    "MathJax as one file of the site: from the npm registry the first time, then from the cache"
    cache.mkdir(parents=True, exist_ok=True)
    if not list(cache.glob("mathjax-*.tgz")):
        if not (npm := shutil.which("npm")): sys.exit("npm is not found; the docs need it once, to fetch MathJax (Debian: apt-get install npm)")
        fetched = subprocess.run([npm, "pack", "--silent", MATHJAX], cwd=cache, stdout=subprocess.DEVNULL)
        if fetched.returncode: sys.exit(f"npm could not fetch {MATHJAX}; it says why above")
    tarball, = cache.glob("mathjax-*.tgz")
    with tarfile.open(tarball) as tar: script = tar.extractfile("package/es5/tex-svg-full.js").read()
    if hashlib.sha256(script).hexdigest() != MATHJAX_SHA256: sys.exit(f"{tarball} does not hold the script of {MATHJAX}; delete it and build again")
    target.write_bytes(script)

def main():
    out = ROOT / "_docs"
    for folder in ("src", "static", "html"):
        shutil.rmtree(out / folder, ignore_errors=True)
        (out / folder).mkdir(parents=True)
    fetch_mathjax(out / "cache", out / "static" / "mathjax.js")
    Book().write(out / "src")
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-E", "-W", "--keep-going", "-c", ROOT / "docs", "-d", out / "doctrees"]
    sys.exit(subprocess.run([*sphinx, out / "src", out / "html"]).returncode)

if __name__ == "__main__": main()
