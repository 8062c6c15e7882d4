"""House rules: what a machine can check of how a room looks. Standard library only.

    python tests/house.py          one line per violation, `path:cell: rule: detail`; exit 1 if any
A line that starts with `warning:` does not fail. A limit that hurts a good room is moved here, for
all rooms, with the reason in LOG.md; it is never dodged.
"""
import ast, configparser, io, json, re, subprocess, sys, tokenize
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

TOP_FILES = {'settings.ini', '_quarto.yml', 'README.md', 'LICENSE', 'pyproject.toml',
             'CONTRIBUTING.md', 'LOG.md', '.gitignore', '.gitattributes'}
TOP_FOLDERS = {'nbs', 'r1nb', 'kernels', 'tests', '.ci', '.github'}
EXPORTS = {'export', 'exports', 'exporti'}
DIRECTIVES = EXPORTS | set('''default_exp hide hide_line eval echo output warning error include
    filter_stream code-fold code-summary code-overflow label column classes fig-cap fig-alt
    fig-width fig-height tbl-cap layout-ncol'''.split())
RULES, WARNINGS = [], []

def rule(f): RULES.append(f); return f
def warning(f): WARNINGS.append(f); return f


# ---- what the rules look at ------------------------------------------------------------------
@dataclass
class Cell:
    where: str      # path:index
    kind: str       # code | markdown
    source: str
    raw: dict

    @cached_property
    def head(self):
        "Leading lines that nbdev reads as directives."
        lines = self.source.splitlines()
        n = next((i for i, s in enumerate(lines)
                  if s.strip() and not re.match(r'\s*#\s*\||\s*%%\w', s)), len(lines))
        return lines[:n]

    @cached_property
    def directives(self):
        found = [re.match(r'\s*#\s*\|\s*([^\s:]*)\s*:?\s*(.*)', s) for s in self.head]
        return {m[1]: m[2] for m in found if m}

    @cached_property
    def body(self):
        "Everything below the directives; magics blanked, so that the line numbers stay."
        if any(s.lstrip().startswith('%%') for s in self.head): return ''
        rest = self.source.splitlines()[len(self.head):]
        return '\n'.join('' if re.match(r'\s*[%!]', s) else s for s in rest)

    @cached_property
    def lines(self): return [s for s in self.body.splitlines() if s.strip()]

    @cached_property
    def tree(self):
        try: return ast.parse(self.body)
        except SyntaxError: return ast.Module([], [])

    @property
    def code(self): return self.kind == 'code'
    @property
    def exported(self): return self.code and bool(EXPORTS & self.directives.keys())
    @property
    def imports_only(self):
        return bool(self.tree.body) and all(is_import(o) for o in self.tree.body)

@dataclass
class Room:
    path: Path
    rel: str
    nb: dict | None
    cells: list = field(default_factory=list)

    @property
    def number(self): return int(m[0]) if (m := re.match(r'\d\d', self.path.name)) else None
    @property
    def module(self):
        return next((c.directives['default_exp'].strip() for c in self.cells
                     if c.code and 'default_exp' in c.directives), None)

class Book:
    def __init__(self, root):
        self.root = Path(root)
        git = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=root,
                             capture_output=True, text=True)
        names = git.stdout.splitlines() if not git.returncode else [
            str(p.relative_to(root)) for p in self.root.rglob('*') if p.is_file()]
        self.files = sorted(n for n in names if (self.root/n).is_file())
        self.rooms = [self.room(n) for n in self.files if re.fullmatch(r'nbs/[^/]*\.ipynb', n)]
        self.modules = {r.module: r for r in self.rooms if r.module}
        self.topic = {r.module: r.number for r in self.rooms if r.module and r.number is not None}

    def room(self, rel):
        path = self.root/rel
        try: nb = json.loads(path.read_text(encoding='utf-8'))
        except ValueError: return Room(path, rel, None)
        cells = [Cell(f'{rel}:{i}', c['cell_type'], ''.join(c['source']), c)
                 for i, c in enumerate(nb['cells'])]
        return Room(path, rel, nb, cells)

    def cells(self, of=lambda c: c.code):
        return ((r, c) for r in self.rooms for c in r.cells if of(c))

    def texts(self):
        "(where, text) of every tracked text file; a notebook comes cell by cell."
        for n in self.files:
            if n.endswith('.ipynb'): continue
            try: text = (self.root/n).read_text(encoding='utf-8')
            except UnicodeDecodeError: continue
            for i, s in enumerate(text.splitlines(), 1): yield f'{n}:{i}', s
        for _, c in self.cells(lambda c: True):
            for s in re.split(r'\\n|\n', json.dumps(c.raw, ensure_ascii=False)): yield c.where, s

