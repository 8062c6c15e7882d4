"""Each house rule fires on a planted violation, and a decent house has none."""
import json, subprocess, sys
from pathlib import Path
import pytest
from house import RULES, WARNINGS, check

HERE = Path(__file__).parent
DEFAULT = '#| default_exp {}'
ROOM = [DEFAULT, '# Title\n\n' + 'word '*300, '#| export\nimport math',
        '#| exports\ndef {}_area(\n    r:float, # radius, m\n)->float:   # m²\n'
        '    "Area of a disc."\n    return math.pi*r**2', 'Look:', '{}_area(1)']
QUIET = {'settings.ini': '[DEFAULT]\ntst_flags = notest slow cuda vllm\n', 'README.md': '# r1nb\n'}

def cell(source, **raw):
    "A markdown cell if it reads like one, else a code cell."
    if isinstance(source, dict): return source
    prose = source[:1] in '`<>=' or source[:2] == '# ' or source[:1].isupper()
    more = {} if prose else dict(outputs=[], execution_count=None)
    return dict(cell_type='markdown' if prose else 'code', metadata={}, source=source) | more | raw

class House:
    "A small repository to plant violations in."
    def __init__(self, root):
        self.root, self.contents = root, []
        subprocess.run(['git', 'init', '-q', root], check=True)
        for n, text in QUIET.items(): self.write(n, text)
        self.write('r1nb/__init__.py', ''); self.write('r1nb/_modidx.py', "d = {'syms': {}}")
        self.room('10_disc'); self.room('20_ball'); self.room('index', ['# r1nb'])

    def write(self, name, text):
        path = self.root/name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')

    def room(self, name, cells=ROOM, more=(), listed=True):
        topic = name[3:]
        cells = [cell(c.replace('{}', topic) if isinstance(c, str) else c) for c in [*cells, *more]]
        self.write(f'nbs/{name}.ipynb', json.dumps(dict(cells=cells, metadata={}, nbformat=4)))
        if topic and name != 'index': self.write(f'r1nb/{topic}.py', '')
        if listed: self.contents = sorted({*self.contents, name})
        self.write('_quarto.yml', '\n'.join(f'- {n}.ipynb' for n in self.contents))

    def fires(self, **kw): return {name for _, name, _ in check(self.root, **kw)}

@pytest.fixture
def house(tmp_path): return House(tmp_path)

def lines(n, s='x = 1'): return '\n'.join([s]*n)
def out(text): return dict(output_type='stream', name='stdout', text=text)
COPY = 'a = 1\nb = 2\nc = 3\nd = a + b + c'
PARAM = '#| export\ndef f({}):\n    "Doc."\n    return 1'
CELLS = [   # rule, cells added to 10_disc
    ('exported_cell', ['#| export\n' + lines(41)]),
    ('example_cell', [lines(11)]),
    ('defs_in_cell', ['\n'.join(f'def f{i}(): return {i}' for i in range(4))]),
    ('exported_room', ['#| exporti\n' + lines(39), 'Prose.']*8),
    ('line_width', ['x = "' + 'a'*100 + '"']),
    ('notebook_size', ['Long ' + 'a'*300_000]),
    ('output_size', [cell('1 + 1', outputs=[out('a'*80_001)])]),
    ('directive', ['#| expotrs\nx = 1']),
    ('directive', ['#| fast\nx = 1']),
    ('directive', ['x = 1\n#| export\ny = 2']),
    ('directive', ['#export\nx = 1']),
    ('cell_metadata', [cell('x = 1', metadata={'tags': ['hide']})]),
    ('merge_marker', ['`<<<<<<< HEAD`']),
    ('merge_marker', ['`=======`']),
    ('merge_marker', ['`>>>>>>> branch`']),
    ('merge_marker', ['x = 1\n<<<<<<< HEAD\nx = 2']),
    ('import_up', ['from r1nb.ball import f']),
    ('import_up', ['#| export\nfrom r1nb import ball']),
    ('import_up', ['#| export\ndef f():\n    "Doc."\n    import r1nb.ball\n    return 1']),
    ('mixed_imports', ['import os\nx = os.sep']),
    ('star_import', ['from math import *']),
    ('error_output', [cell('1/0', outputs=[dict(output_type='error', ename='ZeroDivisionError')])]),
    ('pasted_image', ['See ![](data:image/png;base64,iVBORw0)']),
    ('pasted_image', [cell('See ![](attachment:a.png)', attachments={'a.png': {}})]),
    ('unexplained', ['x = 1', 'y = 2', 'z = 3']),
    ('undocumented', ['#| export\ndef f(): return 1']),
    ('undocumented', ['#| export\nclass A: pass']),
    ('undocumented', [PARAM.format('x')]),
    ('undocumented', [PARAM.format('\n    x, y, # two on one line\n')]),
    ('undocumented', [PARAM.format('\n    *xs,\n')]),
    ('undocumented', ['#| export\n@dataclass\nclass A:\n    "Doc."\n    x:int = 1']),
    ('unsafe', ['#| exporti\ndef _f(s): return eval(s)']),
    ('unsafe', ['#| export\nimport pickle']),
    ('unsafe', ['#| export\nfrom pickle import loads']),
    ('unsafe', ['#| exporti\ndef _f(p): return torch.load(p)']),
    ('unsafe', ['#| exporti\ndef _f(p): return subprocess.run(p, shell=True)']),
    ('unsafe', ['#| exporti\ndef _f(p): return np.load(p, allow_pickle=True)']),
    ('foreign_words', ['Data in /wo' + 'rk/data']),
    ('foreign_words', [cell('1 + 1', outputs=[out('warned\n/ro' + 'ot/x.py:1: slow')])]),
    ('foreign_words', ['Ask http://registry.' + 'internal/simple']),
    ('foreign_words', ['Ask 192.168.' + '0.7']),
]
FILES = [   # rule, file added to the house, its text
    ('kernel_size', 'kernels/gemm.py', lines(351)),
    ('kernel_size', 'kernels/gemm.cu', lines(601)),
    ('line_width', 'kernels/gemm.cu', '/'*101),
    ('unreadable', 'nbs/30_torn.ipynb', '<<<<<<< HEAD'),
    ('merge_marker', 'kernels/gemm.cu', '>>>>>>> theirs'),
    ('orphan_module', 'r1nb/old.py', ''),
    ('orphan_module', 'r1nb/sub/new.py', ''),
    ('stale_index', 'r1nb/_modidx.py', "d = {'syms': {'r1nb.old': {}}}"),
    ('contents', '_quarto.yml', '- 20_ball.ipynb\n- index.ipynb'),
    ('contents', '_quarto.yml', '- 20_ball.ipynb\n- 10_disc.ipynb\n- index.ipynb'),
    ('contents', '_quarto.yml', '- 10_disc.ipynb\n- 20_ball.ipynb\n- index.ipynb\n- 21_no.ipynb'),
    ('unsafe', 'kernels/gemm.py', 'import pickle'),
    ('top_level', 'utils.py', ''),
    ('top_level', 'scripts/a.sh', ''),
    ('foreign_words', 'tests/test_a.py', '# see /ho' + 'me/me/notes'),
]
fine = ['#| export\ndef f(x): # [B] metres\n    "Doc."\n    return x', 'Prose.', 'm.eval()',
        '#| exporti\ndef _f(p): return torch.load(p, weights_only=True)', 'Prose.',
        '#| export\nimport os\nimport sys\nimport json\nimport math', 'from r1nb.disc import f',
        '#| cuda\nx = 1', '#| echo: false\n#| output: asis\n%matplotlib inline\nprint("x")',
        'Prose.', '%%bash\nls\n' + lines(3, 'import this is not Python')]

