"""Four engines behind one `ask`: the same greedy answers, and servers that fail.

The tests flagged vllm need its environment, see tests/test_vllm.py, with fastcore beside it:
    R1NB_VLLM_PYTHON=/that/environment/bin/python pytest -m vllm tests/test_teacher.py
"""
import json, os, random, signal, socket, subprocess, sys, threading, time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
import pytest
import torch
from r1nb.core import R1Error
from r1nb.endpoint import Busy, Completion, stand_in
from r1nb.engines import seeds
from r1nb.model import R1Config, R1Model
from r1nb.teacher import (estimate, fingerprint, open_teacher, open_teachers, read_file, read_spec)

PROMPTS = ['Make 43 from 20 4 16 11 .', 'Make 24 from 1 5 5 5 .', 'Make 99 from 9 11 1 .',
           'Compute 3 + 4 .', 'Make 10 from 3 3 3 .']
TINY = R1Config(hidden_size=64, num_hidden_layers=2, intermediate_size=96, moe_intermediate_size=48,
                num_nextn_predict_layers=0, initializer_range=.1)
ROOT = Path(__file__).parent.parent

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    torch.manual_seed(0)
    return R1Model(TINY).save_pretrained(tmp_path_factory.mktemp('m')/'tiny')

# ---- engines in this process -------------------------------------------------------------------
def test_local_and_transformers_write_the_same(folder):
    pytest.importorskip('transformers')
    ours, theirs = (open_teacher(e, str(folder)).ask(PROMPTS, 1, 0, 40, 0.)
                    for e in ('local', 'transformers'))
    assert ours == theirs and len({c.text for g in ours for c in g}) == len(PROMPTS)

@pytest.mark.parametrize('engine', ['local', 'transformers'])
def test_groups_limits_and_seeds(folder, engine):
    if engine == 'transformers': pytest.importorskip('transformers')
    t = open_teacher(engine, str(folder), rows=5)
    a, b, c = (t.ask(PROMPTS, 4, s, 30) for s in (0, 0, 1))
    assert a == b != c and [len(g) for g in a] == [4]*5
    for p, g in zip(PROMPTS, a):
        assert len({x.text for x in g}) > 1
        assert [x.prompt_tokens for x in g] == [t.reads(p, None), 0, 0, 0]
        for x in g: assert 1 <= x.tokens == len(x.ids) <= 30 and x.finished == (x.ids[-1] == 1)
        for x in g: assert '<|end|>' not in x.text and x.text == x.text.strip()

def test_sampling_in_transformers_keeps_its_hands_off_the_seed(folder):
    pytest.importorskip('transformers')
    t = open_teacher('transformers', str(folder))
    t.load()
    torch.manual_seed(5); want = torch.rand(3)
    torch.manual_seed(5); t.ask(PROMPTS, 2, 0, 5); assert torch.equal(torch.rand(3), want)

def test_transformers_samples_from_the_model_and_nothing_else(folder):
    "generate() keeps 50 tokens unless told not to; the shares of first tokens must be the model's."
    pytest.importorskip('transformers')
    t = open_teacher('transformers', str(folder), rows=4000)
    first = [c.ids[0] for c in t.ask(PROMPTS[:1], 4000, 0, 1)[0]]
    model = R1Model.from_pretrained(folder)
    from r1nb.tokens import chat
    with torch.no_grad(): p = model(torch.tensor([chat(PROMPTS[0])]))[0, -1].softmax(-1)
    seen = torch.bincount(torch.tensor(first), minlength=len(p))
    assert len(set(first)) > 60
    assert (seen/4000 - p).abs().sum() < 1.3*(p*(1 - p)*2/3.14159/4000).sqrt().sum()

def test_a_directive(folder):
    pytest.importorskip('transformers')
    a = open_teacher('local', str(folder)).ask(PROMPTS[:1], 1, 0, 9, 0., 1., 'Check:')
    t = open_teacher('transformers', str(folder))
    with pytest.raises(R1Error, match='system_role=False'): t.ask(PROMPTS[:1], 1, system='Check:')
    t.system_role = False
    assert t.ask(PROMPTS[:1], 1, 0, 9, 0., 1., 'Check:') == a
    assert a != open_teacher('local', str(folder)).ask(PROMPTS[:1], 1, 0, 9, 0.)

