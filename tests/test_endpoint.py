"One request to a server that misbehaves in every way a socket allows."
import json, os, random, socket, ssl, struct, threading, time
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
import pytest
from r1nb.core import R1Error
from r1nb.endpoint import (Busy, Endpoint, Refused, clean, completions, read_key, check_url,
                           rejoin, retry_after, shares, stand_in)

ELSEWHERE = 'file:' + '//' + '/etc/passwd'
GOOD = dict(model='m', choices=[dict(message=dict(content='yes'), finish_reason='stop')],
            usage=dict(prompt_tokens=3, completion_tokens=2))

@contextmanager
def raw(serve):
    "A listener that calls serve(connection) for each caller, in a thread."
    s = socket.create_server(('127.0.0.1', 0))
    def loop():
        while True:
            try: c, _ = s.accept()
            except OSError: return
            threading.Thread(target=one, args=(c,), daemon=True).start()
    def one(c):
        try: serve(c)
        except OSError: pass
        finally: c.close()
    threading.Thread(target=loop, daemon=True).start()
    try: yield f'http://127.0.0.1:{s.getsockname()[1]}/v1'
    finally: s.close()

def ask(url, timeout=5., limit=10_000, **kw):
    return Endpoint(url, timeout=timeout, **kw).post('/chat/completions', dict(a=1), limit)

def said(status=200, body=GOOD, head={}):
    with stand_in(lambda _: (status, head, body)) as url: return ask(url)

def http(body, head=b'', status=b'200 OK'):
    return b'HTTP/1.1 ' + status + b'\r\n' + head + b'\r\n' + body

def drip(c, data):
    for b in data:
        c.sendall(bytes([b])); time.sleep(.05)

def reset(c):
    c.recv(10)
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))

def endless(c):
    c.recv(4096); c.sendall(http(b'', b'Transfer-Encoding: chunked\r\n'))
    while True: c.sendall(b'400\r\n' + b'x'*1024 + b'\r\n')

@pytest.mark.parametrize('status', [408, 425, 429, 500, 502, 503, 504, 529])
def test_passing_faults_are_busy(status):
    with pytest.raises(Busy, match=f'status {status}: later'):
        said(status, dict(error=dict(message='later')))

@pytest.mark.parametrize('status', [301, 302, 307, 400, 401, 402, 403, 404, 405, 413, 422, 501])
def test_lasting_faults_are_refused(status):
    with pytest.raises(Refused, match=f'127.0.0.1.*status {status}') as e:
        said(status, dict(detail='no'), {'Location': ELSEWHERE})
    assert e.value.status == status and '\n' not in str(e.value)

def test_no_redirect_is_followed():
    seen = []
    with stand_in(lambda b: seen.append(b) or (200, {}, GOOD)) as other:
        with pytest.raises(Refused, match='it points to'): said(302, b'', {'Location': other})
    assert not seen

def test_no_money_is_not_busy():
    with pytest.raises(Refused, match='quota'):
        said(429, dict(error=dict(message='quota', code='insufficient_quota')))

@pytest.mark.parametrize('code, kind', [(429, Busy), (500, Busy), (None, Busy), (404, Refused),
                                        ('odd', Busy)])
def test_an_error_inside_a_good_status(code, kind):
    with pytest.raises(kind, match='broken'):
        said(200, dict(error=dict(message='broken', code=code)))

@pytest.mark.parametrize('body', [b'', b'<html>502</html>', b'[1]', b'{"a":', b'\xff\xfe', b'null',
                                  b'['*9000, b'{"a":' + b'9'*6000 + b'}', b'NaN'])
def test_a_body_that_is_no_json_object(body):
    with pytest.raises(Busy, match='no JSON object'): said(200, body)

@pytest.mark.parametrize('head, wait', [('7', 7), ('0', 0), ('1.5', 1.5), ('-3', 0), ('1e99', 3600),
    ('nan', None), ('soon', None), ('', None), (None, None), ('inf', 3600), ('9'*5000, 3600)])
def test_retry_after(head, wait):
    assert retry_after(head) == wait
    if head:
        with pytest.raises(Busy) as e: said(429, b'', {'Retry-After': head})
        assert e.value.wait == wait