def is_import(node): return isinstance(node, (ast.Import, ast.ImportFrom))
def public_defs(cell):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [o for o in cell.tree.body if isinstance(o, kinds) and not o.name.startswith('_')]


# ---- sizes -----------------------------------------------------------------------------------
@rule
def exported_cell(book):
    for _, c in book.cells(lambda c: c.exported):
        if len(c.lines) > 40: yield c.where, f'{len(c.lines)} lines, limit 40'

@rule
def example_cell(book):
    for _, c in book.cells(lambda c: c.code and not c.exported):
        if len(c.lines) > 10: yield c.where, f'{len(c.lines)} lines, limit 10'

@rule
def defs_in_cell(book):
    for _, c in book.cells():
        n = sum(isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
                for o in c.tree.body)
        if n > 3: yield c.where, f'{n} definitions, limit 3'

@rule
def exported_room(book):
    for r in book.rooms:
        n = sum(len(c.lines) for c in r.cells if c.exported)
        if n > 300: yield r.rel, f'{n} exported lines, limit 300'

@rule
def line_width(book):
    for _, c in book.cells():
        for s in c.source.splitlines():
            if len(s) > 100: yield c.where, f'{len(s)} characters, limit 100: {s[:40]}…'
    for n in book.files:
        if re.fullmatch(r'(kernels|tests)/.*\.(py|cu|cuh)', n):
            for i, s in enumerate((book.root/n).read_text().splitlines(), 1):
                if len(s) > 100: yield f'{n}:{i}', f'{len(s)} characters, limit 100'

@rule
def notebook_size(book):
    for r in book.rooms:
        n = r.path.stat().st_size
        if n > 300_000: yield r.rel, f'{n/1000:.0f} kB, limit 300 kB'

@rule
def output_size(book):
    for _, c in book.cells():
        for o in c.raw.get('outputs', []):
            n = len(json.dumps(o, ensure_ascii=False).encode())
            if n > 80_000: yield c.where, f'one output of {n/1000:.0f} kB, limit 80 kB'

@rule
def kernel_size(book):
    for n in book.files:
        limit = {'.py': 350, '.cu': 600, '.cuh': 600}.get(Path(n).suffix)
        if n.startswith('kernels/') and limit:
            lines = len((book.root/n).read_text().splitlines())
            if lines > limit: yield n, f'{lines} lines, limit {limit}'


# ---- notebooks and their modules -------------------------------------------------------------
@rule
def unreadable(book):
    for r in book.rooms:
        if r.nb is None: yield r.rel, 'not JSON (an unresolved merge?)'

@rule
def room_name(book):
    for r in book.rooms:
        if r.path.stem == 'index': continue
        m = re.fullmatch(r'\d\d_([a-z0-9_]+)', r.path.stem)
        if not m: yield r.rel, 'a room is called NN_topic.ipynb'
        elif r.nb and r.module is None: yield r.rel, 'no `#| default_exp`'
        elif r.nb and r.module != m[1]: yield r.rel, f'exports to {r.module}, not to {m[1]}'
    seen = {}
    for r in book.rooms:
        if r.module and seen.setdefault(r.module, r) is not r:
            yield r.rel, f'{seen[r.module].rel} already exports {r.module}'

@rule
def orphan_module(book):
    "A renamed `default_exp` leaves the old module behind, importable and stale."
    for n in book.files:
        m = re.fullmatch(r'r1nb/(\w+)\.py', n)
        if m and m[1] not in book.modules and m[1] not in ('__init__', '_modidx'):
            yield n, 'no notebook exports it'
        elif re.fullmatch(r'r1nb/(?!assets/|recipes/).*/.*', n):
            yield n, 'r1nb/ holds exported modules, assets/ and recipes/ only'
    for module, r in book.modules.items():
        if f'r1nb/{module}.py' not in book.files: yield r.rel, f'r1nb/{module}.py is not exported'

@rule
def stale_index(book):
    path = book.root/'r1nb/_modidx.py'
    names = set(re.findall(r"'r1nb\.(\w+)': \{", path.read_text())) if path.exists() else set()
    for n in sorted(names - book.modules.keys()):
        yield 'r1nb/_modidx.py', f'lists r1nb.{n}, which no notebook exports'

@rule
def contents(book):
    "_quarto.yml is the table of contents: every notebook once, in order."
    path = book.root/'_quarto.yml'
    listed = re.findall(r'([\w-]+)\.ipynb', path.read_text()) if path.exists() else []
    present = [r.path.stem for r in book.rooms]
    for n in present:
        if listed.count(n) != 1: yield '_quarto.yml', f'lists {n}.ipynb {listed.count(n)} times'
    for n in listed:
        if n not in present: yield '_quarto.yml', f'lists {n}.ipynb, which is not in nbs/'
    numbered = [n[:2] for n in listed if n[:2].isdigit()]  # within a number, the order is free
    if numbered != sorted(numbered): yield '_quarto.yml', 'the rooms are not in reading order'

