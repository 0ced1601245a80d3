"What the site and the README are made with: docs/*.py"
import ast, json, re, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import api, build, check, ledger, readme, reference # noqa: E402

import loragrass # noqa: E402

def notebook(path, *cells):
    "Write a notebook: markdown as text, code as (source, *outputs)"
    def code(source, *outputs): return dict(cell_type="code", source=source, outputs=outputs, execution_count=None)
    cells = [dict(cell_type="markdown", source=c) if isinstance(c, str) else code(*c) for c in cells]
    cells = [c | dict(id=f"c{i}", metadata={}) for i, c in enumerate(cells)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    return path

# the ledger

def test_claims_come_in_the_order_of_the_pages_then_by_number(tmp_path):
    first = notebook(tmp_path / "00_a.ipynb", "# A\n\nClaim P3 is discussed here, and is no entry.\n> **Claim P10.** Ten. **Verdict: true.**",
                     "> **Claim P2.** |x| is *a* norm. **Verdict: false: counterexample.**", ("'''\n> **Claim P7.** Code. **Verdict: true.**\n'''",))
    second = notebook(tmp_path / "01_b.ipynb", "> **Claim B1.** B. **Verdict: true if *n* > 3:** not below.\n"
                                               "> **Claim P4.** Late. **Verdict: not settled: two runs.**")
    claims = ledger.collect([first, second])
    assert [(c.id, c.kind) for c in claims] == [("P2", "false"), ("P4", "not settled"), ("P10", "true"), ("B1", "true")]
    page = ledger.page(claims)
    assert r"| [P2](#claim-p2) | \|x\| is *a* norm. | **false: counterexample.** | [](00_a.ipynb) |" in page
    assert "**true if *n* > 3:** not below. | [](01_b.ipynb) |" in page and "4 claims: 2 true, 1 false, 1 not settled" in page

@pytest.mark.parametrize("line", ["> **Claim P1.** Text. **Verdict: mostly.**", "> **Claim P1.** Text.", ">**Claim P1.** Text. **Verdict: true.**",
                                  "> **Claim P1** Text. **Verdict: true.**", "**Claim P1.** Text. **Verdict: true.**"])
def test_a_claim_in_another_form_is_an_error_that_shows_the_form(line):
    with pytest.raises(ValueError, match="a.ipynb.*expected one line like.*Verdict: true"): ledger.parse(line, "a.ipynb")

@pytest.mark.parametrize("cell", ["|det X|", "`a | b`", "one | more"])
def test_a_bar_in_a_cell_that_would_cut_the_line_off(cell):
    good = "| a | b |\n|---|---|\n| `x \\| y` | \\|det\\| |\n\n| another |\n|---|\n| table |"
    build.check_tables(good, "page")
    with pytest.raises(ValueError, match=r"page: \d cells in a table of 2 columns; write \\\| for \| in a cell"):
        build.check_tables(f"{good}\n\n| a | b |\n|---|---|\n| {cell} | 1 |", "page")

def test_tables_of_the_readme_and_the_changelog_are_whole():
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "bench/RESULTS.md"): build.check_tables((ROOT / name).read_text(encoding="utf-8"), name)

def test_a_claim_has_one_place(tmp_path):
    line = "> **Claim P1.** Text. **Verdict: true.**"
    with pytest.raises(ValueError, match="claim P1 is in .*00_a.* and in .*01_b"):
        ledger.collect([notebook(tmp_path / "00_a.ipynb", line), notebook(tmp_path / "01_b.ipynb", line)])

# what is read from a definition

@pytest.mark.parametrize("source, signature", [
    ("def f(x:int, /, y:str='a', *args, z:float=1., **kw)->int: ...", "f(x, /, y='a', *args, z=1.0, **kw)"),
    ("def f(x, *, z): ...", "f(x, *, z)"),
    ("class f:\n    def __init__(self, a:int=1, *, b): ...", "class f(a=1, *, b)"),
    ("class f:\n    def __init__(self, *args): ...", "class f(*args)"),
    ("class f(NamedTuple):\n    mean: int\n    ok: bool = True\n    _x: int = 0", "class f(mean, ok=True)"),
    ("class f: ...", "class f()"),
    ("@property\ndef f(self): ...", "f"),
    ("def f(self): ...", "f()"),
])
def test_signature(source, signature):
    assert api.signature(ast.parse(source).body[0], "f") == signature

def test_table_gives_each_comment_to_its_argument():
    source = "def f(\n  x:Tensor|None, # (n, k)\n  n:int, m:int, # > 0\n  *args, # more\n  **kw,\n)->Tensor: # (k,)\n  return x # not this one"
    assert api.table(ast.parse(source).body[0], source).splitlines()[2:] == [
        r"| `x` | `Tensor \| None` | (n, k) |", "| `n` | `int` |  |", "| `m` | `int` | > 0 |",
        "| `*args` |  | more |", "| `**kw` |  |  |", "| returns | `Tensor` | (k,) |"]

