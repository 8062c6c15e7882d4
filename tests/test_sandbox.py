"""The sandbox under attack: hostile programs, planted forgeries, published reference solutions."""
import json, os, socket, subprocess, sys, tempfile, time, warnings
from pathlib import Path
import pytest
from r1nb.core import R1Error
from r1nb.jail import Limits, pack, unpack
from r1nb.sandbox import (Sandbox, Tests, isolation, probe, run_tests, tests_of as made_tests,
                          whole_program)
from r1nb.tasks import load

DATA = Path(os.environ.get('R1NB_DATA', Path(__file__).parent.parent.parent/'shared/data'))
Tests.__test__ = False
STRONG = [level for level in ('bwrap', 'namespaces') if probe(level)[0]]
needs_walls = pytest.mark.skipif(not STRONG, reason=f'no isolation here: {isolation()}')
needs_data = pytest.mark.skipif(not (DATA/'mbpp').is_dir(), reason=f'no data at {DATA}')
SHORT = Limits(seconds=1.5, cpu=2)
GOOD, TESTS = 'def f(x): return x*x', 'assert f(3) == 9\nassert f(-2) == 4'

@pytest.fixture(scope='module', params=STRONG)
def box(request):
    with Sandbox(1, SHORT, request.param) as b: yield b

def fails(box, program, tests=TESTS):
    v = box.run(program, tests)
    assert v.answer == 0, v
    return v.reason

@needs_walls
def test_right_passes_wrong_fails(box):
    assert box.run(GOOD, TESTS).answer == 1
    assert 'Assertion' in fails(box, 'def f(x): return x+5')
    assert 'SyntaxError' in fails(box, 'def f(x) return')
    assert 'NameError' in fails(box, 'x = 1')

def test_weak_only_on_demand():
    limits = Limits(seconds=1.)
    with pytest.raises(R1Error, match='allow-weak-sandbox'): Sandbox(1, limits, 'weak')
    with pytest.warns(UserWarning, match='WEAK SANDBOX'):
        box = Sandbox(1, limits, 'weak', allow_weak=True)
    with box:
        assert box.run(GOOD, TESTS).answer == 1
        assert box.run('import sys; sys.exit(0)', TESTS).answer == 0
        assert 'time' in box.run('while True: pass', TESTS).reason
        assert box.run('x = bytearray(1<<33)', TESTS).answer == 0
