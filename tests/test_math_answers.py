"""Answers in mathematics: the same, not the same, refused; and processes that die."""
import json, os, signal, subprocess, sys, threading, time
from pathlib import Path
from random import Random
import pytest
pytest.importorskip('math_verify', reason="needs Math-Verify: pip install 'r1nb[verify]'")
from r1nb.amounts import number
from r1nb.extract import Rules, boxes, extract, refuse
from r1nb.spelling import tidy
from r1nb.core import R1Error
from r1nb.math_answers import Pool, ask, trl_reward, verify, verify_all

def box(s): return f'So it is $\\boxed{{{s}}}$.'
def ok(gold, answer, strict=True): return verify(gold, box(answer), strict=strict).answer

SAME = [('1/2', '0.5'), ('\\frac{1}{2}', '\\dfrac12'), ('0.5', '50\\%'), ('50%', '50\\%'),
    ('1000', '1e3'), ('1000', '1{,}000'), ('1,000', '1000'), ('1000', '10^3'), ('-3', '−3'),
    ('5', '5.0'), ('5', '5 \\text{ cm}'), ('5 cm', '5\\,\\text{cm}'), ('18', '\\$18'),
    ('3/2', '1\\frac{1}{2}'), ('1 1/2', '3/2'), ('2\\frac{5}{8}', '2.625'), ('A', '(A)'),
    ('(B)', 'B'), ('C', '\\text{C}'), ('C', 'C. 7'), ('\\text{east}', 'East'), ('yes', 'Yes.'),
    ('3\\sqrt{2}', '\\sqrt{18}'), ('(x+1)^2', 'x^2+2x+1'), ('\\{1,2\\}', '\\{2, 1\\}'),
    ('1,2,3', '3, 2, 1'), ('(1,2]', '(1, 2]'), ('(0.5, 3)', '\\left(\\frac12,3\\right)'),
    ('(-\\infty,3)\\cup(5,\\infty)', '(5,\\infty) \\cup (-\\infty, 3)'), ('52_7', '52_{7}'),
    ('\\begin{pmatrix}1\\\\2\\end{pmatrix}', '\\begin{pmatrix} 1 \\\\ \\frac{4}{2} \\end{pmatrix}'),
    ('1\\pm\\sqrt{2}', '1+\\sqrt{2}, 1-\\sqrt{2}'), ('6 - 9i', '-9i+6'), ('x=5', 'x = 5'),
    ('45^\\circ', '45'), ('2*x**3 + C', '2x^3 + C'), ('0x1f', '0x1F'), ('2 × 3 × 3', '3*2*3'),
    ('\\frac{\\pi}{6}', 'π/6'), ('120', '5!'), ('y = 2x+3', 'y=3+2x'), ('10', '\\binom{5}{2}'),
    ('2*x**3*exp(x)', '2x^3e^{x}'), ('3*sin(x)', '3\\sin x'), ('x=5', '5'),
    ('3 km', '3000 m'), ('120 min', '2 \\text{ h}'), ('\\$5', '500 cents'), ('$5', '5'),
    ('0.6666666667', '\\frac23'), ('5000000', '5 million'), ('6', '6th')]
OTHER = [('1', '-1'), ('1/2', '1/3'), ('52_7', '52_8'), ('1,2,3', '3'), ('3', '1, 2, 3'),
    ('\\{1,2,3\\}', '\\{1,2\\}'), ('\\{1,2\\}', '\\{1,2,3\\}'), ('(1,2)', '(2,1)'), ('[1,2]',
    '(1,2)'),
    ('\\frac{1}{2004!}', '\\frac{1}{2006!}'), ('10000', '10001'), ('10000', '9999.86'),
    ('A', 'B'),
    ('1/2', '0.501'), ('5 cm', '5 m'), ('x=5', 'y=5'), ('east', 'west'), ('7', ''),
    ('7', 'seven'),
    ('\\sqrt{2}', '\\sqrt{3}'), ('x>3', 'x<3'), ('2', '2x'), ('0', '1/2004!'), ('0x1f', '0x1e'),
    ('2 × 3 × 3', '18'), ('(1,2)', '(1,2,3)'), ('1/2', '2/4'), ('x+1', 'x+1.001'), ('100', '1'),
    ('\\begin{pmatrix}1\\\\2\\end{pmatrix}', '\\begin{pmatrix}1&2\\end{pmatrix}'),
    ('5', '5 or 6'),
    ('3_8', '4_8'), ('5', '?'), ('\\frac{}{2}', '0'), ('x^2+1', 'x^2+1=0'),
    ('3 km', '3 m'), ('3000', '3 km'), ('\\$5', '5 cents'), ('2 h', '2 min'), ('5', '5 million'),
    ('5 cm', '5 cm^2'), ('2', '2x^2'), ('2', '2xy'), ('0.5', '0.54'), ('x=5', '6')]