def test_retry_after_a_date():
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    date = format_datetime(now + timedelta(seconds=90), usegmt=True)
    assert date.endswith('GMT') and retry_after(date, now.timestamp()) == 90
    assert retry_after(date, now.timestamp() + 100) == 0

SERVERS = dict(
    refuses=None, resets=reset, hangs_up=lambda c: c.recv(10),
    silent=lambda c: time.sleep(3), drips_head=lambda c: drip(c, http(b'{}'*99)),
    drips_body=lambda c: drip(c, http(b' '*999, b'Content-Length: 999\r\n')),
    short=lambda c: (c.recv(4096), c.sendall(http(b'{', b'Content-Length: 99\r\n'))),
    garbage=lambda c: (c.recv(4096), c.sendall(b'\x16\x03\x01 hello\r\n\r\n')),
    many_heads=lambda c: (c.recv(4096), c.sendall(http(b'', b'a: b\r\n'*300))),
    long_head=lambda c: (c.recv(4096), c.sendall(http(b'', b'a: ' + b'b'*70_000 + b'\r\n'))),
    bad_chunk=lambda c: (c.recv(4096),
                         c.sendall(http(b'zz\r\n', b'Transfer-Encoding: chunked\r\n'))))

@pytest.mark.parametrize('name', SERVERS)
def test_network_faults_are_busy(name):
    start = time.monotonic()
    if name == 'refuses':
        with socket.create_server(('127.0.0.1', 0)) as s: port = s.getsockname()[1]
        with pytest.raises(Busy, match='refused'): ask(f'http://127.0.0.1:{port}/v1')
        return
    with raw(SERVERS[name]) as url:
        with pytest.raises(Busy) as e: ask(url, timeout=.5)
    assert time.monotonic() - start < 2 and '\n' not in str(e.value)
    if name in ('silent', 'drips_head', 'drips_body'):
        assert 'no answer within 0.5 s' in str(e.value)

@pytest.mark.parametrize('serve', [endless,
    lambda c: (c.recv(4096), c.sendall(http(b'x'*20_000, b'Content-Length: 20000\r\n'))),
    lambda c: (c.recv(4096), c.sendall(http(b'x'*20_000)))])
def test_a_huge_answer_is_not_read(serve):
    with raw(serve) as url:
        with pytest.raises(R1Error, match='more than 10000 bytes'): ask(url)

def test_the_thread_and_its_connection_survive_a_fault():
    script = iter([(200, {}, GOOD), None, (500, {}, b''), (200, {}, GOOD), (200, {}, GOOD)])
    with stand_in(lambda _: next(script)) as url:
        e, out = Endpoint(url, timeout=5), []
        for _ in range(5):
            try: out.append(e.post('/x', {}))
            except Busy: out.append(None)
    assert out == [GOOD, None, None, GOOD, GOOD]

def test_a_connection_the_server_closed_meanwhile_is_opened_anew():
    def serve(c):
        c.recv(4096); data = json.dumps(GOOD).encode()
        c.sendall(http(data, b'Content-Length: %d\r\n' % len(data)))
    with raw(serve) as url:
        e = Endpoint(url, timeout=5)
        for _ in range(5):
            assert e.post('/x', {}) == GOOD
            time.sleep(.02)

def test_one_connection_a_thread_is_reused():
    callers = []
    def serve(c):
        callers.append(c); data = json.dumps(GOOD).encode()
        while asked := c.recv(4096):
            while not asked.endswith(b'{}'): asked += c.recv(4096)
            c.sendall(http(data, b'Content-Length: %d\r\n' % len(data)))
    with raw(serve) as url:
        e = Endpoint(url, timeout=5)
        def work(): [e.post('/x', {}) for _ in range(20)]
        threads = [threading.Thread(target=work) for _ in range(4)]
        for t in threads: t.start()
        for t in threads: t.join()
    assert len(callers) == 4