def test_a_decent_house_has_no_violation(house):
    house.room('10_disc', ROOM, fine)
    assert check(house.root) == []
    assert 'narrated_example' not in house.fires(rules=WARNINGS)

@pytest.mark.parametrize('rule, cells', CELLS, ids=[f'{r}-{i}' for i, (r, _) in enumerate(CELLS)])
def test_a_planted_cell_is_found(house, rule, cells):
    house.room('10_disc', ROOM, cells)
    assert house.fires() == {rule}

@pytest.mark.parametrize('rule, name, text', FILES, ids=[f'{r}-{n}' for r, n, _ in FILES])
def test_a_planted_file_is_found(house, rule, name, text):
    house.write(name, text)
    assert rule in house.fires()

def test_copied_cells_are_found_but_not_imports(house):
    house.room('10_disc', ROOM, [COPY])
    house.room('20_ball', ROOM, ['#| hide\n' + COPY])
    assert house.fires() == {'copied_cell'}
    (where, _, detail), = check(house.root)
    assert where == 'nbs/20_ball.ipynb:6' and 'nbs/10_disc.ipynb:6' in detail

@pytest.mark.parametrize('name, cells', [('Disc', ROOM), ('11_disk', ['#| default_exp disc']),
                                         ('11_disk', ['Prose.']), ('11_disc', ROOM)])
def test_names_of_rooms(house, name, cells):
    house.room(name, cells)
    assert 'room_name' in house.fires()

def test_a_room_that_was_not_exported(house):
    (house.root/'r1nb/disc.py').unlink()
    assert house.fires() == {'orphan_module'}

def test_aims_warn_and_do_not_fail(house):
    house.room('10_disc', [DEFAULT, 'Few words.', *['Prose.']*120, 'x = 1\n# why\ny = 1'])
    assert check(house.root) == []
    assert house.fires(rules=WARNINGS) == {'prose', 'cell_count', 'narrated_example'}

def test_every_rule_has_a_planted_violation():
    planted = {r for r, *_ in CELLS + FILES} | {'copied_cell', 'room_name'}
    assert planted == {r.__name__ for r in RULES}

def test_the_command_prints_one_line_each_and_fails(house):
    run = lambda: subprocess.run([sys.executable, HERE/'house.py', house.root],
                                 capture_output=True, text=True)
    assert run().returncode == 0
    house.room('10_disc', ROOM, ['#| expotrs\nx = 1'])
    r = run()
    assert r.returncode == 1
    assert 'nbs/10_disc.ipynb:6: directive: unknown directive `#| expotrs`\n' in r.stdout

def test_this_house_is_in_order():
    broken = [': '.join(v) for v in check(HERE.parent)]
    assert not broken[:5], f'{len(broken)} violations; python tests/house.py lists them'
