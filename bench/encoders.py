"""What the encoders make of canonical and of raw factors: accuracy for the digit on the zoo "concepts", seeds and five image-disjoint folds, and CPU seconds of training

    python bench/encoders.py [--seeds N] [--folds N]"""
import argparse, time

import numpy as np
from common import machine, table
from loragrass.encoders import ContrastiveFeatures, DenoisingFeatures, GLNet, VAEFeatures
from loragrass.features import Features
from loragrass.zoo import load_zoo
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

def score(encoder, X, y, train, test): # accuracy, CPU seconds of fit
    start = time.process_time()
    encoder.fit(X[train], y[train])
    seconds = time.process_time() - start
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(encoder.transform(X[train]), y[train])
    return model.score(encoder.transform(X[test]), y[test]), seconds

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folds", type=int, default=5, help="of the five, the first so many")
    options = parser.parse_args()
    seeds, folds = range(options.seeds), range(options.folds)
    machine("scikit-learn")
    zoo = load_zoo("concepts")
    y, fold = zoo.labels.task.to_numpy(), zoo.labels.fold.to_numpy()
    rows = []
    for kind in (VAEFeatures, ContrastiveFeatures, DenoisingFeatures, GLNet):
        found = {}
        for name, kwargs in {"canonical": {}, "raw": {"input": Features("flat")}}.items():
            if kind is GLNet and kwargs: continue
            scores = [score(kind(random_state=seed, **kwargs), zoo.loras, y, fold != k, fold == k) for seed in seeds for k in folds]
            found[name], seconds = [a for a, _ in scores], np.mean([s for _, s in scores])
        row = {"encoder": kind.__name__} | {name: f"{np.mean(a):.3f} ± {np.std(a):.3f}" for name, a in found.items()}
        gain = np.mean(found["canonical"]) - np.mean(found["raw"]) if "raw" in found else np.nan
        rows.append({"encoder": "", "canonical": "", "raw": "", "canonical − raw": gain, "CPU s a fit": float(seconds)} | row)
    table(f"Digit from codes (chance 0.1; mean ± sd over {len(folds)} folds and {len(seeds)} seeds of the nets; linear classifier)", rows)

if __name__ == "__main__": main()
