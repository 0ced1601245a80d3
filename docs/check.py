"""Read the built site as a visitor would: `python docs/check.py [_docs/html]`.

Always: every link, anchor and asset exists, and no page loads anything from elsewhere. Where a Chromium is on the PATH also: no error in the console,
no request off this machine, formulas rendered, search finds, nothing wider than a phone, text readable in light and dark (check.js).
"""
import contextlib, functools, http.server, os, shutil, sys, threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

class Html(HTMLParser):
    "The ids of a page and what it refers to"
    def __init__(self, path):
        super().__init__()
        self.ids, self.refs = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "id" in attrs: self.ids.add(attrs["id"])
        url = attrs.get("href") or attrs.get("src")
        if url and attrs.get("rel") != "canonical": self.refs.append((tag, url))

def check_links(site):
    "Problems with links, anchors and assets, from the HTML alone"
    pages = {path: Html(path) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for tag, ref in page.refs:
            url = urlsplit(ref)
            if url.scheme in ("http", "https") or url.netloc:
                if tag != "a": yield f"{path.name} loads <{tag}> {ref} from elsewhere"
            elif not url.scheme:
                target = (path.parent / unquote(url.path)).resolve() if url.path else path
                if not target.exists(): yield f"{path.name} links to {ref}: no such file"
                elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids:
                    yield f"{path.name} links to {ref}: no such anchor"

@contextlib.contextmanager
def serve(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_port}/"
    finally: server.shutdown()

def check_browser(site, chromium):
    "Problems that only a browser sees"
    from playwright.sync_api import sync_playwright
    problems = []
    with serve(site) as base, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--disable-gpu", "--disable-quic"])
        tab = browser.new_page()
        def complain(text): problems.append(f"{urlsplit(tab.url).path.lstrip('/')}: {text}")
        tab.on("console", lambda m: m.type == "error" and complain(f"console: {m.text}"))
        tab.on("pageerror", lambda e: complain(f"script error: {e}"))
        tab.on("request", lambda r: r.url.startswith((base, "data:")) or complain(f"request to {r.url}"))
        for path in sorted(site.rglob("*.html")):
            tab.set_viewport_size({"width": 1280, "height": 900})
            tab.emulate_media(color_scheme="light")
            tab.goto(base + path.relative_to(site).as_posix())
            tab.add_script_tag(path=Path(__file__).with_suffix(".js"))
            for formula in tab.evaluate("formulas()"): complain(f"formula not rendered: {formula}")
            for scheme in ("light", "dark"):
                tab.emulate_media(color_scheme=scheme)
                for text in tab.evaluate("pale(4.5)"): complain(f"hard to read in {scheme} mode: {text}")
            tab.set_viewport_size({"width": 390, "height": 844})
            for text in tab.evaluate("tooWide()"): complain(f"too wide for a phone of 390 px: {text}")
        tab.goto(base + "search.html?q=ledger")
        try: tab.wait_for_selector("#search-results li a[href*='ledger']", timeout=10_000)
        except Exception as e: complain(f"the search for 'ledger' does not find the ledger: {e}")
        browser.close()
    return problems

def main(site):
    site = Path(site).resolve()
    if not (site / "index.html").exists(): sys.exit(f"{site} has no index.html; build it first: make docs")
    problems = list(check_links(site))
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
    if chromium: problems += check_browser(site, chromium)
    elif os.environ.get("CI"): problems.append("no Chromium on the PATH: on CI the site must be seen in one")
    else: print("no Chromium on the PATH: links, anchors and assets are checked; console, requests, formulas, search, widths and colours are NOT")
    print("\n".join(problems) or f"{len(list(site.rglob('*.html')))} pages of {site}: nothing to complain about")
    sys.exit(bool(problems))

if __name__ == "__main__": main(*sys.argv[1:] or ["_docs/html"])