def test_a_context_too_short(folder):
    pytest.importorskip('transformers')
    for engine in ('local', 'transformers'):
        with pytest.raises(R1Error, match='exceed the context of 512'):
            open_teacher(engine, str(folder)).ask(PROMPTS, max_new=600)

def test_a_checkpoint_that_lacks_tensors(folder, tmp_path):
    pytest.importorskip('transformers')
    from safetensors.torch import load_file, save_file
    for f in folder.iterdir(): (tmp_path/f.name).write_bytes(f.read_bytes())
    state = load_file(tmp_path/'model.safetensors')
    del state['model.layers.1.self_attn.o_proj.weight']
    save_file(state, tmp_path/'model.safetensors', {'format': 'pt'})
    for engine in ('local', 'transformers'):
        with pytest.raises(R1Error, match='lacks 1 tensor'):
            open_teacher(engine, str(tmp_path)).ask(PROMPTS)

def test_a_model_in_memory(folder):
    model = R1Model.from_pretrained(folder)
    t = open_teacher('local', model, name='fresh')
    assert t.ask(PROMPTS, 2) == open_teacher('local', str(folder)).ask(PROMPTS, 2)
    mark = fingerprint(t)
    with torch.no_grad(): model.lm_head.weight[0, 0] += 1
    assert fingerprint(t) != mark and t.provenance()['model'] == 'in memory'
    with pytest.raises(R1Error, match='no model'): open_teacher('http', model)

def test_threads_get_what_they_asked_for(folder):
    t = open_teacher('local', str(folder))
    want, got = [t.ask(PROMPTS, 2, s, 12) for s in range(6)], [None]*6
    def work(s): got[s] = t.ask(PROMPTS, 2, s, 12)
    threads = [threading.Thread(target=work, args=(s,)) for s in range(6)]
    for x in threads: x.start()
    for x in threads: x.join()
    assert got == want

@pytest.mark.parametrize('how, word', [(dict(n=0), 'n=0'), (dict(max_new=0), 'max_new=0'),
    (dict(temperature=-1.), 'temperature'), (dict(temperature=float('nan')), 'temperature'),
    (dict(top_p=0.), 'top_p'), (dict(top_p=1.1), 'top_p'), (dict(n=2, temperature=0.), '2 times'),
    (dict(prompts=[]), 'at least one'), (dict(prompts=['']), 'empty'), (dict(prompts=[7]), 'empty'),
    (dict(prompts=['Hello']), "'Hello'"), (dict(max_new=600), 'context')])
def test_what_cannot_be_asked(folder, how, word):
    with pytest.raises(R1Error, match=word) as e:
        open_teacher('local', str(folder)).ask(**dict(prompts=PROMPTS[:1]) | how)
    assert '\n' not in str(e.value)

def test_missing_and_broken_checkpoints(folder, tmp_path):
    for engine in ('local', 'transformers'):
        with pytest.raises(R1Error, match='no checkpoint'):
            open_teacher(engine, str(tmp_path/'none')).ask(PROMPTS)
    (tmp_path/'config.json').write_text('{')
    for engine in ('local', 'transformers'):
        with pytest.raises(R1Error) as e: open_teacher(engine, str(tmp_path)).ask(PROMPTS)
        assert '\n' not in str(e.value)
    torch.manual_seed(0)
    other = R1Model(replace(TINY, vocab_size=300)).save_pretrained(tmp_path/'other')
    with pytest.raises(R1Error, match='300 words'): open_teacher('local', str(other)).ask(PROMPTS)

# ---- servers -----------------------------------------------------------------------------------
def answer(texts, thought=None, **kw):
    rows = [dict(message=dict(content=t, reasoning_content=thought), finish_reason='stop')
            for t in texts]
    return (200, {}, dict(model='m-1', choices=rows, usage=dict(prompt_tokens=10,
            completion_tokens=7*len(texts))) | kw)