@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('gold, answer', SAME)
def test_the_same(gold, answer, strict): assert ok(gold, answer, strict) == 1

@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('gold, answer', OTHER)
def test_not_the_same(gold, answer, strict): assert ok(gold, answer, strict) == 0

@pytest.mark.parametrize('gold, answer', [('50', '50\\%'), ('50%',
    '50'),
    ('3.14159', '3.1416'), ('(3,\\infty)', 'x > 3'), ('52_7', '52')])
def test_lenient_only(gold, answer): assert ok(gold, answer, False) == 1 and ok(gold, answer) == 0

def test_rules_of_ones_own():
    assert verify('1/2', box('2/4'), strict=Rules(lowest=False)).answer == 1

@pytest.mark.parametrize('response', [
    'It is 7.', '7', 'The answer is 7', '\\boxed{7', '\\boxed{}', '\\boxed{8} or \\boxed{7}', None,
    '<think>\\boxed{7}', '<answer>7', '<answer>7</answer><answer>8</answer>',
    'box 7' + '\\boxed{'*999,
    '<answer>7</answer> or 8', '\\boxed{7} \\boxed{9}', '<answer>\\boxed{7}\\boxed{8}</answer>'])
def test_no_reward_for_a_loose_form(response):
    v = verify('7', response)
    assert v.answer == v.format == 0 and v.reason

@pytest.mark.parametrize('response', [
    '\\boxed{7}', '<answer>7</answer>', '<think>\\boxed{8}</think>\\boxed{7}',
    '<answer> \\boxed{7}',
    'first \\boxed{7}, so \\boxed{ 7 }', '<think>x</think><answer>\\boxed{7}</answer><|im_end|>\n'])
def test_rewarded_forms(response): assert verify('7', response).answer == 1

@pytest.mark.parametrize('response', ['A: 7', 'so\n#### 7', 'The answer is $7$.', 'makes 3+4 = 7.',
    '\\boxed{8}, no: \\boxed{7}', 'Final answer: 7 apples', '**Answer: 7**'])
def test_evaluation_looks_for_it(response): assert verify('7', response, strict=False).answer == 1

HOSTILE = ['10^10^10', '9^{9^{9^9}}', '9**9**9', '1000000!', '((10^6)!)!', '(10^5)!', '9'*10**6,
    '('*300 + '1' + ')'*300, '+'.join(['1']*400), "__import__('os').system('true')", '\\frac{'*400,
    '2^{99999999}', '\\sum_{i=1}^{10^9} i', '\\binom{1000000}{500000}', '3!!!!!!', 'lambda: 0',
    '(x+y+z+w)^{900}', '\\int e^{x^2}', '1e999999999', '{'*10**5, '\\sqrt'*300 + '2', '\x00', '٣',
    '\\left('*99, '$'*999, '\\def\\a{\\a\\a}\\a', '1/0', '0^{-1}', 'e^{e^{e^{e^9}}}', '\\ud800']

@pytest.mark.parametrize('text, paid', [
    ('so 3+4\nA: 7', 1), ('A: 7 apples\n<|im_end|>', 1), ('so\nA: 8', 0), ('A: 7\nA: 8', 0),
    ('A: 8\nA: 7', 0), ('A: 7\nor so', 0), ('it is A: 7', 0), ('<think>A: 7', 0), ('A:', 0),
    ('A: 8 \\boxed{7}', 1), ('#### 7', 1), ('A: 7\n#### 8', 0), ('A: 7 \\boxed{8}', 0)])