def test_table_of_fields_and_of_nothing_said():
    source = "class f(NamedTuple):\n    a: int # first\n    b: int = 0\ndef g(x): return x"
    cls, fn = ast.parse(source).body
    assert api.table(cls, source).splitlines()[2:] == ["| `a` | `int` | first |", "| `b` | `int` |  |"] and api.table(fn, source) == ""

# pages

MODULE = '''class Thing:
    "A thing"
    def size(self)->int: # in metres
        "How large"
    def _hidden(self): "no"
    def bare(self): pass
def thing(
    x, # like `Thing`
): "Make one"
def _helper(): pass'''

@pytest.fixture
def site(tmp_path):
    notebook(tmp_path / "nbs/index.ipynb", "# Home\n\n> Sub\n\nSee [it](00_a.ipynb#thing), [above](00_a.ipynb#Some-Heading), [law](../LICENSE), "
                                           "[gone](02_c.ipynb), `lg.thing()` and `other`.")
    notebook(tmp_path / "nbs/00_a.ipynb", ("#| default_exp a",), "# A\n\n> First",
             ("#| export\nimport os",), ("#| export\n" + MODULE,), ("#| hide\nsecret = 1",),
             "## Some heading\n\n> **Note.** One\n> two `thing`.\n\n> **Claim P1.** `thing` works. **Verdict: true.**\n\n```python\nx = `thing`\n```",
             ("#| echo: false\nthing(1)", dict(output_type="execute_result", data={"image/png": "x"}, metadata={}, execution_count=None)))
    (tmp_path / "loragrass").mkdir()
    (tmp_path / "loragrass/a.py").write_text("\n\n" + MODULE)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n- `thing`")
    (tmp_path / "LICENSE").touch()
    (tmp_path / "out").mkdir()
    build.Book(tmp_path).write(tmp_path / "out")
    def page(name): return json.loads((tmp_path / f"out/{name}.ipynb").read_text())["cells"]
    return page

def test_links_lead_to_pages_symbols_and_files(site):
    home = site("index")[0]["source"]
    assert "[it](#a.thing), [above](a.ipynb#some-heading), [law](https://" in home and "/LICENSE), [gone](02_c.ipynb)" in home # Sphinx refuses the last
    assert "[`lg.thing()`](#a.thing) and `other`" in home

def test_contents(site):
    contents = site("index")[-1]["source"]
    assert ":caption: Subspaces\n:maxdepth: 1\n\n00 A <a>\n``````" in contents and ":caption: Truth\n:maxdepth: 1\n\nledger\nchangelog\n``````" in contents
    assert "\nnames\nformats-and-models\nerrors\ngallery\n" in contents and "How to" not in contents # this book has no such pages

def test_pages_of_reference_are_made_from_the_package():
    book = build.Book()
    names, errors, formats = reference.names(book.pages, book.stub), reference.errors(book.pages), reference.formats()
    assert re.search(r"\| `cluster` \| .* \| \[\]\(04_cluster_merge.ipynb\) \|", names) and len(re.findall(r"^\| `", names, re.M)) == len(set(loragrass.__all__)) + 1 # and the head
    assert all(f"| E{i} |" in errors for i in range(1, 16)) and "| `UnrelatedWarning` | " in errors
    rows = {line.split(" | ")[0]: line for line in formats.splitlines()}
    assert "`lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q`" in rows["| Stable Diffusion 1.5"]
    assert "`diffusion_model.double_blocks.0.img_attn.qkv`" in rows["| Flux.1"] and "`base_model.model.model.layers.0.self_attn.q_proj`" in rows["| language models"]
    with pytest.raises(ValueError, match="nothing_of_the_kind: in __init__.pyi"): reference.names(book.pages, book.stub + "from .karcher import nothing_of_the_kind as nothing_of_the_kind")

def test_an_exported_cell_becomes_what_it_defines(site):
    cells = site("a")
    text = "\n".join(c["source"] for c in cells if c["cell_type"] == "markdown")
    assert text.startswith("# A\n\n{.subtitle}\nFirst\n\n{.origin}\nNotebook: [`nbs/00_a.ipynb`](https://")
    assert '<div id="Thing"></div>\n\n(a.class-Thing)=\n### `Thing`' in text and "(a.thing)=\n### `thing`" in text and "#### `Thing.size`" in text
    assert "A thing [source](" in text and "a.py#L3){.source}" in text and "a.py#L9){.source}" in text
    assert "| `x` |  | like [`Thing`](#a.class-Thing) |" in text
    assert not any(name in text for name in ("_hidden", "bare", "_helper"))
    folded, = [c for c in cells if "hide-input" in c["metadata"].get("tags", [])]
    assert folded["source"] == MODULE and folded["metadata"]["mystnb"]["code_prompt_show"] == "Source: Thing, thing, _helper"
    assert not any("secret" in c["source"] or "import os" in c["source"] for c in cells)