@rule
def directive(book):
    "nbdev says nothing about a mistyped directive: the code silently leaves the package."
    ini = configparser.ConfigParser(); ini.read(book.root/'settings.ini')
    known = DIRECTIVES | set(ini.get('DEFAULT', 'tst_flags', fallback='').split())
    for _, c in book.cells():
        for d in c.directives:
            if d not in known: yield c.where, f'unknown directive `#| {d}`'
        for s in c.source.splitlines()[len(c.head):]:
            if re.match(r'\s*#\s*\|', s): yield c.where, f'below the first line of code: `{s}`'
            elif re.match(r'#\s*!?\s*(default_exp|exports?|exporti|hide)\b\W*\w*$', s):
                yield c.where, f'a directive needs `#|`: `{s}`'

@rule
def cell_metadata(book):
    for _, c in book.cells(lambda c: True):
        if c.raw.get('metadata'):
            yield c.where, f'directives are comments, not metadata: {sorted(c.raw["metadata"])}'

@rule
def merge_marker(book):
    "A conflicted notebook still exports and runs: nbdev turns the markers into markdown cells."
    marker = re.compile(r'`?(<{7}|>{7})( |`|$)|={7}$|`={7}`$')
    lines = [(w, s) for w, s in book.texts() if '.ipynb:' not in w]
    lines += [(c.where, s) for _, c in book.cells(lambda c: True) for s in c.source.splitlines()]
    for where, s in lines:
        if marker.match(s): yield where, s[:60]

@rule
def copied_cell(book):
    seen = {}
    for r, c in book.cells():
        lines = [s.strip() for s in c.lines if not s.strip().startswith('#')]
        if len(lines) < 4 or c.imports_only: continue
        first, where = seen.setdefault('\n'.join(lines), (r, c.where))
        if first is not r: yield c.where, f'{len(lines)} lines copied from {where}: import them'

@rule
def import_up(book):
    for r, c in book.cells():
        if r.number is None: continue
        for o in filter(is_import, ast.walk(c.tree)):
            names = [a.name for a in o.names]
            if isinstance(o, ast.ImportFrom):
                base = ('r1nb.' if o.level else '') + (o.module or '')
                names = [f'{base.rstrip(".")}.{n}' for n in names] + [base]
            for m in {n.split('.')[1] for n in names if n.startswith('r1nb.') and n[5:]}:
                up = book.topic.get(m, -1)
                if up > r.number: yield c.where, f'imports r1nb.{m} of room {up:02d}'

@rule
def mixed_imports(book):
    "The docs build runs every cell that imports."
    for _, c in book.cells():
        some = [is_import(o) for o in c.tree.body]
        if any(some) and not all(some): yield c.where, 'imports and other code in one cell'

@rule
def star_import(book):
    for _, c in book.cells():
        for o in ast.walk(c.tree):
            if isinstance(o, ast.ImportFrom) and o.names[0].name == '*':
                yield c.where, f'from {o.module} import *'

@rule
def error_output(book):
    for _, c in book.cells():
        for o in c.raw.get('outputs', []):
            if o['output_type'] == 'error': yield c.where, f'stores {o.get("ename")}'

@rule
def pasted_image(book):
    for _, c in book.cells(lambda c: c.kind == 'markdown'):
        if 'data:image/' in c.source or c.raw.get('attachments'):
            yield c.where, 'an image is a file, not base64 in markdown'

@rule
def unexplained(book):
    "Idea, code, look: no more than two code cells without a word between them."
    for r in book.rooms:
        run = 0
        for c in r.cells:
            quiet = c.code and (c.imports_only or {'default_exp', 'hide'} & c.directives.keys())
            run = 0 if not c.code else run + (not quiet)
            if run == 3: yield c.where, 'the third code cell in a row without prose'


# ---- what is exported ------------------------------------------------------------------------
@rule
def undocumented(book):
    for _, c in book.cells(lambda c: c.exported and 'exporti' not in c.directives):
        for o in public_defs(c):
            if not ast.get_docstring(o): yield c.where, f'{o.name} has no docstring'
            for name in bare_names(c, o): yield c.where, f'{o.name}: `{name}` has no comment'

