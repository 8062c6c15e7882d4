"""Pairs written as an outsider would, in fixtures/answer_pairs.jsonl.

`reward` and `evaluate` say what each setting should find (absent: arguable). A row with `known` is
missed, and stays in the file as what it is: a miss.
"""
import json
from collections import Counter
from pathlib import Path
import pytest
pytest.importorskip('math_verify', reason="needs Math-Verify: pip install 'r1nb[verify]'")
from r1nb.math_answers import verify, verify_all

ROWS = [json.loads(s) for s in (Path(__file__).parent/'fixtures/answer_pairs.jsonl').read_text(
    encoding='utf-8').splitlines()]

@pytest.mark.parametrize('setting', ['reward', 'evaluate'])
def test_pairs(setting):
    rows = [r for r in ROWS if setting in r]
    found = verify_all([r['gold'] for r in rows], [r['response'] for r in rows],
                       strict=setting == 'reward')
    wrong = [(r['kind'], r['gold'], r['response'], v.reason) for r, v in zip(rows, found)
             if v.answer != r[setting] and setting not in r.get('known', ())]
    assert not wrong, wrong
    n = Counter(r[setting] for r in rows)
    assert min(n.values()) > 800, n
    missed = Counter(r[setting] for r in rows if setting in r.get('known', ()))
    assert missed[1] <= .02*n[1] and missed[0] <= (.01 if setting == 'evaluate' else .005)*n[0]

@pytest.mark.parametrize('gold, response', [
    ('B', 'The answer is (B).'), ('B', '<think>hm</think> So the answer is (B)\n<|im_end|>')])
def test_a_last_letter_is_an_answer(gold, response):
    assert verify(gold, response).answer == 1

@pytest.mark.parametrize('response', [
    'The answer is B.', 'The answer is (A) or (B).', 'The answer is (A). The answer is (B).',
    'The answer is (B). Or not.', '<think>The answer is (B).', 'The answer is (B).\nA: A',
    'Is the answer is (A)?\nThe answer is (B).', 'The answer is (B)(A).',
    '\\boxed{A} The answer is (B).'])
def test_and_only_a_last_one(response): assert verify('B', response).answer == 0
