"The report as a file: self-contained, safe whatever adapters are called, whole or not there, the same bytes twice; and read in a browser"
import base64, csv, hashlib, io, re, shutil, unicodedata
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

import loragrass as lg
from loragrass import report
from loragrass.cluster_merge import ClusterMerge
from loragrass.comparing import Similarity
from loragrass.levels import Levels
from loragrass.lora_io import LoRAFormatError, printable
from loragrass.merging import mean_lora

NAMES = ["<script>alert(1)</script>", "a & b \"c\" 'd'", r"$\frac{1$", "日本\n語", "bytes \udcff", "a, b", "x" * 300, "</style></svg>"]

def adapters(names, n_groups=2, modules=("mlp.up", "<b>mlp</b>.down")):
    "Adapters that are alike within each of the groups, in turn"
    g = torch.Generator().manual_seed(0)
    ups = {m: torch.randn(n_groups, 24, 2, generator=g) for m in modules}
    made = []
    for i, name in enumerate(names):
        up = {m: ups[m][i % n_groups] + 0.1 * torch.randn(24, 2, generator=g) for m in modules}
        made.append(lg.LoRA({m: lg.LoRAUpdate(up[m], torch.randn(2, 16, generator=g), 1.0, (24, 16)) for m in modules}, name))
    return made

@pytest.fixture(scope="module")
def result(): return lg.cluster_merge(adapters(NAMES), 2)

@pytest.fixture(scope="module")
def scores():
    return pd.DataFrame({"task": ["<i>one</i>", "two"], "size": 4, "base": 0.1, "members": 0.9, "lowest": 0.8, "highest": 0.95, "mean": [0.9, float("nan")], "all_in_one": 0.3},
                        index=pd.Index([0, 1], name="group"))

class Page(HTMLParser):
    "What a browser makes of a page, without running anything"
    VOID = {"meta", "link", "input", "br"}
    def __init__(self, path):
        super().__init__()
        self.source, self.tags, self.open, self.tables, self.titles, self.script = path.read_text(encoding="utf-8"), [], [], {}, {}, ""
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "table": self.rows = self.tables.setdefault(attrs.get("id"), [])
        if tag == "tr": self.rows.append([])
        if tag in ("td", "th"): self.rows[-1].append("")
        if tag == "a": self.link = attrs.get("xlink:href")
        if tag not in self.VOID: self.open.append(tag)

    def handle_startendtag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_endtag(self, tag): assert self.open.pop() == tag

    def handle_data(self, text):
        if "td" in self.open or "th" in self.open: self.rows[-1][-1] += text
        if self.open[-1:] == ["script"]: self.script += text
        if self.open[-1:] == ["title"] and "svg" in self.open: self.titles.setdefault(self.link, set()).add(text)

    def all(self, tag): return [attrs for t, attrs in self.tags if t == tag]

    def table(self, name):
        head, *rows = self.tables[name]
        return pd.DataFrame(rows, columns=head)

    def csv(self, name):
        link, = [a["href"] for a in self.all("a") if a.get("download") == f"{name}.csv"]
        start, data = link.split(",")
        assert start == "data:text/csv;charset=utf-8;base64"
        return list(csv.reader(io.StringIO(base64.b64decode(data).decode("utf-8-sig"), newline="")))

def made(names, n_groups, modules=("m",)):
    "A result that costs little, whatever its size: groups in turn, similarities and odds of two levels"
    labels = np.arange(len(names)) % n_groups
    same = np.equal.outer(labels, labels)
    K, odds = torch.tensor(np.where(same, 0.8, 0.1)).fill_diagonal_(1), np.where(same, 5.0, -5.0)
    np.fill_diagonal(odds, np.inf)
    loras = adapters(names, n_groups, modules)
    merged = [mean_lora([loras[i] for i in np.flatnonzero(labels == g)], method="svd") for g in range(n_groups)]
    evidence = pd.Series(-np.abs(np.arange(1, len(names) + 1) - n_groups).astype(float), range(1, len(names) + 1))
    sim = Similarity(K, dict.fromkeys(modules, K), [lora.name for lora in loras], "left", "projection", True, {}, 0.05, {}, (K,) * 4)
    asked = {"n_clusters": "auto", "method": "svd", "clustering": "spectral", "per_layer": False, "stand_in": "mean"}
    return ClusterMerge(labels, pd.DataFrame([labels] * len(modules), list(modules)).rename_axis("module"), [m.lora for m in merged], list(range(n_groups)),
                        merged, sim, Levels(labels, confidence=0.6, evidence=evidence, odds=odds), None, asked, loras)