def numbered(body):
    "n answers that show the seeds they came from."
    return answer([str(body['seed'] + i) for i in range(body.get('n', 1))])

def test_what_is_sent():
    seen = []
    with stand_in(lambda b: seen.append(b) or numbered(b)) as url:
        t = open_teacher('http', 'org/m', url=url, extra=dict(seed=None, top_k=5))
        with pytest.raises(Exception): t.ask(['a'])
        t.extra = dict(top_k=5)
        t.ask(['a'], 2, 0, 9, .6, .9, 'be brief')
        t.system_role = False
        t.ask(['a'], 1, 0, 9, .6, .9, 'be brief')
    assert 'seed' not in seen[0] and 'n' not in seen[0]
    want = dict(model='org/m', n=2, max_tokens=9, temperature=.6, top_p=.9, top_k=5)
    assert {k: seen[1][k] for k in want} == want
    assert seen[1]['messages'] == [dict(role='system', content='be brief'),
                                   dict(role='user', content='a')]
    assert seen[2]['messages'] == [dict(role='user', content='be brief\n\na')]

def test_order_prices_and_seeds():
    with stand_in(numbered) as url:
        t = open_teacher('http', 'm', url=url, usd_in=1., usd_out=10.)
        out = t.ask(['a', 'b', 'a'], 3, seed=4)
        assert t.ask(['b'], 3, seed=4)[0] == out[1] and t.ask(['b'], 3, seed=5)[0] != out[1]
    assert len({c.text for g in out for c in g}) == 9
    assert sum(map(t.usd, out[0])) == pytest.approx((10*1 + 21*10)/1e6)
    assert t.provenance()['reported'] == ['m-1']

def test_seeds_do_not_overlap():
    rng = random.Random(0)
    some = [s for k in range(2000) for s in seeds(k, ['a', 'b', 'a', str(rng.random())])]
    assert len(set(some)) > 7995 and max(some) < 2**31   # birthdays: 0.015 pairs expected

@pytest.mark.parametrize('refuse', [False, True])
def test_a_server_that_gives_one_at_a_time(refuse):
    calls = []
    def one(b):
        calls.append(b.get('n', 1))
        if refuse and b.get('n', 1) > 1: return 400, {}, dict(error=dict(message='n must be 1'))
        return answer([str(b['seed'])])
    with stand_in(one) as url:
        t = open_teacher('http', 'm', url=url)
        a, b = t.ask(['a', 'b'], 4)
    assert len({c.text for c in a + b}) == 8 and [c.prompt_tokens for c in a] == [10]*4
    assert calls == ([4] + [1]*8 if refuse else [4] + [1]*7)

def test_what_is_paid_for_survives_a_fault():
    calls, down = [], [False]
    def one(b):
        calls.append(b['seed'])
        if len(calls) in (4, 6, 9): return 503, {'Retry-After': '0'}, {}
        return answer([str(b['seed'])])
    with stand_in(one) as url:
        t, out, busy = open_teacher('http', 'm', url=url), None, 0
        while out is None:
            try: out = t.ask(['a', 'b', 'c'], 3)
            except Busy as e: busy += 1; assert e.wait == 0
    assert busy == 3 and len(calls) == 9 + 3 and not t.half
    assert len({c.text for g in out for c in g}) == 9

def test_a_server_that_ignores_the_temperature_is_told_by_its_answers():
    with stand_in(lambda b: answer(['x' if b['model'] == 'deaf' else str(b['seed'])])) as url:
        deaf, good = (open_teacher('http', m, url=url) for m in ('deaf', 'good'))
        for t in (deaf, good): t.ask(['a', 'b'], 3); t.ask(['a'])
    assert deaf.provenance()['alike'] == [2, 2] and good.provenance()['alike'] == [0, 2]

def test_more_answers_than_asked_for():
    with stand_in(lambda b: answer(['x']*9)) as url:
        assert len(open_teacher('http', 'm', url=url).ask(['a'], 2)[0]) == 2

