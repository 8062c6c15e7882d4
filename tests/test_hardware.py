"""The tables: every row sound, every bad row named, money linear. The room shows the rest."""
import json
from dataclasses import asdict, fields
from pathlib import Path
import pytest
from hypothesis import given, settings, strategies as st
from r1nb.core import R1Error
from r1nb.hardware import (Gpu, NUMBERS, TABLES, Unsure, gpu, gpu_table, gpus, price, price_table,
                           prices, read_rows, table, usd_per_exaflop, usd_per_exaflop_at,
                           usd_per_petabyte)

POSITIVE = st.floats(1e-3, 1e6)
SHIPPED = (TABLES/'hardware.csv').read_text(encoding='utf-8')

@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    "No table of the user's who runs the tests."
    for name in ('R1NB_HARDWARE', 'R1NB_PRICES'): monkeypatch.delenv(name, raising=False)

def write(path, **change):
    "One row of ours with changes, as a file."
    row = asdict(gpu('H800')) | dict(measured='', unverified='') | change
    path.write_text(','.join(row) + '\n' + ','.join(f'"{v}"' for v in row.values()) + '\n')
    return path

@pytest.mark.parametrize('g', gpus(), ids=lambda g: g.name)
def test_rows_are_plausible(g):
    assert 1e11 < g.bf16_flops <= g.fp8_flops < 1e16
    assert 1e9 < g.memory_bytes < 1e12 and 1e10 < g.bandwidth_bytes_per_second < 1e14
    assert g.network_bytes_per_second <= g.nvlink_bytes_per_second < g.bandwidth_bytes_per_second
    assert g.source and g.price_source and 5 < g.watts < 2000
    for name, seen in g.measured.items(): assert seen <= getattr(g, name), name

def test_prices_are_plausible():
    for p in prices():
        assert 0 < p.usd_per_million_cached <= p.usd_per_million_input < p.usd_per_million_output
        assert p.verified or 'memory' in p.source

def test_the_tables_agree_with_the_ledger_of_claims():
    path = TABLES/'claims.json'
    if not path.exists(): pytest.skip('no ledger of claims')
    seen = json.loads(path.read_text(encoding='utf-8'))['inputs']
    r1, link = price('R1'), gpu('H800')
    assert [r1.usd_per_million_cached, r1.usd_per_million_input, r1.usd_per_million_output] == \
        [seen['INF'][k] for k in ('price_hit', 'price_miss', 'price_out')]
    assert link.measured['nvlink_bytes_per_second'] == 1e9*seen['V3_cost']['nvlink_GBs']
    assert link.network_bytes_per_second == 1e9*seen['V3_cost']['ib_GBs']
    assert link.usd_per_gpu_hour == seen['V3_cost']['usd_per_h']

@pytest.mark.parametrize('name, row', [
    ('h800', 'H800'), ('NVIDIA H800', 'H800'), ('NVIDIA H100 80GB HBM3', 'H100'), ('h200', 'H200'),
    ('NVIDIA A100-SXM4-80GB', 'A100-SXM'), ('NVIDIA A100-PCIE-40GB', 'A100-PCIe'), ('h20', 'H20')])
def test_names_people_and_drivers_use(name, row): assert gpu(name).name == row

@pytest.mark.parametrize('name', ['', 'H8000', 'H2', 'A100', 'A100-SXM4-40GB', 'MI300X', None, 7])
def test_unknown_names_get_one_line_with_what_is_near(name):
    with pytest.raises(R1Error, match='nearest') as e: gpu(name)
    assert '\n' not in str(e.value)
    with pytest.raises(R1Error, match='R1NB_PRICES'): price(name)

@pytest.mark.parametrize('field', [f.name for f in fields(Gpu)])
@pytest.mark.parametrize('value', ['', '-1', '0', 'nan', 'inf', '12 GB', 'yes'])
def test_bad_cells_name_file_line_and_field(tmp_path, field, value):
    path = write(tmp_path/'own.csv', **{field: value})
    free = field in ('name', 'link', 'source', 'price_source')
    if value == '' and field in ('measured', 'unverified', 'fp8_flops') or free and value:
        assert gpus(path)
        return
    with pytest.raises(R1Error, match='own.csv, line 2: ') as e: gpus(path)
    said = str(e.value)
    assert field in said or field.rstrip('_lowhig') in said
    assert '\n' not in said and len(said) < 700

