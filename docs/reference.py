"Pages of reference that are made from the package, so that they cannot drift: its names, its errors, its formats, its pictures"
import ast, re

from api import table_row

def _table(head, rows): return "\n".join([table_row(head), table_row(["---"] * len(head)), *map(table_row, rows)])

def _listed(stub):
    "name → module of what `lg.` has, from the list that people and type checkers read"
    return {alias.asname: n.module for n in ast.parse(stub).body if isinstance(n, ast.ImportFrom) for alias in n.names}

def names(pages, stub):
    "All public names of `__init__.pyi`, one line each"
    listed, rows = _listed(stub), {}
    for page in pages:
        for defined in page.definitions.values():
            for name, node in defined:
                if listed.get(name) == page.name: rows[name] = [f"`{name}`", (ast.get_docstring(node) or "").partition("\n")[0], f"[]({page.path.name})"]
    missing = listed.keys() - rows.keys()
    if missing: raise ValueError(f"{', '.join(sorted(missing))}: in __init__.pyi, and no page defines it")
    return "# All public names\n\nWhat `import loragrass as lg` gives. Functions and classes that only pages use among each other are on their pages.\n\n" \
        + _table(["`lg.`", "What it is", "Page"], [rows[name] for name in sorted(rows, key=str.lower)]) + "\n"

def errors(pages):
    "Codes with what to do, as the page on reading has them, and the classes of warnings"
    text = "\n".join(c.source for page in pages for c in page.cells if c.cell_type == "markdown" and "| E10 |" in c.source)
    codes = re.sub(r"\n{3,}", "\n\n", "\n".join(line if line.startswith("|") else "" for line in text.splitlines())).strip()
    warned = [[f"`{name}`", ast.get_docstring(node) or "", f"[]({page.path.name})"] for page in pages for defined in page.definitions.values()
              for name, node in defined if isinstance(node, ast.ClassDef) and name.endswith("Warning")]
    return f"""# Errors and warnings

## Of files

A file that cannot be read is a `LoRAFormatError` with a code at its end, the file, the key, what was expected and what to do. W1 to W7 are remarks on a file that was read; `inspect` shows them. In a folder, the other files go on.

{codes}

## Of results

{_table(["Warning", "What it says", "Page"], warned)}
"""

MODELS = { # model → architecture, and modules that its adapters have
    "Stable Diffusion 1.5": ("sd15", ["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"]),
    "SDXL": ("sdxl", ["unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj"]),
    "Stable Diffusion 3": ("sd3", ["transformer.transformer_blocks.0.attn.to_q", "transformer.transformer_blocks.0.attn.to_k", "transformer.transformer_blocks.0.attn.to_v"]),
    "Flux.1": ("flux1", ["transformer.transformer_blocks.0.attn.to_q", "transformer.transformer_blocks.0.attn.to_k", "transformer.transformer_blocks.0.attn.to_v"]),
    "Flux.2": ("flux2", ["transformer.transformer_blocks.0.attn.to_q", "transformer.transformer_blocks.0.attn.to_k", "transformer.transformer_blocks.0.attn.to_v"]),
    "HunyuanVideo": ("hunyuan_video", ["transformer.transformer_blocks.0.attn.to_q", "transformer.transformer_blocks.0.attn.to_k", "transformer.transformer_blocks.0.attn.to_v"]),
    "Wan": ("unknown", ["diffusion_model.blocks.0.self_attn.q"]),
    "Lumina 2, Z-Image": ("unknown", ["diffusion_model.layers.0.attention.qkv"]),
    "language models": ("llm", ["model.layers.0.self_attn.q_proj"]),
}

def _spelled(format, arch, modules):
    "What a format calls these modules, or nothing where it has no names for them"
    from loragrass.module_names import bfl_modules, canonical, kohya_modules
    if format == "diffusers" and not re.match(r"(?:unet|transformer|text_encoder)\b", modules[0]): return ""
    try: spelled = {"kohya": kohya_modules, "bfl": bfl_modules}[format](modules, arch) if format in ("kohya", "bfl") else {m: [m] for m in modules}
    except ValueError: return ""
    prefix = "base_model.model." if format == "peft" else ""
    back = [name for raw in spelled for name in canonical(prefix + raw, arch)[1]]
    return f"`{prefix}{next(iter(spelled))}`" if sorted(back) == sorted(modules) else ""

def formats():
    "Formats × models, from what the writers spell and the readers read back"
    from loragrass.factors import READERS
    from loragrass.writers import WRITERS
    rows = []
    for model, (arch, modules) in MODELS.items():
        spelled = {format: _spelled(format, arch, modules) for format in WRITERS if format != "bare"}
        rows.append([model, *(spelled.values())])
    return f"""# Formats and models

A cell shows how a module is called in files of a format, for each model whose names are known in it; such files are read, written, and aligned with those of every other column. An empty cell is a format that has no names for that model.

{_table(["Model", *(f"`{format}`" for format in WRITERS if format != "bare")], rows)}

Files are told by their keys and never by their names. Adapters of other models are read as well: their modules keep the names of the file, and align with files that use the same.

Updates of these kinds are read: {", ".join(f"`{kind}`" for kind in READERS)}. OneTrainer's, LyCORIS' and MLX' files are read too, and written as kohya's or PEFT's. What is not low rank is refused by name ([errors](errors.md)).
"""

def gallery(pages):
    "Every picture that a function of the package draws, as (page, cell): the line that draws it, and the output"
    for page in pages:
        for cell in page.cells:
            drawn = any("image/png" in out.get("data", {}) for out in cell.get("outputs", []))
            if cell.cell_type == "code" and drawn and re.search(r"\bplot_\w+\(", cell.source): yield page, cell
