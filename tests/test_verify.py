"""Attacks and fuzz: a verdict is exact, instant and never an exception."""
import time
from random import Random
import pytest
from r1nb.core import R1Error
from r1nb.tasks import Problem, arithmetic, countdown
from r1nb.verify import (TAGS, Verdict, last_text, reward, split_response, trl_reward, verify,
                         verify_all)

P = Problem('p', 'Make 43 from 20 4 16 11 .', '', 'countdown',
            dict(numbers=[20, 4, 16, 11], target=43, exact=True))
RIGHT = '11 + ( ( 16 - 4 ) + 20 )'
def say(answer, thought=' hm '): return f'<think>{thought}</think> <answer>{answer}</answer>'

@pytest.mark.parametrize('response', [
    say(RIGHT), say(f' {RIGHT} '), say(RIGHT, ''), say(RIGHT, '\n'*50), f'\n {say(RIGHT)} \n',
    say('16+11+20-4'), say(RIGHT).replace('> <', '><'), say(RIGHT, '<b> < / think > </ think>'),
    say(RIGHT, 'think answer'), say('16 + 11 + 20 − 4'), say('((16+11+20-4))'),
    say('11+((16-4)+20)', '9**9**9' * 1000)])
def test_paid_in_full(response): assert reward(verify(P, response)) == 1.1

@pytest.mark.parametrize('response', [
    '', ' ', RIGHT, f'<answer>{RIGHT}</answer>', f'<think></think>{RIGHT}', say(RIGHT)+'.',
    'x'+say(RIGHT), say(RIGHT).replace('</think>', '</think>so'), say(RIGHT)*2,
    say(RIGHT)+'<answer>', say(RIGHT, '<think>'), say(RIGHT, '</answer>'), say(RIGHT, '<answer>'),
    say(f'{RIGHT}</answer><answer>43'), say(RIGHT).upper(),
    f'<answer>{RIGHT}</answer><think></think>', f'<think><answer>{RIGHT}</answer></think>',
    f'</think><think><answer>{RIGHT}</answer>', f'<think></think></answer>{RIGHT}<answer>',
    say(RIGHT)+'\x00', say(RIGHT).replace('<think>', '<think >'), say(RIGHT)+'<|end|>',
    P.prompt+say(RIGHT), '<think>'*9**5, None, 7, b'<think>', [], '＜think＞'])
def test_malformed_is_paid_nothing(response):
    v = verify(P, response)
    assert (v.answer, v.format) == (0, 0) and v.reason and len(v.reason) < 80

@pytest.mark.parametrize('answer', [
    '', '43', '-(-43)', RIGHT+'=43', RIGHT+' .', RIGHT+' or '+RIGHT, RIGHT+'\n43', '20+20+4-1',
    '11+16+16', '20+16+11-4+4-4', '40+3', '16+11+20-4*1', '16+11+20-4+0', '9**9**9',
    '11+((16-4)+20', '２０+16+11-4', '20+16+11-4)', '٢٠+16+11-4', '20+16+11-4#', '20+16+11-4 # ok',
    '"43"', '43.0', '1+'*10**6, '('*10**6, '9'*10**6, ' '*10**6, '20+16+11-4/1', '20 16 11 4',
    '1/0', '4/(16-16)+20+11', 'True', 'lambda:43', '\\boxed{43}', 'NaN', '20+16+11--4'])
def test_well_formed_but_wrong_earns_the_form_only(answer):
    start = time.perf_counter()
    v = verify(P, say(answer))
    assert (v.answer, v.format) == (0, 1)
    assert v.reason and len(v.reason) < 120 and '\n' not in v.reason
    assert reward(v) == .1 and time.perf_counter() - start < .1

def test_fuzz_20000_strings_no_exception_none_slow():
    rng, bits = Random(0), [*TAGS, '1', '20', '43', '+', '-', '*', '/', '(', ')', ' ', '**', '.',
        'e', '\n', '²', '½', '\ud800', '\x00', '९', 'x', '<', '>', 'think', '\\boxed{', '}',
        '\\frac{', '%', '$', ',']
    problems = [P, arithmetic(1)[0], Problem('g', '', '\\frac{1}{2}', 'gsm8k', {}), Problem('t',
    '', '(1, 2]', 'math500', {})]
    slow = 0
    for i in range(20_000):
        text = ''.join(rng.choices(bits, k=rng.randrange(40)))
        if i % 2: text = say(text)
        start = time.perf_counter()
        v = verify(problems[i % 4], text)
        slow += time.perf_counter() - start > .05
        assert v.answer in (0, 1) and v.format in (0, 1) and v.answer <= v.format and v.reason
    assert slow < 5, 'a busy machine may pause us a few times; no input is slow'

@pytest.mark.parametrize('unit', [
    '<think>', '</think> ', '<answer>', '<', '((', ' ', '\\boxed{', '\\frac{', '{', '1,111', '$',
    '-'])
def test_long_repetitions_are_linear(unit):
    for p in (P, Problem('g', '', '\\frac{1}{2}', 'gsm8k', {})):
        for text in (unit*10**5, say(unit*10**5), say(unit*140), '<think>'+unit*10**5):
            start = time.perf_counter()
            assert verify(p, text).answer == 0
            assert time.perf_counter() - start < .5

def test_split_response_gives_the_parts():
    assert split_response('<think>a</think>\n<answer>b</answer>') == ('a', 'b', '')

def test_256_verdicts_are_not_felt():
    ps = countdown(256, seed=9)
    rs = [say(f' {p.gold} ', 'Try 1 + 2 = 3 . No, too low. '*10) for p in ps]
    verify_all(ps, rs)
    start = time.process_time()
    assert all(v.answer for v in verify_all(ps, rs))
    assert time.process_time() - start < .15, '20 ms on a free core'

def test_reward_weights():
    v = Verdict(1., 1., process=.5)
    assert reward(v, {'answer': 2, 'process': 1}) == 2.5 and reward(v, {}) == 0
    for bad in ('language', 'reason', 'colour'):
        with pytest.raises(R1Error, match=bad): reward(v, {bad: 1})

def test_trl_adapter_on_strings_messages_and_ids():
    ps = countdown(4, seed=2)
    f = trl_reward(ps)
    prompts, good = [p.prompt for p in ps], [say(p.gold) for p in ps]
    assert f(prompts, good, completion_ids=[[1]]*4, trainer_state=None) == [1.1]*4
    assert f(prompts, good[::-1]) == [.1]*4
    chat = [[dict(role='system', content='x'), dict(role='user', content=p)] for p in prompts]
    said = [[dict(role='assistant', content=g)] for g in good]
    assert f(chat, said) == f(prompts=chat, completions=said, id=[p.id for p in ps]) == [1.1]*4
    assert f(['anything']*4, good, id=[p.id for p in ps]) == [1.1]*4
    assert f(prompts, ['']*4) == f(prompts, [[]]*4) == [0.]*4 and f.__name__ == 'r1nb_reward'
    assert last_text([]) == ''
    with pytest.raises(R1Error, match='no problem for the prompt'): f(['?'], [''])