@pytest.mark.parametrize('text, why', [
    ('', 'column'), ('name\nx\n', 'column'), (SHIPPED.replace('watts', 'what'), "'what'"),
    (SHIPPED.replace('"', ''), 'quotes'), (SHIPPED + SHIPPED.splitlines()[-1], 'two rows'),
    (SHIPPED.replace('link,', 'name,', 1), "'link'|'name'"), ('\0\1' + SHIPPED, 'column')])
def test_bad_files(tmp_path, text, why):
    path = tmp_path/'own.csv'
    path.write_text(text, encoding='utf-8')
    with pytest.raises(R1Error, match=why) as e: gpus(path)
    assert '\n' not in str(e.value)

def test_contradictory_rows(tmp_path):
    for change, why in ((dict(fp8_flops='1e12'), 'fp8_flops'), (dict(usd_to_buy='1'), 'range'),
                        (dict(usd_per_gpu_hour_low='3'), 'range'),
                        (dict(unverified='colour'), 'colour'),
                        (dict(measured='watts'), 'pairs'), (dict(measured='name 3'), 'name')):
        with pytest.raises(R1Error, match=why): gpus(write(tmp_path/'own.csv', **change))

def test_missing_files_folders_and_bytes(tmp_path):
    (tmp_path/'b').write_bytes(bytes(range(256)))
    for path in (tmp_path, tmp_path/'none.csv', tmp_path/'b'):
        with pytest.raises(R1Error, match=str(path.name)): gpus(path)

def test_own_rows_are_added_and_replace(tmp_path, monkeypatch):
    path = write(tmp_path/'own.csv', usd_per_gpu_hour='3')
    assert [g.name for g in gpus(path)] == [g.name for g in gpus()]
    monkeypatch.setenv('R1NB_HARDWARE', str(path))
    assert gpu('H800').usd_per_gpu_hour == 3 and gpu('H100').usd_per_gpu_hour == 2.95
    path.write_bytes('\ufeff'.encode() + path.read_bytes() + b'\n# a note,\n\n')
    assert gpu('H800').usd_per_gpu_hour == 3

def test_every_number_of_a_row_is_checked_by_the_reader():
    assert set(NUMBERS) == {f.name for f in fields(Gpu)
                            if isinstance(getattr(gpu('H800'), f.name), float)}
    assert read_rows(TABLES/'hardware.csv', Gpu) == gpus()

def test_unverified_is_visible_everywhere():
    for t, rows in ((gpu_table(), gpus()), (price_table(), prices())):
        sure = [getattr(r, 'unverified', None) or not getattr(r, 'verified', True) for r in rows]
        for line, row, doubt in zip(str(t).splitlines()[1:], t.rows, sure):
            assert ('?' in line) == bool(doubt) == any(isinstance(c, Unsure) for c in row)
        assert t._repr_html_().count('not verified') == sum(isinstance(c, Unsure)
                                                            for r in t.rows for c in r)

def test_tables_escape_and_align():
    t = table(['a', 'b'], [('<b>', 1.5), ('x', Unsure('&'))])
    assert '<b>' not in t._repr_html_() and '&lt;b&gt;' in t._repr_html_()
    assert str(t).splitlines()[2].endswith('&?')
    with pytest.raises(R1Error, match='2 cells'): table(['a', 'b'], [('x',)])

@settings(deadline=None)
@given(POSITIVE, POSITIVE, POSITIVE, POSITIVE, st.floats(.01, 100))
def test_money_is_linear_in_rent_and_never_negative(usd, flops, rate, intensity, k):
    f = lambda u: usd_per_exaflop_at(intensity, u, 1e9*flops, 1e9*rate)
    assert f(usd) > 0 and f(k*usd) == pytest.approx(k*f(usd), rel=1e-12)
    assert f(usd) >= usd_per_exaflop(usd, 1e9*flops)*(1 - 1e-12)
    assert f(usd) == pytest.approx(max(usd_per_exaflop(usd, 1e9*flops),
        1000/intensity*usd_per_petabyte(usd, 1e9*rate)), rel=1e-12)

@settings(deadline=None)
@given(POSITIVE, POSITIVE, POSITIVE, POSITIVE, st.floats(1, 100))
def test_more_operations_a_byte_never_cost_more_each(usd, flops, rate, intensity, k):
    f = lambda i: usd_per_exaflop_at(i, usd, 1e9*flops, 1e9*rate)
    assert f(k*intensity) <= f(intensity)*(1 + 1e-12)