def test_a_marker_may_be_named(text, paid):
    assert verify('7', text).answer == paid
    assert verify('7', text, strict=Rules(marker=())).answer == (paid and 'boxed' in text)
    other = text.replace('A:', 'Ans:').replace('####', 'Ans:')
    for marker in ('Ans:', ('Ans:',), ['x', 'Ans:']):
        assert verify('7', other, strict=Rules(marker=marker)).answer == paid

def test_a_quoted_empty_box_is_no_answer():
    assert verify('7', 'within \\boxed{}: \\boxed{7}').answer == 1
    assert verify('7', '\\boxed{7} \\boxed{').answer == 0

@pytest.mark.parametrize('answer', HOSTILE)
def test_hostile_answers_are_wrong_in_time(answer):
    ok('x+1', '1+x')
    for wrap in (box, lambda s: f'<answer>{s}</answer>'):
        start = time.perf_counter()
        v = verify('12', wrap(answer))
        assert v.answer == 0 and v.reason and len(v.reason) < 200
        assert time.perf_counter() - start < 3
    assert ok('x+2', '2+x') == 1

BITS = ['\\frac', '{', '}', '(', ')', '[', ']', '1', '2', '10', '0', 'x', 'y', '^', '_', '!',
    '+', '-',
    '*', '/', '**', ',', '.', '%', ' ', '\\sqrt', '\\pi', '\\cup', '\\infty', '=', '<', '\\le',
    '\\text{',
    '\\boxed{', '\\\\', '&', '\\begin{pmatrix}', '\\end{pmatrix}', '\\pm', 'e', 'i', '\\ln', '|',
    '\\{',
    '\\}', '$', '\\sin', 'A', 'or', '٣', '½', '\x07', '<answer>', '</think>', '\\log_', '\ud800',
    'cm', ' km', ' h ', ' and ', '¢', 'A:', '####', '\n', '\\overline{', ' million',
    ' per ', '/s', '1 ', ':', '_7', '\\mod', '\\ldots', 'x=', '\\in', '\\text{A}', ' to ',
    'pm', '(A)', '\\begin{array}{c}', '\\end{array}', '[[1,2],[3,4]]', '\\mid', '²',
    'the answer is ']

def fuzz(n, seed):
    "Random answers from pieces of LaTeX: (gold, response)."
    rng = Random(seed)
    for i in range(n):
        text = ''.join(rng.choices(BITS, k=rng.randrange(1, 16)))
        yield rng.choice(['12', '\\frac{1}{2}', 'x+1', '(1,2)', '\\sqrt{2}', '5 km', '\\$5']), \
            text if i % 8 == 0 else f'\\boxed{{{text}}}'

def test_fuzz_never_raises_never_hangs():
    verify_all(['x']*9, [f'\\boxed{{x+{i}}}' for i in range(9)])   # the workers have started
    for gold, response in fuzz(1500, 0):
        start = time.perf_counter()
        v = verify(gold, response, strict=len(response) % 2 == 0)
        assert v.answer in (0, 1) and v.reason and '\n' not in v.reason
        assert time.perf_counter() - start < 4

def test_a_late_worker_is_killed_and_replaced():
    pool = Pool(1, seconds=.4)
    try:
        assert pool.ask('x+1', '1+x', False, False)[0] is True
        os.kill(next(iter(pool.all)).process.pid, signal.SIGSTOP)
        start = time.perf_counter()
        assert pool.ask('x+1', '2+x', False, False) == (None, 'not decided in 0.4 s')
        assert time.perf_counter() - start < 3 and pool.kills == 1
        assert pool.ask('x+1', '1+x', False, False)[0] is True
        os.kill(next(iter(pool.all)).process.pid, signal.SIGKILL)
        assert pool.ask('x+1', '1+x', False, False)[0] is True, 'asked again'
    finally: pool.close()
    with pytest.raises(R1Error, match='closed'): pool.ask('1', '1', False, False)

