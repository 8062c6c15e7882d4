"""The live view on odd terminals, with odd values, and when everything it writes to breaks."""
import io, math, os, sys, time
import pytest
from rich.console import Console
from r1nb.core import R1Error
from r1nb.view import Diary, PlainView, RichView, View, WidgetView, frame, left, spark

HOSTILE = ('\x1b[2J\x1b]0;title\x07[red]bold[/nothing] \u202e <think> Wait \ud800 </think>'
           + ' word'*400)

def play(v, stages=('base', 'zero', 'vote'), n=30, text='<think> Wait </think>'):
    with v:
        for name in stages:
            v.stage(name, n, 'note')
            v.transcript('before', text, text, False)
            for i in range(n):
                v.step(i, reward=i/n, accuracy=.5, accuracy_lo=.4, accuracy_hi=.6,
                       mean_tokens=90+i, loss=math.nan, odd=3)
            v.transcript('after', text, text, True)
            v.result(name, .5, (.4, .6), 512, 90., 10.)
        v.note(text)
    return v

def rich(width=80, height=24, encoding='utf-8', **kw):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    console = Console(file=file, width=width, height=height, force_terminal=True,
                      force_jupyter=False, **kw)
    return RichView('r1nb', console=console), file

def shown(file): return file.buffer.getvalue().decode(file.encoding)

@pytest.mark.parametrize('size', [(80, 24), (80, 50), (40, 10), (20, 5), (10, 3), (76, 24),
                                  (120, 35), (300, 100)])
@pytest.mark.parametrize('encoding', ['utf-8', 'ascii', 'latin-1'])
def test_any_terminal(size, encoding):
    v, file = rich(*size, encoding)
    play(v, text=HOSTILE)
    assert v.less, 'it had to fall back'
    out = shown(file)
    assert '\x1b[2J' not in out and '\x1b]0' not in out and '\u202e' not in out

def test_fits_80x24_with_everything():
    v, _ = rich()
    v.draw = lambda what: None
    play(v, v.plan, text=HOSTILE)
    v.results = v.results[:5]
    console = Console(file=io.StringIO(), width=80, color_system=None, force_jupyter=False)
    console.print(frame(v, 80, 24))
    lines = console.file.getvalue().rstrip('\n').split('\n')
    assert len(lines) <= 24 and max(map(len, lines)) <= 80

def test_markup_is_not_obeyed():
    v, file = rich(width=120, color_system=None)
    play(v, text='[red]hello[/red]')
    assert '[red]hello[/red]' in shown(file)

def test_broken_terminal_never_stops_a_run(monkeypatch):
    class Gone(io.StringIO):
        def write(self, s): raise BrokenPipeError
    monkeypatch.setattr(sys, 'stdout', Gone())
    play(PlainView())
    play(RichView(console=Console(file=Gone(), force_terminal=True, force_jupyter=False)))
    closed = io.StringIO(); closed.close()
    monkeypatch.setattr(sys, 'stdout', closed)
    play(PlainView())
    monkeypatch.setattr(sys, 'stdout', None)
    assert len(play(View.open()).stages) == 3

def test_interrupt_passes_through():
    class Slow(View):
        def draw(self, what): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): Slow().stage('base')

def test_open_looks_where_it_is(monkeypatch):
    monkeypatch.delitem(sys.modules, 'IPython', raising=False)
    monkeypatch.setattr(sys, 'stdout', io.StringIO())
    assert type(View.open()) is PlainView
    sys.stdout.isatty = lambda: True
    monkeypatch.setenv('TERM', 'xterm'); assert type(View.open()) is RichView
    monkeypatch.setenv('TERM', 'dumb'); assert type(View.open()) is PlainView
    assert type(View.open('widgets')) is WidgetView and type(View.open('rich', quiet=True)) is View
    with pytest.raises(R1Error, match='unknown'): View.open('gui')

def test_without_ipywidgets_there_are_lines(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    play(WidgetView())
    assert 'step 30/30' in capsys.readouterr().out

def test_plain_is_short(capsys):
    play(PlainView(), n=1000)
    assert len(capsys.readouterr().out.splitlines()) < 3*17

def test_steps_may_be_numpy_or_nonsense():
    import numpy as np
    v = View()
    v.step(0, reward=np.float32(.5), accuracy=None, loss=math.inf, reflection='many',
           mean_tokens=np.int64(3), truncated=True)
    assert v.stages[0]['rows'] == [{'step': 0, 'reward': .5, 'mean_tokens': 3}]

def test_estimate_after_a_resume():
    now = time.perf_counter()
    s = dict(ok=None, total=100, done=90, first=(now - 10, 80), begun=now - 50)
    assert 9 < left(s) < 11
    assert left(s | dict(ok=True)) is None and left(s | dict(total=0)) is None
    assert left(s | dict(done=80)) is not None

def test_failed_stage_is_marked():
    v = View()
    with pytest.raises(RuntimeError):
        with v: v.stage('zero', 3); v.step(0); raise RuntimeError
    assert v.stages[0]['ok'] is False

def test_patience_bounds_the_cost():
    class Slow(View):
        pause, n = 0, 0
        def draw(self, what): time.sleep(.003); self.n += 1
    v = Slow(); v.stage('busy'); t, v.n = time.perf_counter(), 0
    while time.perf_counter() - t < 1: v.step(0)
    assert v.n <= 4

def test_sparks():
    for ys in ([], [1], [1, 1, 1], list(range(1000)), [-5, 5]):
        for width in (1, 7, 60):
            for tall in (1, 3):
                rows = spark(ys, width, tall)
                assert len(rows) == tall and all(len(r) == width for r in rows)
    assert spark([0, 1], 2) == ['▁█']