def test_wrong_model_and_key_name_both(monkeypatch):
    for status in (401, 404):
        with stand_in(lambda b: (status, {}, dict(error=dict(message='no\nway')))) as url:
            with pytest.raises(R1Error, match=f'm-x: {url}.*{status}.*no way') as e:
                open_teacher('http', 'm-x', url=url).ask(['a'])
            assert not isinstance(e.value, Busy) and '\n' not in str(e.value)

def test_the_key_leaves_no_trace(monkeypatch):
    monkeypatch.setenv('OUR_KEY', 'hush-123')
    with stand_in(numbered) as url:
        t = open_teacher('http', 'm', url=url, key='OUR_KEY')
        t.ask(['a'])
    assert 'hush' not in repr(t) + json.dumps(t.provenance()) + repr(vars(t)) + repr(vars(t.end))

def test_reasoning_and_length():
    row = dict(message=dict(content=None, reasoning_content='so 7'), finish_reason='length')
    with stand_in(lambda b: (200, {}, dict(choices=[row]))) as url:
        c = open_teacher('http', 'm', url=url).ask(['a'])[0][0]
    assert (c.text, c.finished, c.ids) == ('<think>\nso 7', False, None) and c.tokens > 0

def test_many_threads_and_faults():
    rng, lock, sent = random.Random(0), threading.Lock(), []
    def flaky(b):
        with lock: x = rng.random()
        if x < .05: return None
        if x < .1: return 429, {'Retry-After': '0'}, {}
        if x < .15: return 500, {}, b'oops'
        if x < .2: return 200, {}, b'{"choices": ['
        return numbered(b)
    with stand_in(flaky) as url:
        t, todo, out = open_teacher('http', 'm', url=url), list(range(1000)), {}
        def work():
            while todo:
                try: k = todo.pop()
                except IndexError: return
                while k not in out:
                    try: out[k] = t.ask([f'p{k}'], 2)[0]
                    except Busy: pass
        threads = [threading.Thread(target=work) for _ in range(8)]
        for x in threads: x.start()
        for x in threads: x.join()
        want = {k: [str(s), str(s + 1)] for k in range(1000) for s in seeds(0, [f'p{k}'])}
    assert {k: [c.text for c in g] for k, g in out.items()} == want

# ---- several teachers --------------------------------------------------------------------------
def test_specs():
    assert read_spec('http:deepseek-r1:7b@url=http://127.0.0.1:1/v1,usd_out=2.19') == dict(
        engine='http', model='deepseek-r1:7b', url='http://127.0.0.1:1/v1', usd_out='2.19')
    assert read_spec('local:a@b/c') == dict(engine='local', model='a@b/c')
    assert read_spec('vllm:o/m@licence=MIT') == dict(engine='vllm', model='o/m', licence='MIT')
    t, = open_teachers(['vllm:o/m@licence=MIT OR Apache-2.0,usd_out=2,context=99,batch=8'])
    assert (t.usd_out, t.context, t.batch, t.name) == (2., 99, 8, 'm')
    assert open_teachers(['transformers:x@system_role=false'])[0].system_role is False

@pytest.mark.parametrize('spec, word', [('', 'names no teacher'), ('nano', 'names no teacher'),
    ('gpt:4', 'names no teacher'), ('local:', 'names no teacher'), ('local:none', 'no checkpoint'),
    ('local:nano@bach=3', 'use batch'), ('local:nano@batch=0', 'batch=0'),
    ('local:nano@batch=1.5', "batch='1.5'"), ('local:nano@usd_in=-1', 'usd_in'),
    ('local:nano@usd_in=nan', 'usd_in'), ('local:nano@system_role=maybe', 'system_role'),
    ('local:nano@licence=do what you want', 'licence'), ('http:m@extra={}', 'in a file'),
    ('http:m@url=http://u:p@h/v1', 'password'), ('http:m@timeout=0', 'timeout'),
    ('http:m@key=sk-secret', 'never the secret'), ('none.json', 'no such file')])
