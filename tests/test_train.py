"""Training under attack: kills, torn files, full disks, odd shapes."""
import errno, json, os, random, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import pytest
import torch
import torch.nn.functional as F
import r1nb
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from r1nb.core import R1Error, sha256
from r1nb.model import R1Config, R1Model, read_config
from r1nb.ranks import Ranks
from r1nb.train import (BASES, adamw, descend, flops, lm_loss, load_state, make_base, packs, pad,
                        pretrain, pretrain_loss, save_state, sft, sft_gradient, shuffled,
                        warm_stable_decay)

TINY = R1Config(hidden_size=32, num_hidden_layers=2, intermediate_size=32, n_routed_experts=4,
                moe_intermediate_size=16, num_attention_heads=2, kv_lora_rank=8,
                qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, initializer_range=.05)
ASSETS = Path(r1nb.__file__).parent/'assets'

@pytest.fixture(autouse=True)
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

def fresh(c=TINY, seed=0):
    torch.manual_seed(seed)
    return R1Model(c)

def text(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(8, 200, (n,), generator=g).to(torch.uint8)

def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- state -----------------------------------------------------------------------------------
VICTIM = '''
import sys, torch
sys.path.insert(0, sys.argv[2])
torch.set_num_threads(1)
from test_train import TINY, fresh, text
from r1nb.train import pretrain, shuffled
pretrain(fresh(), shuffled(text(4000), 16), 4000, batch=2, log=lambda r: None, state=sys.argv[1],
         every=3)
'''

def test_killed_in_pretraining_and_resumed(tmp_path):
    state = tmp_path/'state'
    here = str(Path(__file__).parent)
    victim = subprocess.Popen([sys.executable, '-c', VICTIM, str(state), here])
    try:
        deadline = time.time() + 200
        while not state.exists() and victim.poll() is None and time.time() < deadline:
            time.sleep(.02)
        time.sleep(.03)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert victim.returncode == -signal.SIGKILL
    model = fresh(seed=5)
    opt = adamw(model, 3e-3)
    step, extra = load_state(state, model, opt)
    assert step % 3 == 0 and extra['run']['steps'] == 4000
    unbroken = fresh()
    for n, *_ in descend(unbroken, adamw(unbroken, 3e-3), shuffled(text(4000), 16), 4000, batch=2):
        if n + 1 == step: break
    assert same(unbroken, model)

def test_resumed_run_tells_the_same_story(tmp_path):
    windows, whole, parts = shuffled(text(3000), 16), [], []
    kw = dict(steps=54, batch=1, every=27)
    a = pretrain(fresh(), windows, log=whole.append, **kw)
    class Stop(Exception): pass
    def stop(row):
        if row['step'] == 50: raise Stop
    with pytest.raises(Stop): pretrain(fresh(), windows, log=stop, state=tmp_path/'s', **kw)
    b = pretrain(fresh(seed=9), windows, log=parts.append, state=tmp_path/'s', **kw)
    assert same(a, b)
    strip = lambda rows: [{k: v for k, v in r.items() if k != 'seconds'} for r in rows]
    assert strip(whole) == strip(parts) and [r['step'] for r in parts] == [0, 50, 53]
    with pytest.raises(R1Error, match='belongs to another run'):
        pretrain(fresh(), windows, log=print, state=tmp_path/'s', **dict(kw, batch=3))

def test_damaged_states_are_named(tmp_path):
    model = fresh()
    opt = adamw(model, 1e-3)
    for _ in descend(model, opt, shuffled(text(500), 16), 2, batch=2): pass
    save_state(tmp_path/'s', model, opt, 2, note='ü')
    data, rng, path = (tmp_path/'s').read_bytes(), random.Random(1), tmp_path/'hurt'
    for i in range(60):
        hurt = bytearray(data[:rng.randrange(len(data))] if i % 3 == 0 else data)
        if i % 3: hurt[rng.randrange(2000 if i % 3 == 1 else len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(hurt)
        with pytest.raises(R1Error, match='cannot be read'): load_state(path, model, opt)
    for nothing in (b'', b'{}', b'\0'*64):
        path.write_bytes(nothing)
        with pytest.raises(R1Error, match='cannot be read'): load_state(path, model, opt)
    with pytest.raises(R1Error, match='cannot be read'): load_state(tmp_path/'none', model, opt)
    wide = fresh(replace(TINY, hidden_size=48))
    with pytest.raises(R1Error, match='not of this model'):
        load_state(tmp_path/'s', wide, adamw(wide, 1e-3))

def test_full_disk_leaves_the_old_state(tmp_path, monkeypatch):
    model = fresh()
    opt = adamw(model, 1e-3)
    save_state(tmp_path/'s', model, opt, 1)
    before = (tmp_path/'s').read_bytes()
    def full(fd): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(R1Error, match='disk is full'): save_state(tmp_path/'s', model, opt, 2)
    assert (tmp_path/'s').read_bytes() == before and len(list(tmp_path.iterdir())) == 1


# ---- losses ----------------------------------------------------------------------------------
@pytest.mark.parametrize('depth', [0, 1, 2])
def test_lm_loss_against_a_loop(depth):
    model = fresh(replace(TINY, num_nextn_predict_layers=depth))
    ids, mask = text(3*9).view(3, 9).long(), (torch.rand(3, 8) > .4).float()
    main, mtp = lm_loss(model, ids, mask)
    lp, want = model(ids).log_softmax(-1), 0.
    for b in range(3):
        for t in range(8): want -= mask[b, t]*lp[b, t, ids[b, t + 1]]
    torch.testing.assert_close(main, want)
    ahead, want = model.ahead(model.hidden(ids)[:, :-1], ids[:, 1:]), torch.zeros(())
    for k, logits in enumerate(ahead):
        lp = logits.log_softmax(-1)
        for b in range(3):
            for t in range(9 - 2 - k):
                want = want - mask[b, t + k + 1]*lp[b, t, ids[b, t + k + 2]]/depth
    torch.testing.assert_close(mtp, want)

def test_without_lambda_mtp_is_untouched():
    model = fresh()
    before = [p.clone() for p in model.mtp.parameters()]
    loss, main, ahead = pretrain_loss(model.train(), text(32).view(2, 16).long(), mtp=0.)
    loss.backward()
    assert ahead == 0 and all(p.grad is None for p in model.mtp.parameters())
    for _ in descend(model, adamw(model, 1e-2), shuffled(text(200), 16), 2, batch=2, mtp=0.): pass
    assert all(torch.equal(a, b) for a, b in zip(before, model.mtp.parameters()))

@pytest.mark.parametrize('steps', [1, 2, 7, 100, 5000])
def test_schedule_stays_in_bounds(steps):
    for kw in ({}, dict(warmup=0), dict(warmup=10, decay_from=0., floor=0.)):
        rates = [warm_stable_decay(s, steps, **kw) for s in range(steps)]
        assert all(0 < r <= 1 for r in rates)
    assert len(rates) < 100 or abs(max(rates) - 1) < .1


# ---- batches ---------------------------------------------------------------------------------
def test_pad_and_packs_over_odd_sizes():
    rng = random.Random(0)
    for _ in range(50):
        n = rng.randrange(1, 12)
        prompts = [[7]*rng.randrange(1, 9) for _ in range(n)]
        responses = [[9]*rng.randrange(0, 30) for _ in range(n)]
        if max(map(len, responses)) == 0: continue
        ids, mask = pad(prompts, responses)
        assert mask.sum(1).tolist() == [len(r) for r in responses]
        assert torch.equal(ids[:, 1:][mask > 0], torch.full((int(mask.sum()),), 9))
        sizes, budget = [len(p) + len(r) for p, r in zip(prompts, responses)], rng.randrange(1, 99)
        parts = packs(sizes, budget)
        assert sorted(i for part in parts for i in part) == list(range(n))
        for part in parts:
            assert len(part) == 1 or len(part)*max(sizes[i] for i in part) <= budget
    assert packs([], 10) == []

def pairs(n, seed=0):
    rng = random.Random(seed)
    words = lambda k: [rng.randrange(8, 200) for _ in range(k)]
    return [(words(rng.randrange(2, 9)), words(rng.randrange(1, 20))) for _ in range(n)]

def test_two_ranks_add_up_to_one():
    class Part(Ranks):
        def add_gradients(self, params): pass
        def total(self, xs): return list(xs)
    rows, model = pairs(7), fresh().eval()
    whole = sft_gradient(model, rows)
    want = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    parts = sum(sft_gradient(model, rows, Part(r, 2), budget=40) for r in (0, 1))
    assert abs(whole - parts) < 1e-5
    for k, p in model.named_parameters():
        if k in want: torch.testing.assert_close(p.grad, want[k], atol=1e-6, rtol=1e-4)

def test_sft_resumes_bit_for_bit(tmp_path):
    a, rows = fresh(), pairs(11)
    kw = dict(epochs=2, batch=4, seed=3, log=lambda r: None)
    def keep(step, opt):
        if step == 3: save_state(tmp_path/'s', a, opt, step)
    sft(a, rows, after=keep, **kw)
    b = fresh(seed=8)
    opt = adamw(b, 2e-3)
    start, _ = load_state(tmp_path/'s', b, opt)
    sft(b, rows, start=start, opt=opt, **kw)
    assert start == 3 and same(a, b)

def test_sft_learns_the_response_only():
    model, rows = fresh(), [([20, 21, 22], [30, 31, 1])]*8
    sft(model, rows, epochs=40, batch=8, lr=1e-2, log=lambda r: None)
    lp = model(torch.tensor([[20, 21, 22, 30, 31, 1]])).log_softmax(-1)[0]
    assert lp[2, 30] > -.5 and lp[3, 31] > -.5 and lp[4, 1] > -.5
    assert lp[0, 21] < -3 and lp[1, 22] < -3

@pytest.mark.parametrize('n, batch', [(0, 1), (3, 4), (3, 0), (3, -1)])
def test_too_few_traces(n, batch):
    with pytest.raises(R1Error, match='do not fill one batch'): sft(fresh(), pairs(n), batch=batch)

def test_rows_longer_than_the_context():
    long = [([9]*4, [9]*600)]*2
    with pytest.raises(R1Error, match='context'): sft(fresh(), long, batch=2)


# ---- bases -----------------------------------------------------------------------------------
@pytest.mark.parametrize('name', BASES)
def test_shipped_bases_are_what_the_presets_say(name):
    folder = ASSETS/name
    assert read_config(folder) == BASES[name]
    card = json.loads((folder/'card.json').read_text())
    assert card['config_sha256'] == sha256(folder/'config.json') and card['base'] == name
    assert card['read_tokens'] == card['steps']*card['batch']*card['T']
    assert card['curve'][-1][1] < 1

def test_make_base_again_over_an_old_one(tmp_path):
    kw = dict(docs=300, steps=1, batch=2)
    a = make_base('nano-student', tmp_path/'new'/'b', **kw)
    b = make_base('nano-student', tmp_path/'new'/'b', **kw, seed=1)
    assert a['corpus_sha256'] != b['corpus_sha256'] and a['curve'] != b['curve']
    assert json.loads((tmp_path/'new'/'b'/'card.json').read_text()) == json.loads(json.dumps(b))
    assert [f.name for f in (tmp_path/'new').iterdir()] == ['b']
    for bad in (dict(docs=0), dict(steps=0), dict(batch=-1)):
        with pytest.raises(R1Error, match='too few'): make_base('nano', tmp_path/'x', **kw | bad)


# ---- counting --------------------------------------------------------------------------------
@pytest.mark.parametrize('c', [TINY, replace(TINY, n_routed_experts=None),
                               replace(TINY, q_lora_rank=8, first_k_dense_replace=0)])
def test_flops_equal_what_torch_counts(c):
    model, ids = fresh(c).eval(), text(40)[None].long()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter: model(ids)
    norms = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 1
                and int((n.split('.') + ['0'])[2] if 'layers' in n else 0) < c.num_hidden_layers)
    assert counter.get_total_flops() == flops(c, 40, 40) - 2*40*norms

@pytest.mark.cuda
def test_gpu_learns_like_the_cpu(tmp_path):
    windows, curves = shuffled(text(40_000), 64), []
    for device in ('cpu', 'cuda'):
        model = fresh().to(device)
        opt = adamw(model, 1e-3)
        curves.append([m.item() for _, m, _ in descend(model, opt, windows, 8, 1e-3, 16)])
    assert all(abs(a - b) < .05 for a, b in zip(*curves))  # bf16: 8 significant bits
    save_state(tmp_path/'s', model, opt, 8)
    assert load_state(tmp_path/'s', model, opt)[0] == 8
    sft(model, pairs(4), epochs=1, batch=4, log=lambda r: None)
