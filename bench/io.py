"Reading and thin SVD of SDXL-sized files, against the raw read and against the dense SVD"
import gzip, json, os, sys, tempfile, time, warnings
from pathlib import Path

import torch

import loragrass as lg
from common import machine, table

N, RANK, SAMPLE = int(os.environ.get("N", 32)), 16, 3

def write(path, keys, seed):
    from safetensors.torch import save_file
    g = torch.Generator().manual_seed(seed)
    save_file({k: (torch.tensor(8.0) if k.endswith("alpha") else torch.randn([RANK if d == "r" else d for d in s], generator=g) / 10).half() for k,
        s in keys.items()}, path)

def seconds(fn):
    start = time.process_time()
    fn()
    return time.process_time() - start

def main():
    machine("safetensors")
    warnings.simplefilter("ignore")
    keys = json.loads(gzip.decompress((Path(__file__).parent.parent/"tests/data/key_lists.json.gz").read_bytes()))["lists"]["sdxl_kohya"]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder)/f"{i}.safetensors" for i in range(N)]
        for i, path in enumerate(paths): write(path, keys, i)
        list(lg.load_all(paths[:1])[0].values()) # warm-up
        loras, times = [], {"raw": 0.0, "header": 0.0, "read": 0.0}
        for path in paths: # in turn, file by file: a busy machine slows all alike
            times["raw"] += seconds(path.read_bytes)
            def header(path=path): loras.append(lg.load_all([path])[0])
            times["header"] += seconds(header)
            times["read"] += seconds(lambda: [u.up for u in loras[-1].values()])
        thin = seconds(lambda: [u.svd() for lora in loras for u in lora.values()])
        shapes, first = {}, loras[0]
        for m, u in first.items(): shapes.setdefault(u.up.shape[:1] + u.down.shape[1:], []).append(m)
        dense = {s: min(seconds(lambda m=m: torch.linalg.svd(first[m].dense().flatten(1), full_matrices=False)) for m in ms[:SAMPLE]) for s,
            ms in shapes.items()}
        total = N * sum(dense[s] * len(ms) for s, ms in shapes.items())
    read, ours = times["header"] + times["read"], times["header"] + times["read"] + thin
    table(f"{N} SDXL files of {len(keys)} keys, {len(first)} modules, rank {RANK}, fp16 (CPU seconds, all files)", [
        {"what": "raw read of the bytes", "seconds": times["raw"], "ratio": "1 (the reading)"},
        {"what": "headers, roles, names, scales", "seconds": times["header"], "ratio": f"{1000 * times['header'] / N:.0f} ms a file"},
        {"what": "read all modules, header included", "seconds": read, "ratio": f"{read / times['raw']:.2f} × raw"},
        {"what": "read + thin SVD", "seconds": ours, "ratio": "1 (the SVD)"},
        {"what": f"dense float32 SVD, extrapolated from the best of {SAMPLE} modules of each of {len(shapes)} shapes", "seconds": total,
            "ratio": f"{total / ours:.0f} × ours"}])

if __name__ == "__main__": sys.exit(main())
