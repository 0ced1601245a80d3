"Reading and thin SVD of SDXL-sized files, against the raw read and against the dense SVD; a folder of a thousand files"
import gzip, json, os, sys, tempfile, time, warnings
from pathlib import Path

import torch

import loragrass as lg
from common import machine, peak_mb, table

N, FILES, RANK, SAMPLE = int(os.environ.get("N", 32)), int(os.environ.get("FILES", 1000)), 16, 3
LISTS = json.loads(gzip.decompress((Path(__file__).parent.parent/"tests/data/key_lists.json.gz").read_bytes()))["lists"]

def write(path, keys, seed, rank=RANK):
    from safetensors.torch import save_file
    g = torch.Generator().manual_seed(seed)
    save_file({k: (torch.tensor(8.0) if k.endswith("alpha") else torch.randn([rank if d == "r" else d for d in s], generator=g) / 10).half() for k,
        s in keys.items()}, path)

def seconds(fn):
    start = time.process_time()
    fn()
    return time.process_time() - start

def sdxl(folder):
    "Reading against the bytes, in turn, file by file: a busy machine slows all alike. Then the SVD of some of the files against the dense one"
    keys, paths = LISTS["sdxl_kohya"], [folder/f"{i}.safetensors" for i in range(N)]
    for i, path in enumerate(paths): write(path, keys, i)
    list(lg.load_all(paths[:1])[0].values()) # warm-up
    loras, times = [], {"raw": 0.0, "header": 0.0, "read": 0.0}
    for path in paths:
        times["raw"] += seconds(path.read_bytes)
        times["header"] += seconds(lambda path=path: loras.append(lg.load_all([path])[0]))
        times["read"] += seconds(lambda: [u.up for u in loras[-1].values()])
    some, first, shapes = loras[:: max(N // 4, 1)], loras[0], {}
    thin = seconds(lambda: [u.svd() for lora in some for u in lora.values()]) * N / len(some)
    for m, u in first.items(): shapes.setdefault(u.up.shape[:1] + u.down.shape[1:], []).append(m)
    dense = {s: min(seconds(lambda m=m: torch.linalg.svd(first[m].dense().flatten(1), full_matrices=False)) for m in ms[:SAMPLE]) for s, ms in shapes.items()}
    total = N * sum(dense[s] * len(ms) for s, ms in shapes.items())
    read, ours = times["header"] + times["read"], times["header"] + times["read"] + thin
    table(f"{N} SDXL files of {len(keys)} keys, {len(first)} modules, rank {RANK}, fp16, {paths[0].stat().st_size / 1e6:.0f} MB each (CPU seconds, all files)", [
        {"what": "raw read of the bytes", "seconds": times["raw"], "ratio": "1 (the reading)"},
        {"what": "headers, roles, names, scales", "seconds": times["header"], "ratio": f"{1000 * times['header'] / N:.0f} ms a file"},
        {"what": "read all modules, header included", "seconds": read, "ratio": f"{read / times['raw']:.2f} × raw"},
        {"what": f"read + thin SVD, extrapolated from {len(some)} files", "seconds": ours, "ratio": "1 (the SVD)"},
        {"what": f"dense float32 SVD, extrapolated from the best of {SAMPLE} modules of each of {len(shapes)} shapes", "seconds": total,
            "ratio": f"{total / ours:.0f} × ours"}])

def thousand(folder):
    "A folder of many files: scan, then one module of all files at a time"
    keys = dict(list(LISTS["sd15_kohya"].items())[:192])
    whole = folder/"whole.safetensors"
    write(whole, keys, 0, 4)
    data, shelf = whole.read_bytes(), folder/"shelf"
    shelf.mkdir()
    for i in range(FILES): (shelf/f"{i:04d}.safetensors").write_bytes(data)
    (shelf/"half.safetensors").write_bytes(data[:-4]); (shelf/"login.safetensors").write_bytes(b"<!DOCTYPE html>"); (shelf/"old.ckpt").write_bytes(b"\x80\x02")
    found, seen = [], []
    raw = seconds(lambda: [p.read_bytes() for p in shelf.iterdir()])
    def scan(): found.append(lg.load_all(shelf))
    def stream(): seen.extend(sum(u.up.nbytes + u.down.nbytes for u in updates) for _, updates in found[0].stream())
    times:list = []
    headers, numbers = (peak_mb(lambda fn=fn: times.append(seconds(fn))) for fn in (scan, stream))
    table(f"a folder of {FILES} files of {len(keys)} keys, {len(data) / 1e6:.2f} MB each", [
        {"what": "raw read of the bytes", "CPU seconds": raw, "memory": f"{FILES * len(data) / 1e6:.0f} MB on disk"},
        {"what": "`load_all`: headers, aligned", "CPU seconds": times[0], "memory": f"{headers:.0f} MB more, {headers / FILES * 1000:.0f} kB a file"},
        {"what": "`stream` of all modules", "CPU seconds": times[1], "memory": f"{numbers:.0f} MB more at the peak; the largest module of all files has {max(seen) / 1e6:.0f} MB"}])
    print(f"\n```\n{found[0]!r}\n```".replace(str(folder), "…"))

def main():
    machine("safetensors")
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        thousand(Path(folder))
        sdxl(Path(folder))

if __name__ == "__main__": sys.exit(main())