def test_nothing_leaves_the_file_and_names_stay_text(result, scores, tmp_path):
    page = Page(lg.html_report(result, tmp_path / "r.html", "</title><script>", scores, {"<u>": "<s>"}, ["<b>note</b>"]))
    policy = page.all("meta")[2]["content"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-") and policy in page.source
    loaded = [a[key] for _, a in page.tags for key in ("src", "href", "xlink:href", "action", "srcset", "data") if key in a]
    assert loaded and all(link.startswith(("#", "data:")) for link in loaded) and not re.search(r"@import|url\((?!#)", page.source)
    assert not [a for _, a in page.tags if any(key.startswith("on") for key in a)] and {t for t, _ in page.tags} <= {
        "html", "head", "meta", "link", "title", "style", "body", "main", "h1", "h2", "h3", "p", "b", "nav", "a", "label", "input", "output", "section", "table", "thead", "tbody", "tr", "th", "td",
        "bdi", "span", "div", "figure", "figcaption", "details", "summary", "ul", "li", "pre", "code", "script",
        "svg", "defs", "g", "path", "use", "text", "tspan", "image", "clippath", "rect", "polygon", "lineargradient", "stop"}
    for raw in ("</title><", "<i>one", "<b>note", "<u>", "<s>", "<b>mlp", "</style></svg>"): assert raw not in page.source
    for text in ("&lt;script&gt;alert(1)", "&lt;i&gt;one", "日本", r"\udcff", "x" * 300): assert text in page.source

def test_the_only_script_is_the_one_that_the_policy_names(result, tmp_path):
    page = Page(lg.html_report(result, tmp_path / "r.html"))
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    sources = re.search("script-src ([^;]*)", page.all("meta")[2]["content"])[1]
    assert sources == f"'sha256-{digest}'" and page.all("script") == [{}] and len(page.script) < 4000

HOSTILE = ["=HYPERLINK(1)", "+1", "-2+3", "@sum", "a\u202egnp.exe", "\u2066x\u2069", "\x1b[31mred", "nul\x00", "tab\tline\r\nend", "\"><svg onload=alert(1)>", "' onclick='x",
           "</title><script>alert(1)</script>", "]]>", "<!--", "--> &lt;", "{{ 7 * 7 }}", r"$\frac{", "x" * 200, "\u0645\u0631\u062d\u0628\u0627", "\u2028", "\x85", "javascript:alert(1)", "\udcff", "é" * 200]

def test_hostile_names_do_no_harm_anywhere(tmp_path):
    result = made(HOSTILE, 2, modules=("<b>", "\u202e\"x"))
    for lora in result.loras: lora.issues.append(lg.lora_io.Issue("W1", "<k>", f"<i>{lora.name}\u202e\x07"))
    skipped = [LoRAFormatError("<em>bad</em>", "\u202e<p>.pt", code="E2"), *HOSTILE]
    path = lg.html_report(result, tmp_path / "r.html", "\u202e<h1>", parameters=dict.fromkeys(HOSTILE, "<\u202e>"), notes=HOSTILE, skipped=skipped, outputs=["=a.safetensors", "\u202e'<b>'"])
    page, shown = Page(path), [printable(name) for name in HOSTILE]
    assert {unicodedata.category(c) for c in page.source} & {"Cc", "Cf", "Cs", "Zl", "Zp"} == {"Cc"} and set(re.findall(r"[\x00-\x1f\x7f-\x9f]", page.source)) == {"\n"}
    assert page.all("script") == [{}] and not [a for _, a in page.tags if any(key.startswith("on") for key in a)] and "49" not in page.table("adapters").adapter[15]
    assert page.table("adapters").adapter.tolist() == shown and page.table("skipped").why.tolist() == ["<em>bad</em>", *shown]
    for i, name in enumerate(shown):
        assert page.titles[f"#a{i}"] == {name if len(name) <= 80 else f"{name[:40]} … {name[-40:]}"}
    cells = [row[1] for row in page.csv("adapters")[1:]]
    assert cells == ["'" + name if name[0] in "=+-@" else name for name in shown] and page.csv("written")[1][1] == "'=a.safetensors"

@pytest.mark.parametrize("name, key", [("groups", "group"), ("adapters", "adapter"), ("pairs", "group"), ("modules", "module"), ("evidence", "groups")])
def test_a_table_and_its_csv_say_the_same(result, name, key, tmp_path):
    page = Page(lg.html_report(result, tmp_path / "r.html"))
    shown, (head, *rows) = page.table(name), page.csv(name)
    assert head == list(shown) and len(rows) == len(shown) > 0
    assert [row[head.index(key)] for row in rows] == shown[key].tolist()

def test_a_row_an_adapter(tmp_path):
    a, b, c, d = adapters("abcd", 2)
    turned = lg.LoRA({m: lg.LoRAUpdate(-u.up, u.down, u.scale, u.weight_shape) for m, u in a.items()}, "turned")
    part = lg.LoRA(dict(list(d.items())[:1]), "part")
    odd = lg.lora_io.Issue("W3", "k", "alpha is missing")
    b.issues += [odd, odd]
    result = lg.cluster_merge([a, b, c, lg.LoRA(dict(a), "again"), turned, part], 3)
    table = Page(lg.html_report(result, tmp_path / "r.html")).table("adapters").set_index("adapter")
    assert table.index.tolist() == ["a", "b", "c", "again", "turned", "part"] and table["rank"].tolist() == ["2"] * 6
    norms = [float(sum(u.norm() ** 2 for u in lora.values()) ** 0.5) for lora in (a, b, c)]
    assert table.norm[:3].astype(float).tolist() == pytest.approx(norms, abs=0.005)
    K, medoid = result.similarity.joint, result.medoids[result.labels[2]]
    assert float(table["to medoid"]["c"]) == pytest.approx(float(K[2, medoid]), abs=0.005)
    assert "nearly the same as again" in table.remarks["a"] and "opposite to a" in table.remarks["turned"] and table.remarks["part"].endswith("lacks 1 of 2 modules")
    assert table.remarks["b"].count("alpha is missing [W3]") == 1 and sum("medoid" in text for text in table.remarks) == 3

def test_a_row_a_module(result, tmp_path):
    page = Page(lg.html_report(result, tmp_path / "r.html"))
    table, same = page.table("modules"), np.equal.outer(result.labels, result.labels)
    for i, module in enumerate(result.layer_labels.index):
        K, off = result.similarity.modules[module].numpy(), ~np.eye(len(same), dtype=bool)
        assert float(table.inside[i]) == pytest.approx(K[same & off].mean(), abs=0.005) and float(table.outside[i]) == pytest.approx(K[~same].mean(), abs=0.005)
        assert any(title.startswith(f"{printable(module)}: inside {table.inside[i]}, ") for title in page.titles[f"#m{i}"])

def test_a_thousand_adapters_stay_small_and_can_be_found_without_scripts(tmp_path):
    names = [f"{i:04d} " + ("日" if i % 2 else "x") * 195 for i in range(1000)]
    path = lg.html_report(made(names, 12), tmp_path / "r.html")
    assert path.stat().st_size < 5e6
    page = Page(path)
    assert page.table("adapters").adapter.tolist() == names and len(page.csv("adapters")) == 1001
    assert {name for name in page.titles} >= {f"#a{i}" for i in range(1000)}
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert {f"a{i}" for i in range(1000)} <= set(ids) and len(ids) == len(set(ids))
    assert all("hidden" in a for t, a in page.tags if a.get("id") == "find") and "hidden" in next(a for a in page.all("p") if a.get("id") == "find")

def test_twelve_groups_keep_colours_and_marks_apart(tmp_path):
    page = Page(lg.html_report(made([f"a{i}" for i in range(36)], 12), tmp_path / "r.html"))
    marks = [(a["points"], a["fill"]) for a in page.all("polygon")]
    assert len(set(marks)) == 12 and marks[:12] == marks[12:24] and len(set(marks[:12])) == 12
    drawn = re.search('<svg role="img" aria-label="Map.*?</svg>', page.source, re.S)[0]
    shapes = dict(re.findall(r'<path id="(\w+)" d="([^"]*)"', drawn))
    def look(i):
        dot = re.search(rf'xlink:href="#a{i}" tabindex="-1">.*?</a>', drawn, re.S)[0]
        use = re.search(r'<use xlink:href="#(\w+)"', dot)
        corners = np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", shapes[use[1]] if use else re.search(' d="([^"]*)"', dot)[1]), float)
        return tuple((corners - corners[0]).round().ravel()), re.search("fill: (#\\w+)", dot)[1]
    assert len({look(i) for i in range(12)}) == 12 and all(look(i) == look(i + 12) for i in range(12))

def test_files_and_how_to_load_them(result, tmp_path):
    saved = [lg.save(mean, tmp_path / f"it's mean_{g}.safetensors", "kohya") for g, mean in enumerate(adapters("ab", modules=("lora_unet_a_to_q",)))]
    skipped = [LoRAFormatError("an HTML page", "login.safetensors", code="E3"), "notes.txt"]
    page = Page(lg.html_report(result, tmp_path / "r.html", outputs=saved, skipped=skipped))
    assert page.table("written").file.tolist() == [str(s.path) for s in saved] and set(page.table("written").format) == {"kohya"}
    assert page.table("skipped").to_numpy().tolist() == [["login.safetensors", "an HTML page", "E3"], ["", "notes.txt", ""]]
    for client in ("lg.load(", "pipeline.load_lora_weights(", "models/loras"): assert client in page.source
    page = Page(lg.html_report(result, tmp_path / "r.html", outputs=["m/mean_0", "m/mean_1"]))
    assert set(page.table("written").format) == {"peft"} and "PeftModel.from_pretrained(base_model, &#39;m/mean_0&#39;)" in page.source
    assert "lg.save(result.means[0]" in lg.html_report(result, tmp_path / "r.html").read_text()
    with pytest.raises(ValueError, match="1 outputs for 2 groups"): lg.html_report(result, tmp_path / "r.html", outputs=["m"])
    with pytest.raises(ValueError, match="expected what `save` returned, or paths"): lg.html_report(result, tmp_path / "r.html", outputs=torch.ones(2))

def test_the_day(result, tmp_path, monkeypatch):
    def day(**options): return dict(Page(lg.html_report(result, tmp_path / "r.html", **options)).tables[None])["date"]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert day() == "1970-01-02" and day(date="today, 9:30") == "today, 9:30"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(ValueError, match="SOURCE_DATE_EPOCH='yesterday': expected seconds"): day()
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", day())

@pytest.mark.parametrize("n_groups", [1, 3, 12])
def test_the_cut_of_the_tree(n_groups):
    result = made([f"a{i}" for i in range(12)], n_groups)
    ax = lg.plot_dendrogram(result, ax=Figure().add_subplot())
    cut, joins = ax.lines[0].get_xdata()[0], [x for x in ax.collections[0].get_segments()]
    assert sum(x[1][0] > cut for x in joins) == 12 - n_groups and len(joins) == 11 and len(ax.collections) == 1 + n_groups
    low, high = sorted(ax.get_xlim())
    assert low < cut < high

def test_a_tree_like_a_chain_needs_no_stack():
    n = 1500
    result = made([f"a{i}" for i in range(n)], 1)
    result.clusters.odds[:] = -np.maximum.outer(np.arange(n), np.arange(n))
    assert len(lg.plot_dendrogram(result, ax=Figure().add_subplot()).collections[0].get_segments()) == n - 1

def test_opposites_and_zeros_join_last():
    result = made(["a0", "b0", "a1", "b1", "zero"], 2)
    result.clusters.odds[4] = result.clusters.odds[:, 4] = -np.inf
    joins = lg.plot_dendrogram(result, ax=Figure().add_subplot()).collections[0].get_segments()
    assert [x[1][0] for x in joins] == pytest.approx([5, 5, -5, -5])

def test_spectra():
    result = made(["a", "b"], 1)
    line, = lg.plot_spectra(result, ax=Figure().add_subplot()).lines
    S = torch.stack([torch.linalg.svdvals(u.dense().double()) for u in result.means[0].values()]).square().sum(0).sqrt()
    assert line.get_ydata() == pytest.approx((S[:2] / S[0]).numpy(), rel=1e-4)

def test_same_bytes_and_no_trace(result, scores, tmp_path):
    import matplotlib.pyplot as plt
    before = dict(matplotlib.rcParams)
    first, second = (lg.html_report(result, tmp_path / f"{i}.html", scores=scores).read_bytes() for i in "ab")
    assert first == second and plt.get_fignums() == [] and dict(matplotlib.rcParams) == before

def test_an_old_report_stays_when_the_new_one_fails(result, tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("old")
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError): lg.html_report(result, path)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["r.html"]

@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_few_adapters(n, tmp_path):
    page = lg.html_report(lg.cluster_merge(adapters([f"a{i}" for i in range(n)], n_groups=1), 1), tmp_path / "r.html").read_text()
    assert f"{n} adapter{'s' if n > 1 else ''} in 1 group," in page and "nan" not in page
    assert ("Before you rely on it" in page) == (n > 1)

def test_a_heavy_diagonal_is_a_caution_for_lloyds_steps_only():
    plain, lloyd = (lg.cluster_merge(adapters("abcdef", 3), 3, clustering=c) for c in ("spectral", "grassmann_kmeans"))
    assert plain.health.verdict == "diagonal-dominated" and plain.cautions() == []
    assert "diagonal-dominated" in lloyd.cautions()[0]

def test_many_groups_differ_in_colour_or_marker():
    assert len({tuple(report._style(g).values()) for g in range(56)}) == 56

@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("plot", [lg.plot_gram, lg.plot_map])
def test_plots_draw_where_they_are_told(plot, result):
    for what in (result, result.similarity, result.similarity.joint, result.similarity.joint.numpy()):
        assert plot(what, ax=(ax := Figure().add_subplot())) is ax
        ax.figure.savefig(io.BytesIO()) # a name with $ would fail here, as mathematics
    assert plot(result, labels=list("abababab"), ax=ax) is ax
    with pytest.raises(ValueError, match="3 labels for 8 adapters"): plot(result, labels=[0, 1, 2], ax=ax)
    with pytest.raises(ValueError, match="expected \\(N, N\\)"): plot(torch.ones(2, 3), ax=ax)

def test_order_of_the_heat_map(result):
    ax = lg.plot_gram(result, ax=Figure().add_subplot())
    K, order = result.similarity.joint.numpy(), [0, 2, 4, 6, 1, 3, 5, 7]
    assert (ax.images[0].get_array() == K[order][:, order]).all() and [line.get_xdata()[0] for line in ax.lines[1:]] == [3.5]

def test_plot_angles_refuses_what_cannot_be_compared():
    a, b = adapters(["a"], modules=("x",))[0], adapters(["b"], modules=("y",))[0]
    with pytest.raises(ValueError, match="share no module"): lg.plot_angles(a, b)
    with pytest.raises(ValueError, match="expected 'left'"): lg.plot_angles(a, a, side="both")
    wide = lg.LoRA({"x": lg.LoRAUpdate(torch.randn(30, 2), torch.randn(2, 16), 1.0, (30, 16))})
    with pytest.raises(ValueError, match="24 and 30"): lg.plot_angles(a, wide)

def test_a_zero_update_has_no_angles():
    a = adapters(["a"], modules=("x",))[0]
    zero = lg.LoRA({"x": lg.LoRAUpdate(torch.zeros(24, 2), torch.randn(2, 16), 1.0, (24, 16))})
    assert len(lg.plot_angles(a, zero, ax=Figure().add_subplot()).lines) == 1 # the line at π/2

def test_silhouettes_need_a_curve(result):
    with pytest.raises(ValueError, match="n_clusters='auto'"): lg.plot_silhouettes(result)

def test_scores_are_asked_for_each_task_of_a_group(result):
    loras = adapters(NAMES)
    table = lg.score_groups(result, loras, lambda lora, task: 0.0 if lora is None else float(lora.name in NAMES[:2]), ["p", "q"] * 3 + ["r", "s"])
    assert table.task.tolist() == ["p", "r", "q", "s"] and table["size"].tolist() == [3, 1, 3, 1] and table.members.round(3).tolist() == [0.333, 0, 0.333, 0]
    with pytest.raises(ValueError, match="7 adapters and 8 tasks"): lg.score_groups(result, loras[:7], lambda *_: 0.0, "pqpqpqpq")

def test_in_a_browser(result, scores, tmp_path):
    sync_api, chromium = pytest.importorskip("playwright.sync_api"), shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium: pytest.skip("no chromium here")
    path, events = lg.html_report(result, tmp_path / "r.html", scores=scores), []
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-quic"])
        for width, scheme in [(1200, "light"), (390, "light"), (390, "dark")]:
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            page.on("console", lambda m: events.append(m.text)); page.on("pageerror", lambda e: events.append(str(e))); page.on("dialog", lambda d: events.append(d.message))
            page.on("request", lambda r: events.append(r.url) if r.url != path.as_uri() and not r.url.startswith("data:") else None)
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            ink, paper = page.evaluate("['color', 'background-color'].map(p => getComputedStyle(document.body).getPropertyValue(p).match(/\\d+/g).map(Number).reduce((a, b) => a + b))")
            assert (ink < 200 and paper > 600) if scheme == "light" else (ink > 600 and paper < 200)
            axis = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill.match(/\\d+/g).map(Number).reduce((a, b) => a + b)")
            assert axis == ink # the figures follow the page
            page.fill("#find input", "日本")
            assert page.evaluate("[...document.querySelectorAll('#adapters tbody tr')].map(row => row.hidden)") == ["日本" not in name for name in NAMES]
            assert page.text_content("#find output") == "1 of 8" and page.evaluate("document.querySelectorAll('svg a.hit').length") == 3 # map, heat map, tree
            page.fill("#find input", "")
            if width > 640:
                page.click("#adapters th:nth-child(4) button") # norm
                norms = page.evaluate("[...document.querySelectorAll('#adapters tbody tr')].map(row => Number(row.cells[3].textContent))")
                assert norms == sorted(norms)
        browser.close()
    assert events == []