def test_specs_that_are_wrong(spec, word):
    with pytest.raises(R1Error, match=word) as e: open_teachers([spec])
    assert '\n' not in str(e.value) and 'sk-secret' not in str(e.value)

def test_a_file_of_teachers(tmp_path):
    f = tmp_path/'t.json'
    f.write_text(json.dumps(dict(a=dict(engine='local', model='nano', licence='MIT', usd_out=2),
                                 b=dict(engine='http', model='m', extra=dict(top_k=5)))))
    a, b = open_teachers([f])
    assert (a.name, a.usd_out, b.name, b.extra) == ('a', 2., 'b', dict(top_k=5))
    with pytest.raises(R1Error, match="two teachers are called 'a'"):
        open_teachers([f, 'local:nano@name=a'])
    for text in ('', '[]', '{}', '{"a": 1}', '{"a": {"engine": "local"}}', '['*9000, '\x00'):
        f.write_text(text)
        with pytest.raises(R1Error, match='t.json') as e: read_file(f)
        assert '\n' not in str(e.value)
    for bad in (dict(batch=True), dict(batch='x'), dict(usd_in=[]), dict(name=3), dict(usd_in=None),
                dict(nme='x')):
        f.write_text(json.dumps(dict(a=dict(engine='local', model='nano') | bad)))
        with pytest.raises(R1Error): open_teachers([f])

def test_provenance_is_json_and_tells_teachers_apart(folder):
    a, b = open_teachers([f'local:{folder}', 'local:nano'])
    for t in (a, b): assert json.loads(json.dumps(t.provenance())) == t.provenance()
    assert a.provenance()['sha256'] != b.provenance()['sha256']
    assert {'name', 'engine', 'model', 'licence', 'settings', 'r1nb'} <= a.provenance().keys()

def test_the_estimate_is_the_bill(folder):
    t = open_teacher('local', str(folder), usd_in=3., usd_out=7.)
    out = t.ask(PROMPTS, 3, 0, 20)
    e = estimate(t, PROMPTS, 3, sum(c.tokens for g in out for c in g)/15)
    assert e['usd'] == pytest.approx(sum(t.usd(c) for g in out for c in g)) and e['counted']
    assert estimate(open_teacher('http', 'm', usd_in=1e6), iter(['x'*300]*2), 4, 9)['usd'] > 100

# ---- the real thing ----------------------------------------------------------------------------
SHIPPED = ROOT/'r1nb'/'assets'/'nano'
INSIDE = '''
import json, sys
from dataclasses import asdict
if __name__ == '__main__':
    from r1nb.core import R1Error
    from r1nb.teacher import open_teacher
    prompts = json.loads(sys.argv[2])
    t = open_teacher('vllm', sys.argv[1], dtype='float32', context=256,
                     extra=dict(enforce_eager=True, max_num_seqs=16))
    out = [t.ask(prompts, 1, 0, 48, 0.), t.ask(prompts, 4, 1, 48),
           t.ask(prompts[::-1], 4, 1, 48)[::-1]]
    try: t.ask([' '.join(['3']*400)])
    except R1Error as e: print('ERROR', e)
    print('SAID', json.dumps([[[asdict(c) for c in g] for g in o] for o in out]))
'''

def vllm_python():
    found = os.environ.get('R1NB_VLLM_PYTHON') or (sys.executable if find_spec('vllm') else None)
    if not found: pytest.skip('set R1NB_VLLM_PYTHON to the python of an environment with vLLM')
    return found

def settings():
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'VLLM_MLA_DISABLE')}
    return env | dict(VLLM_CPU_KVCACHE_SPACE='1', HF_HUB_OFFLINE='1', VLLM_NO_USAGE_STATS='1')

