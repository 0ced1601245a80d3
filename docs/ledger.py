"The claims ledger: what the sources say, found in the notebooks' markdown as `> **Claim P1.** text **Verdict: true.**`, one line each"
import json, re
from dataclasses import dataclass
from pathlib import Path

from api import table_row

FORM = "> **Claim P1.** What is claimed. **Verdict: true.**"
CLAIM = re.compile(r"> \*\*Claim ([A-Z])(\d+)\.\*\* (.+?) \*\*Verdict: ((true|false|not settled)\b.*\*\*.*)") # what follows the bold part explains

@dataclass(frozen=True)
class Claim:
    letter: str
    number: int
    text: str
    verdict: str # "true.**", "true if …:** …": as written, from its first word on
    kind: str    # that word: "true", "false", "not settled"
    where: Path  # the notebook

    @property
    def id(self): return f"{self.letter}{self.number}"

def parse(line, where):
    "The claim on this line of Markdown, or None; a line that looks like a claim and is none is an error"
    if m := CLAIM.fullmatch(line):
        return Claim(m[1], int(m[2]), m[3], m[4], m[5], where)
    if re.match(r"(>|\*\*)[\s>*_]*Claim [A-Z]?\d", line):
        raise ValueError(f"{where}: {line!r} is not a claim; expected one line like {FORM!r}, with a verdict that starts with true, false or not settled")

def collect(notebooks):
    "All claims of these notebooks: letters in the order in which the pages bring them up, then by number"
    claims = {}
    for path in notebooks:
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
        for line in "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown").splitlines():
            if not (claim := parse(line, path)): continue
            if claim.id in claims: raise ValueError(f"claim {claim.id} is in {claims[claim.id].where} and in {path}; a claim has one verdict, in one place")
            claims[claim.id] = claim
    letters = list(dict.fromkeys(c.letter for c in claims.values()))
    return sorted(claims.values(), key=lambda c: (letters.index(c.letter), c.number))

def page(claims):
    "The ledger as Markdown"
    counts = {kind: sum(c.kind == kind for c in claims) for kind in ("true", "false", "not settled")}
    rows = [[f"[{c.id}](#claim-{c.id.lower()})", c.text, f"**{c.verdict}", f"[]({c.where.name})"] for c in claims]
    return "\n".join([
        "# Claims ledger", "",
        "What papers and other code say about the geometry of LoRA, checked one by one. A claim's number leads to the lesson that checks it:",
        "a cell that fails when the verdict is no longer what the code shows.", "",
        f"{len(claims)} claims: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()) + " (*true* includes *true if …*).", "",
        "| Claim | What is said | Verdict | Page |", "|---|---|---|---|",
        *map(table_row, rows), ""])
