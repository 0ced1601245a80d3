"The report as a file: self-contained, safe whatever adapters are called, whole or not there, the same bytes twice; and read in a browser"
import io, re, shutil

import matplotlib
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

import loragrass as lg
from loragrass import report

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

def test_nothing_leaves_the_file_and_names_stay_text(result, scores, tmp_path):
    page = lg.html_report(result, tmp_path / "r.html", "</title><script>", scores, {"<u>": "<s>"}, ["<b>note</b>"]).read_text(encoding="utf8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert policy in page and not re.search(r"""(?:src|href|url|action|@import)[\s=('"]{1,4}(?!data:)[\w/]""", page.replace(policy, ""))
    for raw in ("<script", "</title><", "<i>one", "<b>note", "<u>", "<s>", "<b>mlp", "</style></svg>"): assert raw not in page
    for text in ("&lt;script&gt;alert(1)", "&lt;i&gt;one", "日本", r"\udcff", "x" * 300): assert text in page

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
        browser.close()
    assert events == []