def test_works_in_threads():
    found = []
    def go(i): found.append(verify(f'x+{i}', box(f'{i}+x')).answer)
    threads = [threading.Thread(target=go, args=(i,)) for i in range(8)]
    for t in threads: t.start()
    for t in threads: t.join(30)
    assert found == [1.]*8
    assert [v.answer for v in verify_all(['1', 'x+1'], [box('1'), box('x')])] == [1, 0]

def test_no_process_outlives_its_parent():
    code = ("from r1nb.math_answers import POOL, verify\nverify('x+1', '\\\\boxed{1+x}')\n"
            "print(*[w.process.pid for p in POOL.values() for w in p.all])")
    pids = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          timeout=60).stdout
    assert pids.split()
    for pid in map(int, pids.split()):
        with pytest.raises(ProcessLookupError): os.kill(pid, 0)

def test_parts():
    assert boxes('\\boxed{a{b}c} \\boxed {d} \\boxed{') == ['a{b}c', 'd', None]
    assert number(tidy('1\\frac{1}{2}')) == 1.5 and number('x') is None
    assert refuse('1+1') == '' and 'deep' in refuse('('*20)
    assert extract('<answer>x</answer>') == ('x', '')
    assert verify(' ', '\\boxed{1}').reason == 'the known answer is empty'
    with pytest.raises(R1Error, match='give text'): verify(7, '\\boxed{7}')

FIXTURE = Path(__file__).parent/'fixtures/graded.jsonl'

@pytest.mark.parametrize('strict', [True, False])
def test_graded_answers_of_models(strict):
    "A small part of what tests/measure_answers.py measures, with us in the repository."
    rows = [json.loads(s) for s in FIXTURE.read_text(encoding='utf-8').splitlines()]
    wrong = [(r['label'], r['id']) for r in rows
             if r['label'] != bool(verify(r['gold'], r['response'], strict=strict).answer)]
    assert len(rows) > 190 and not [w for w in wrong if not w[0]], 'a wrong answer passed'
    assert len(wrong) <= (8 if strict else 0), wrong   # strict: unmarked, or rounded by request

def test_trl_reward():
    f = trl_reward()
    with pytest.raises(R1Error, match="no column 'answer'"): f(['x'], ['\\boxed{7}'], gold=['7'])
    said, found = ['\\boxed{1+x}', '\\boxed{8}', 'x', ''], []
    def go(): found.append(f(['?']*4, said, answer=['x+1', '7', 'x', 7]))
    threads = [threading.Thread(target=go) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join(60)
    assert found == [[1.1, .1, 0., 0.]]*4

def test_trl_trains_with_it(tmp_path):
    "GRPOTrainer itself, on a model of one layer, learns to write what these verdicts pay for."
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    trl, torch = pytest.importorskip('trl'), pytest.importorskip('torch')
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    words = ['<pad>', '<end>', 'A:', '7', '8', 'x', '?', 'add']
    tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token='<pad>'))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tok = PreTrainedTokenizerFast(tokenizer_object=tok, pad_token='<pad>', eos_token='<end>',
                                  padding_side='left')
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=1, bos_token_id=1,
        num_attention_heads=2, num_key_value_heads=1, pad_token_id=0, eos_token_id=1))
    paid, f = [], trl_reward()
    def spy(**kw): paid.append((kw['completions'], kw['answer'], f(**kw))); return paid[-1][2]
    args = trl.GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[],
        save_strategy='no', num_generations=32, max_steps=15, per_device_train_batch_size=64,
        max_completion_length=2, gradient_checkpointing=False, learning_rate=3e-2, temperature=1.)
    trl.GRPOTrainer(model=model, args=args, processing_class=tok, reward_funcs=spy,
        train_dataset=Dataset.from_dict({'prompt': ['add ?']*32, 'answer': ['7']*32})).train()
    told = [(c, r) for cs, _, rs in paid for c, r in zip(cs, rs)]
    assert {r for _, r in told} == {0., .1, 1.1}
    assert {c.strip() for c, r in told if r == 1.1} == {'A: 7'}
    mean = [sum(rs)/len(rs) for _, _, rs in paid]
    assert mean[-1] > .2 > 5*mean[0], mean