def bare_names(c, o):
    "Parameters (of a dataclass: fields) that lack a line, or a trailing comment, of their own."
    tokens = tokenize.generate_tokens(io.StringIO(c.body).readline)
    commented = {t.start[0] for t in tokens if t.type == tokenize.COMMENT}
    if isinstance(o, ast.ClassDef):
        if not any('dataclass' in ast.unparse(d) for d in o.decorator_list): return
        spans = [(f.target.id, f.lineno, f.end_lineno) for f in o.body
                 if isinstance(f, ast.AnnAssign)]
    else:
        a = o.args
        args = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
        values = {id(k): v for k, v in zip(reversed(a.posonlyargs + a.args), reversed(a.defaults))}
        values |= {id(k): v for k, v in zip(a.kwonlyargs, a.kw_defaults) if v}
        typer = lambda k: 'help=' in ''.join(
            ast.unparse(v) for v in (k.annotation, values.get(id(k))) if v)
        spans = [(k.arg, k.lineno, getattr(values.get(id(k)), 'end_lineno', k.end_lineno))
                 for k in args if k and k.arg not in ('self', 'cls') and not typer(k)]
    starts = [lo for _, lo, _ in spans]
    for name, lo, hi in spans:
        if starts.count(lo) > 1 or not commented & set(range(lo, hi + 1)): yield name

@rule
def unsafe(book):
    "Nothing exported runs text as code, or loads a file that can."
    trees = [(c.where, c.tree) for _, c in book.cells(lambda c: c.exported)]
    trees += [(n, ast.parse((book.root/n).read_text())) for n in book.files
              if re.fullmatch(r'kernels/.*\.py', n)]
    for where, tree in trees:
        jailed = {id(o) for f in ast.walk(tree) for o in ast.walk(f) if 'nbs/31_judge' in where
                  and getattr(f, 'name', '') in ('inmate', 'judge')}  # run in the jail only
        for o in ast.walk(tree):
            if id(o) in jailed: continue
            if is_import(o):
                names = [a.name for a in o.names] + [getattr(o, 'module', None) or '']
                for n in {n.split('.')[0] for n in names} & {'pickle', 'cloudpickle', 'dill',
                                                             'shelve', 'marshal', 'joblib'}:
                    yield where, f'imports {n}'
            elif isinstance(o, ast.Call):
                name, kw = ast.unparse(o.func), {k.arg: ast.unparse(k.value) for k in o.keywords}
                if name in ('eval', 'exec', 'os.system', 'os.popen'): yield where, f'calls {name}('
                if name == 'torch.load' and kw.get('weights_only') != 'True':
                    yield where, 'torch.load without weights_only=True'
                if kw.get('shell') == 'True' or kw.get('allow_pickle') == 'True':
                    yield where, f'{name}( with shell or allow_pickle'


# ---- the repository --------------------------------------------------------------------------
@rule
def top_level(book):
    for n in sorted({f.split('/')[0] for f in book.files if '/' in f} - TOP_FOLDERS):
        yield f'{n}/', 'no other folder at the top'
    for n in book.files:
        if '/' not in n and n not in TOP_FILES: yield n, 'no other file at the top'

@rule
def foreign_words(book):
    "The project speaks of itself alone: no paths of one machine, no private hosts."
    bad = re.compile(r'''(?<![\w.~])/(?:work|root|home|Users)/\w | file:///
        | \b(?:10\.\d+|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d+\.\d+\b
        | https?://[^\s/"]*\.(?:internal|corp|lan|local)\b
        | \bthis\ session\b | \bissue\ \#?\d+\ (?:asks|says)''', re.X)
    for where, s in book.texts():
        if (m := bad.search(s)) and not where.startswith('tests/house.py:'):
            yield where, f'{m[0].strip()!r} in: {s[max(m.start() - 20, 0):m.end() + 30].strip()}'


# ---- aims, not limits ------------------------------------------------------------------------
@warning
def prose(book):
    for r in book.rooms:
        n = sum(len(c.source.split()) for c in r.cells if c.kind == 'markdown')
        if not 300 <= n <= 3500 and r.path.stem != 'index':
            yield r.rel, f'{n} words of prose (600 to 2000 is the aim)'

@warning
def cell_count(book):
    for r in book.rooms:
        if len(r.cells) > 120: yield r.rel, f'{len(r.cells)} cells, aim ≤ 120'

@warning
def narrated_example(book):
    for _, c in book.cells(lambda c: c.code and not c.exported):
        if any(s.lstrip().startswith('#') for s in c.lines): yield c.where, 'comment in an example'


def check(root, rules=RULES):
    "Every violation as (where, rule, detail)."
    book = Book(root)
    return [(where, f.__name__, detail) for f in rules for where, detail in f(book)]

if __name__ == '__main__':
    root = Path(sys.argv[1] if sys.argv[1:] else Path(__file__).parent.parent)
    for w, name, detail in check(root, WARNINGS): print(f'warning: {w}: {name}: {detail}')
    broken = check(root)
    for w, name, detail in broken: print(f'{w}: {name}: {detail}')
    print(f'house: {len(Book(root).rooms)} notebooks, {len(RULES)} rules, {len(broken)} violations')
    sys.exit(bool(broken))