def test_time_out_threads_do_not_pile_up():
    with stand_in(lambda _: (200, {}, GOOD)) as url:
        e = Endpoint(url, timeout=500)
        for _ in range(50): e.post('/x', {})
        assert sum(isinstance(t, threading.Timer) for t in threading.enumerate()) <= 1

# ---- addresses and keys ------------------------------------------------------------------------
@pytest.mark.parametrize('url', ['', 'x', ELSEWHERE, 'ftp://a/v1', 'http://',
    'http://a:b/v1', 'http://a:99999/v1', 'http://a b/v1',
    'http://a/v1\r\nX: y', 'http://ä/v1', 'http://a/v1?k=1',
    'http://a/v1#x', None, 7, 'http://:0/v1', 'gopher://a', 'http://[::1', 'http://' + 'a'*300])
def test_addresses_that_are_none(url):
    with pytest.raises(R1Error) as e: ask(url)
    assert '\n' not in str(e.value)

def test_a_password_in_an_address_is_not_repeated():
    with pytest.raises(R1Error, match='may hold a password') as e: check_url('https://me:hush@a/v1')
    assert 'hush' not in str(e.value)

def test_the_key_is_sent_and_never_shown(monkeypatch):
    monkeypatch.setenv('OUR_KEY', ' hush-123\n')
    heads = []
    def serve(c):
        heads.append(c.recv(65536)); data = b'{"error": {"message": "Bearer hush-123 is\\nwrong"}}'
        c.sendall(http(data, b'Content-Length: %d\r\n' % len(data), b'401 No'))
    with raw(serve) as url:
        e = Endpoint(url, 'OUR_KEY', 5)
        with pytest.raises(Refused, match=r'\*\*\* is wrong') as f: e.post('/x', {})
    assert b'Authorization: Bearer hush-123\r\n' in heads[0]
    assert 'hush' not in str(f.value) + repr(e) + repr(vars(e))
    assert f.value.__cause__ is None

@pytest.mark.parametrize('name, value', [('sk-123', ''), ('A B', ''), ('NOT_SET', None),
    ('OUR_KEY', ''), ('OUR_KEY', 'a b'), ('OUR_KEY', 'a\nX: b'), ('OUR_KEY', 'schlüssel')])
def test_keys_that_are_none(monkeypatch, name, value):
    if value is not None: monkeypatch.setenv(name, value)
    with pytest.raises(R1Error) as e: read_key(name, check_url('https://a/v1'))
    assert not value or value not in str(e.value)
    assert 'sk-123' not in str(e.value)

def test_no_key_in_the_clear(monkeypatch):
    monkeypatch.setenv('OUR_KEY', 'hush')
    for host in ('a.example', '8.8.8.8', '127.evil.example', 'localhost.evil.example'):
        with pytest.raises(R1Error, match='in the clear'):
            read_key('OUR_KEY', check_url(f'http://{host}/v1'))
    for at in ('http://127.0.0.1:8000', 'http://localhost', 'http://[::1]:1', 'https://a.example'):
        assert read_key('OUR_KEY', check_url(f'{at}/v1')) == 'hush'

def test_https_to_a_server_that_speaks_http():
    with stand_in(lambda _: (200, {}, GOOD)) as url:
        with pytest.raises(R1Error, match='check https') as e: ask(url.replace('http:', 'https:'))
    assert not isinstance(e.value, Busy)

def test_no_such_host(monkeypatch):
    def look(*a, **k): raise socket.gaierror(code, 'name')
    monkeypatch.setattr(socket, 'getaddrinfo', look)
    code = socket.EAI_NONAME
    with pytest.raises(R1Error, match='no such host') as e: ask('http://a.example/v1')
    assert not isinstance(e.value, Busy)
    code = socket.EAI_AGAIN
    with pytest.raises(Busy): ask('http://a.example/v1')

# ---- answers -----------------------------------------------------------------------------------
def read(message, n=1, **kw):
    c = dict(message=message, finish_reason='stop')
    return completions(dict(choices=[c]*n, **kw), n, 30, 'http://a/v1')