def test_boxes_fences_and_pictures(site):
    *_, prose, plot = site("a")
    assert "``````{note}\n\nOne\ntwo [`thing`](#a.thing).\n``````" in prose["source"]
    assert "``````{admonition} Claim P1\n:class: tip\n:name: claim-p1\n\n[`thing`](#a.thing) works. **Verdict: true.**\n``````" in prose["source"]
    assert "```python\nx = `thing`\n```" in prose["source"]
    assert plot["metadata"]["tags"] == ["remove-input"] and plot["metadata"]["mystnb"]["image"]["alt"]

def test_an_export_that_the_module_lacks_is_an_error(tmp_path):
    notebook(tmp_path / "nbs/00_a.ipynb", ("#| default_exp a",), "# A", ("#| export\ndef new(): pass",))
    (tmp_path / "loragrass").mkdir()
    (tmp_path / "loragrass/a.py").touch()
    with pytest.raises(ValueError, match="a.py has no new.*nbdev-export"): build.Book(tmp_path).write(tmp_path)

def test_every_link_of_the_book_leads_somewhere(tmp_path): # as the build of the site does, but without Sphinx
    build.Book().write(tmp_path)
    pages = {p.name: p.read_text() for p in tmp_path.glob("*.md")}
    for p in tmp_path.glob("*.ipynb"): pages[p.name] = "\n".join(c["source"] for c in json.loads(p.read_text())["cells"] if c["cell_type"] == "markdown")
    assert {"plucker.ipynb", "kernels.ipynb", "ledger.md", "changelog.md"} <= pages.keys()
    anchors = {f"{name}#{build.slug(heading)}" for name, text in pages.items() for heading in re.findall(r"^#+ (.+)", text, re.M)}
    anchors |= {f"#{label}" for text in pages.values() for label in re.findall(r"^\((\S+)\)=$|^:name: (\S+)$", text, re.M) for label in label if label}
    links = {(name, link) for name, text in pages.items() for link in re.findall(r"\]\(((?!\w+:)[^\s()]+)\)", text)}
    assert not [pair for pair in sorted(links) if pair[1] not in pages.keys() | anchors]

# the README

def test_readme(tmp_path):
    path = notebook(tmp_path / "nbs/index.ipynb",
        "# T\n\n[page](01_b.ipynb#x) [file](../LICENSE) [web](https://x.org) [here](#t)",
        ("#| hide\nimport os",),
        ("#| echo: false\n1", dict(data={"text/plain": "   a\n0  1", "text/html": "<table>"})),
        ("#| output: false\nprint(2)", dict(text=["2\n"], name="stdout")),
        ("plot()", dict(data={"image/png": "x", "text/plain": "<Figure>"})),
        ("say()", dict(name="stderr", text="bar"), dict(name="stdout", text=["hi\n", "ho\n"]), dict(data={"text/markdown": "*md*"})))
    notebook(tmp_path / "nbs/01_b.ipynb")
    (tmp_path / "LICENSE").touch()
    head, *rest = readme.readme(path).split("\n\n", 1)
    assert "edit the notebook" in head
    assert rest == [f"""# T

[page]({readme.SITE}b.html#x) [file]({readme.BLOB}LICENSE) [web](https://x.org) [here](#t)

```text
   a
0  1
```

```python
print(2)
```

```python
plot()
```

![What the notebook draws]({readme.BLOB.replace("/blob/", "/raw/")}{readme.PICTURE})

```python
say()
```

```text
hi
ho
```

*md*
"""]

def test_readme_refuses_a_broken_link(tmp_path):
    with pytest.raises(ValueError, match="links to 09_x.ipynb.*relative to nbs/"): readme.readme(notebook(tmp_path / "nbs/index.ipynb", "[x](09_x.ipynb)"))

# the check of the built site

def test_links_of_the_built_site_are_checked(tmp_path):
    (tmp_path / "index.html").write_text('<link rel="canonical" href="https://x.org/"><h1 id="top">x</h1>'
                                         '<a href="b.html#there">ok</a><a href="#top">ok</a><a href="https://x.org">ok</a>')
    (tmp_path / "b.html").write_text('<p id="there"></p><img src="data:image/png;base64,x"><a href="index.html#no">1</a><a href="c.html">2</a>'
                                     '<script src="https://x.org/a.js"></script><img src="a.png">')
    assert list(check.check_links(tmp_path)) == [
        "b.html links to index.html#no: no such anchor", "b.html links to c.html: no such file",
        "b.html loads <script> https://x.org/a.js from elsewhere", "b.html links to a.png: no such file"]
