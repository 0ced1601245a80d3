"What every benchmark here shares: interleaved medians, ratios, peak memory, and the line that says on what they were measured"
import ctypes, gc, importlib, importlib.metadata as md, platform, statistics, sys, threading, time, types

import torch
from threadpoolctl import threadpool_limits

def medians(
    fns:dict, # name → callable without arguments; the first is ours
    repeats:int=7,
)->dict: # name → median CPU seconds of this process
    "Run the competitors in turn, so that a busy machine slows all of them alike; the first round is a warm-up"
    times = {name: [] for name in fns}
    for i in range(repeats + 1):
        for name, fn in fns.items():
            start = time.process_time(); fn()
            if i: times[name].append(time.process_time() - start)
    return {name: statistics.median(ts) for name, ts in times.items()}

def peak_mb(fn)->float: # MB over the start
    "Peak resident memory while `fn` runs, sampled every 2 ms"
    def rss():
        with open("/proc/self/statm") as f: return int(f.read().split()[1]) * 4096 / 1e6
    gc.collect(); ctypes.CDLL(None).malloc_trim(0) # what earlier work has freed would hide what this takes
    start, peak, done = rss(), [0.0], threading.Event()
    def watch():
        while not done.wait(0.002): peak[0] = max(peak[0], rss())
    t = threading.Thread(target=watch); t.start()
    try: fn()
    finally: done.set(); t.join()
    return max(peak[0], rss()) - start

def table(title:str, rows:list): # rows: dicts with the same keys
    "Print a Markdown table"
    keys = list(rows[0])
    print(f"\n### {title}\n\n| " + " | ".join(keys) + " |\n|" + "---|" * len(keys))
    for row in rows: print("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")

def machine(*packages):
    "Print what the figures were measured on"
    torch.set_num_threads(1); threadpool_limits(1)
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), platform.machine())
    versions = ", ".join(f"{p} {md.version(p)}" for p in ("torch", "numpy", "scipy", *packages) if _installed(p))
    print(f"{cpu}, one thread; Python {platform.python_version()}, {versions}")

def gemm_peak(dtype, sizes=(1024, 2048), repeats=3)->float: # GFLOP/s
    "What a plain matrix product reaches here and now, the best of several"
    def rate(n):
        A = torch.randn(n, n, dtype=dtype)
        start = time.process_time(); A @ A
        return 2e-9 * n ** 3 / (time.process_time() - start)
    return max(rate(n) for n in sizes for _ in range(repeats))

def peer(module:str):
    "A peer's module, or None after a line that says why it does not come"
    stub = types.SimpleNamespace(get_distribution=lambda name: types.SimpleNamespace(version=md.version(name)), DistributionNotFound=md.PackageNotFoundError)
    sys.modules.setdefault("pkg_resources", stub) # UQpy 4.2 asks it for its own version; new setuptools have none
    try: return importlib.import_module(module)
    except Exception as error: print(f"\n{module} is left out, it does not import: {str(error).split(' (')[0]}")

def _installed(package):
    try: return bool(md.version(package))
    except md.PackageNotFoundError: return False