def test_thoughts_come_back_in_their_tags():
    want = '<think>\nhm\n</think>\n\n7'
    for k in ('reasoning_content', 'reasoning'):
        assert read({'content': '7', k: 'hm\n'})[0].text == want
    assert rejoin('hm </think> 7') == '<think>hm </think> 7'
    assert rejoin('', 'hm') == '<think>\nhm'
    assert rejoin(' <think> a </think> 7 ') == '<think> a </think> 7'
    assert rejoin('', 'a\n</think>\nb') == '<think>\na\n</think>\nb'

@pytest.mark.parametrize('found', [{}, dict(choices=None), dict(choices=[]), dict(choices={}),
    dict(choices=[1]), dict(choices=[{}]), dict(choices=[dict(message=None)]),
    dict(choices=[dict(message=dict(content=7))]), dict(choices=[dict(message=dict(content=[]))]),
    dict(choices=[dict(message=dict(content='', reasoning=3))]),
    dict(choices=[dict(message={}, finish_reason='insufficient_system_resource')])])
def test_responses_of_the_wrong_shape(found):
    with pytest.raises(Busy, match='http://a/v1'): completions(found, 1, 9, 'http://a/v1')

@pytest.mark.parametrize('usage', [None, 7, {}, dict(completion_tokens='9', prompt_tokens=-1),
    dict(completion_tokens=True, prompt_tokens=None),
    dict(completion_tokens=10**12, prompt_tokens=1.5)])
def test_missing_or_absurd_usage_is_guessed(usage):
    a, b = read(dict(content='x'*30), 2, usage=usage)
    assert (a.tokens, b.tokens, a.prompt_tokens, b.prompt_tokens) == (10, 10, 10, 0)

def test_a_guess_never_exceeds_what_was_allowed():
    f = dict(choices=[dict(message=dict(content='x'*90))]*2)
    assert [c.tokens for c in completions(f, 2, 9, 'u', 7)] == [7, 7]
    assert [c.tokens for c in completions(f, 2, 9, 'u')] == [30, 30]

def test_tokens_of_a_request_are_shared_without_loss():
    rng = random.Random(0)
    for _ in range(500):
        sizes = [rng.randint(1, 99) for _ in range(rng.randint(1, 9))]
        total = rng.choice([0, 1, rng.randint(0, 9999)])
        assert sum(s := shares(total, sizes)) == total and min(s) >= 0 and len(s) == len(sizes)

def test_hostile_text():
    c, = read(dict(content='a\ud800b\x00'))
    assert c.text == 'a?b\x00' and c.text.encode()
    assert clean('\x1b[31mred\nline').startswith('[31mred line') and len(clean('x'*999)) == 160

def test_ids_are_kept_only_if_they_are_ids():
    for ids in (None, [1.5], ['1'], [True], [-1], 'ab', [None]):
        f = dict(choices=[dict(message=dict(content='a'), token_ids=ids)],
                 usage=dict(completion_tokens=5))
        assert completions(f, 1, 3, '')[0].ids is None
    f['choices'][0]['token_ids'] = [4, 5]
    assert (c := completions(f, 1, 3, '')[0]).ids == [4, 5] and c.tokens == 2

def test_fuzzed_responses_never_raise_anything_else():
    rng = random.Random(1)
    odd = [None, 0, -1, 1e400, 'x', '', [], {}, [1], dict(content='a'), True, '\ud800', 10**30]
    def grow(d):
        if d == 0 or rng.random() < .2: return rng.choice(odd)
        keys = ['choices', 'message', 'content', 'reasoning', 'usage', 'completion_tokens',
                'prompt_tokens', 'token_ids', 'finish_reason', 'error', 'model']
        if rng.random() < .3: return [grow(d - 1) for _ in range(rng.randint(0, 3))]
        return {k: grow(d - 1) for k in rng.sample(keys, rng.randint(0, 5))}
    good = 0
    for _ in range(20_000):
        f = dict(choices=[dict(message=grow(2), finish_reason=grow(0))
                          for _ in range(rng.randint(0, 2))])
        if rng.random() < .8: f['usage'] = grow(2)
        if rng.random() < .1: f['choices'] = grow(3)
        try: good += len(completions(f, 3, 9, 'u'))
        except Busy: pass
    assert good > 100
