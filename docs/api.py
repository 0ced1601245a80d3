"What an exported cell defines, read from its source: signature, docstring and the comments beside the arguments (docments), as Markdown"
import ast, copy, io, re, textwrap, tokenize

FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef

def public(node):
    "(name, definition) of the public functions and classes of a cell, each followed by the methods and properties that have a docstring"
    for n in node.body:
        if isinstance(n, (*FUNCTIONS, ast.ClassDef)) and n.name[0] != "_":
            yield n.name, n
            if isinstance(n, ast.ClassDef): yield from ((f"{n.name}.{name}", m) for name, m in public(n) if ast.get_docstring(m))

def rows(node):
    "(table, key, what the row says of itself) of the rows that a cell puts into tables, as `NAME = {key: Row(…)}` or `NAME |= {…}`"
    for n in node.body:
        if not (isinstance(n, (ast.Assign, ast.AugAssign)) and isinstance(n.value, ast.Dict)): continue
        target = n.targets[0] if isinstance(n, ast.Assign) else n.target
        for key, row in zip(n.value.keys, n.value.values):
            if not (isinstance(target, ast.Name) and target.id.isupper() and isinstance(key, ast.Constant) and isinstance(row, ast.Call)): continue
            yield target.id, key.value, " · ".join(a.value for a in row.args if isinstance(a, ast.Constant) and isinstance(a.value, str))

def call(node):
    "The function that is run when `node` is called: itself, a class's `__init__`, or None where a class has fields instead"
    if isinstance(node, FUNCTIONS): return node
    return next((n for n in node.body if isinstance(n, FUNCTIONS) and n.name == "__init__"), None)

def fields(cls): return [n for n in cls.body if isinstance(n, ast.AnnAssign) and n.target.id[0] != "_"]

def signature(node, name):
    "As it is called: names and defaults"
    if fn := call(node):
        if any("property" in ast.unparse(d) for d in fn.decorator_list): return name
        args = copy.deepcopy(fn.args)
        for arg in [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, [args.vararg, args.kwarg])]: arg.annotation = None
        text = re.sub(r"^(self|cls)(, (/, )?|$)", "", ast.unparse(args))
    else: text = ", ".join(n.target.id + (f"={ast.unparse(n.value)}" if n.value else "") for n in fields(node))
    return "\n    ".join(textwrap.wrap(f"{'class ' * isinstance(node, ast.ClassDef)}{name}({text})", 84, break_long_words=False))

def arguments(node):
    "(name, type, line) of everything that a docment can stand beside"
    if not (fn := call(node)): return [(f"`{n.target.id}`", n.annotation, n.lineno) for n in fields(node)]
    a = fn.args
    starred = [*(("", arg) for arg in [*a.posonlyargs, *a.args]), ("*", a.vararg), *(("", arg) for arg in a.kwonlyargs), ("**", a.kwarg)]
    rows = [(f"`{star}{arg.arg}`", arg.annotation, arg.end_lineno) for star, arg in starred if arg and arg.arg not in ("self", "cls")]
    return rows + ([("returns", fn.returns, fn.returns.end_lineno)] if fn.returns else [])

def table(node, source):
    "What is said of the arguments and the result; empty where no comment says anything"
    notes = {t.start[0]: t.string.lstrip("# ") for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT}
    rows = arguments(node)
    last = {line: name for name, _, line in rows} # of several on one line, the last one owns the comment
    cells = [(name, f"`{ast.unparse(kind)}`" if kind else "", notes.get(line, "") if last[line] == name else "") for name, kind, line in rows]
    if not any(note for *_, note in cells): return ""
    return "\n".join(["| Argument | Type | Meaning |", "|---|---|---|", *(table_row(c) for c in cells)])

def table_row(cells): return "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", c) for c in cells) + " |"
