// What Python's arithmetic does, in JavaScript: the same doubles, and where Python raises, this throws.
// No Python name contains a dollar sign, so `$` can never clash with a formula's own names.
const $ = {
  fail(why) { throw new RangeError(why); },
  div(a, b) { return b === 0 ? $.fail('division by zero') : a / b; },
  mod(a, b) {                                   // the sign of b, as in Python; JavaScript keeps a's
    if (b === 0) $.fail('division by zero');
    const m = a % b;
    return m !== 0 && (b < 0) !== (m < 0) ? m + b : m;
  },
  floordiv(a, b) {
    if (b === 0) $.fail('division by zero');
    const m = a % b;
    let d = (a - m) / b;
    if (m !== 0 && (b < 0) !== (m < 0)) d -= 1;
    const f = Math.floor(d);
    return d - f > .5 ? f + 1 : f;
  },
  pow(a, b) {
    if (a === 1 || (a === -1 && Math.abs(b) === Infinity)) return 1;
    if (a === 0 && b < 0 && b !== -Infinity) $.fail('division by zero');
    if (a < 0 && isFinite(a) && isFinite(b) && !Number.isInteger(b)) $.fail('root of a negative number');
    return $.finite(Math.pow(a, b), a, b);
  },
  finite(y, ...xs) { return Math.abs(y) === Infinity && xs.every(isFinite) ? $.fail('overflow') : y; },
  exp(x) { return $.finite(Math.exp(x), x); },
  log(x) { return x <= 0 ? $.fail('logarithm of zero or less') : Math.log(x); },
  sqrt(x) { return x < 0 ? $.fail('root of a negative number') : Math.sqrt(x); },
  floor(x) { return isFinite(x) ? Math.floor(x) : $.fail('not a finite number'); },
  ceil(x) { return isFinite(x) ? Math.ceil(x) : $.fail('not a finite number'); },
  min(...xs) { return xs.reduce((a, b) => b < a ? b : a); },      // NaN as in Python: the first stays
  max(...xs) { return xs.reduce((a, b) => b > a ? b : a); },
  item(o, key) { return key in o ? o[key] : $.fail('no ' + key); },
};

// format(x, spec) for the specs that outputs may have: ',.2f'  '.1%'  '.3g'
function show(x, spec) {
  const [, comma, digits, kind] = spec.match(/^(,?)\.(\d)([fg%])$/), n = +digits, g = Math.max(n, 1);
  const group = s => comma ? s.replace(/^-?\d+/, w => w.replace(/\B(?=(\d{3})+$)/g, ',')) : s;
  const strip = s => s.includes('.') ? s.replace(/\.?0+$/, '') : s;
  if (kind === '%') return group(rounded(100 * x, n, 'toFixed')) + '%';
  if (kind === 'f') return group(rounded(x, n, 'toFixed'));
  const [m, e] = rounded(x, g - 1, 'toExponential').split('e'), size = String(Math.abs(e));
  if (e < -4 || e >= g) return strip(m) + 'e' + (e < 0 ? '-' : '+') + size.padStart(2, '0');
  return group(strip(rounded(x, g - 1 - e, 'toFixed')));
}
function rounded(x, n, how) {                   // a tie goes to the even digit, as in Python
  if (how === 'toFixed' && Math.abs(x) >= 1e21) return BigInt(x) + (n ? '.' + '0'.repeat(n) : '');
  const [long, e] = x[how](60).split('e'), cut = long.indexOf('.') + 1 + n;
  const kept = long.slice(0, n ? cut : cut - 1);
  const stays = /^50*$/.test(long.slice(cut)) && /[02468]$/.test(kept);
  return stays ? kept + (e ? 'e' + e : '') : x[how](n);
}

// One calculator: `root` is its section, `formula` takes an object of inputs, `spec` lists what is shown.
function calculator(root, formula, spec) {
  const find = (kind, name) => root.querySelector(`[data-${kind}="${name}"]`);
  const at = {};
  const share = (i, x) => i.log ? Math.log(x / i.lo) / Math.log(i.hi / i.lo) : (x - i.lo) / (i.hi - i.lo);
  const place = (i, t) => +(i.log ? i.lo * Math.pow(i.hi / i.lo, t) : i.lo + t * (i.hi - i.lo)).toPrecision(3);
  const clip = (i, x) => Math.min(Math.max(x, i.lo), i.hi);
  function update() {
    let got = null, why = '';
    const bad = spec.inputs.find(i => !(at[i.name] >= i.lo && at[i.name] <= i.hi));
    if (bad) why = `${bad.label}: choose ${bad.lo} to ${bad.hi} ${bad.unit}`;
    else try { got = formula(at); } catch (e) { why = 'no answer for these values: ' + e.message; }
    for (const o of spec.outputs) {
      const x = got && (typeof got === 'number' ? got : got[o.name]);
      const fine = typeof x === 'number' && isFinite(x);
      if (got && !fine) why = 'no answer for these values: ' + o.label;
      find('output', o.name).textContent = !fine ? '–'
        : o.words.length ? o.words[x] ?? '–' : show(x, o.format) + (o.unit ? ' ' + o.unit : '');
      const bar = find('bar', o.name);
      if (bar) bar.value = fine ? x : 0;
    }
    find('why', '').textContent = why;
  }
  function set(i, x, from) {
    at[i.name] = x;
    const box = find('input', i.name), slider = find('slider', i.name);
    if (from !== box && i.choices) box.selectedIndex = i.choices.indexOf(x);
    else if (from !== box) box.value = String(x);
    if (slider && from !== slider && x >= i.lo && x <= i.hi) slider.value = String(1000 * share(i, x));
    if (slider) slider.setAttribute('aria-valuetext', `${x} ${i.unit}`);
  }
  for (const i of spec.inputs) {
    const box = find('input', i.name), slider = find('slider', i.name);
    set(i, i.default, null);
    const read = () => i.choices ? i.choices[box.selectedIndex] : box.value === '' ? NaN : +box.value;
    box.addEventListener('input', () => { set(i, read(), box); update(); });
    if (slider) slider.addEventListener('input', () => {
      set(i, clip(i, place(i, slider.value / 1000)), slider); update(); });
  }
  const preset = find('preset', '');
  if (preset) preset.addEventListener('input', () => {
    for (const i of spec.inputs) {
      const x = (spec.presets[preset.value] || {})[i.name];
      if (x !== undefined) set(i, x, null);
    }
    update();
  });
  root.setAttribute('data-live', '');
  update();
}