@pytest.mark.vllm
def test_vllm_in_its_process_writes_the_same(tmp_path):
    (tmp_path/'inside.py').write_text(INSIDE)
    start = time.monotonic()
    r = subprocess.run([vllm_python(), tmp_path/'inside.py', SHIPPED, json.dumps(PROMPTS)],
                       env=settings() | dict(PYTHONPATH=str(ROOT)), cwd=tmp_path, timeout=600,
                       capture_output=True, text=True)
    said = [l[5:] for l in r.stdout.splitlines() if l.startswith('SAID ')]
    assert said, r.stdout[-2000:] + r.stderr[-4000:]
    assert 'ERROR nano: ' in r.stdout, r.stdout[-2000:]
    greedy, some, turned = [[[Completion(**c) for c in g] for g in o] for o in json.loads(said[0])]
    assert greedy == open_teacher('local', 'nano').ask(PROMPTS, 1, 0, 48, 0.)
    assert some == turned and all(len({c.text for c in g}) > 1 for g in some)
    print(f'vLLM in its process: {time.monotonic() - start:.0f} s')

@pytest.fixture(scope='module')
def server(tmp_path_factory):
    "A vLLM server of our own on loopback; only what was started here is ended."
    with socket.create_server(('127.0.0.1', 0)) as s: port = s.getsockname()[1]
    log = tmp_path_factory.mktemp('vllm')/'log'
    ask = ['-m', 'vllm.entrypoints.openai.api_server', '--model', SHIPPED, '--port', str(port),
           '--served-model-name', 'nano', '--host', '127.0.0.1', '--dtype', 'float32',
           '--max-model-len', '256', '--enforce-eager', '--max-num-seqs', '32']
    start = time.monotonic()
    with open(log, 'w') as f:
        p = subprocess.Popen([vllm_python(), *map(str, ask)], stdout=f, stderr=f, cwd=log.parent,
                             env=settings() | dict(VLLM_MLA_DISABLE='1'), start_new_session=True)
    try:
        t = open_teacher('http', 'nano', url=f'http://127.0.0.1:{port}/v1', timeout=300.)
        while True:
            assert p.poll() is None and time.monotonic() - start < 400, log.read_text()[-4000:]
            try: t.ask(PROMPTS[:1], 1, 0, 1); break
            except Busy: time.sleep(1)
        print(f'vLLM server up after {time.monotonic() - start:.0f} s')
        yield t
    finally:
        os.killpg(p.pid, signal.SIGTERM)
        try: p.wait(30)
        except subprocess.TimeoutExpired: os.killpg(p.pid, signal.SIGKILL)

@pytest.mark.vllm
def test_a_real_server_writes_the_same(server):
    want = open_teacher('local', 'nano').ask(PROMPTS, 1, 0, 48, 0.)
    assert [[replace(c, ids=None) for c in g] for g in want] == server.ask(PROMPTS, 1, 0, 48, 0.)
    server.extra = dict(return_token_ids=True)
    assert server.ask(PROMPTS, 1, 0, 48, 0.) == want
    server.extra = None

@pytest.mark.vllm
def test_a_real_server_in_parallel_and_its_refusals(server):
    from concurrent.futures import ThreadPoolExecutor
    start = time.monotonic()
    def one(i): return server.ask([PROMPTS[i % 5]], 4, i, 48)[0]
    with ThreadPoolExecutor(8) as pool: a, b = (list(pool.map(one, range(40))) for _ in range(2))
    took = time.monotonic() - start
    assert [len(g) for g in a] == [4]*40
    same = sum(x.text == y.text for g, h in zip(a, b) for x, y in zip(g, h))
    assert same >= 150   # a batch of another shape rounds otherwise, and a sample may tip over
    print(f'{80/took:.0f} requests/s, {sum(c.tokens for g in a + b for c in g)/took:.0f} tokens/s, '
          f'{same} of 160 answers repeated')
    with pytest.raises(R1Error, match='nanx: http://127.0.0.1.*404'):
        open_teacher('http', 'nanx', url=server.url).ask(PROMPTS)
    with pytest.raises(R1Error, match='only user and assistant'):
        server.ask(PROMPTS[:1], 1, 0, 9, system='Check:')
    with pytest.raises(R1Error, match='max_model_len'): server.ask(PROMPTS[:1], 1, 0, 4000)
