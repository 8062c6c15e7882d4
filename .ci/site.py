"""Process the notebooks as the site does, short of Quarto, and check what it would render.

    python .ci/site.py
Every page has front matter with a title and a description; every relative link, image and anchor
of its markdown resolves.
"""
import json, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path
import yaml

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r'!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)|(?:src|href)="([^"]+)"')

def process():
    "nbdev_proc_nbs fetches Quarto when it sees none; rendering is the site workflow's work."
    with tempfile.TemporaryDirectory() as tmp:
        stub = Path(tmp)/'quarto'
        stub.write_text('#!/bin/sh\nexit 0\n'); stub.chmod(0o755)
        env = dict(os.environ, PATH=f'{tmp}{os.pathsep}{os.environ["PATH"]}', HF_HUB_OFFLINE='1')
        shutil.rmtree(ROOT/'_proc', ignore_errors=True)
        run = subprocess.run(['nbdev_proc_nbs', '--n_workers', '2'], cwd=ROOT, env=env,
                             capture_output=True, text=True)
    if run.returncode: sys.exit('nbdev_proc_nbs: ' + run.stderr[run.stderr.rfind('\nException:'):].strip())

def prose(cells):
    "Markdown without its code, which may hold anything."
    text = '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    return re.sub(r'`[^`\n]*`', '', re.sub(r'^( *)(```+).*?^\1\2', '', text, flags=re.M | re.S))

def anchors(text):
    heads = re.findall(r'^#+\s+(.*?)\s*(?:\{#([\w-]+)[^}]*\})?$', text, re.M)
    slug = lambda s: re.sub(r'[^\w\s.-]', '', s.lower()).strip().replace(' ', '-').lstrip('0123456789.-_')
    return {name or slug(s) for s, name in heads} | set(re.findall(r'\{#([\w-]+)', text))

def problems(folder):
    pages = {p.name: json.loads(p.read_text())['cells'] for p in sorted(folder.glob('*.ipynb'))}
    text = {n: prose(cells) for n, cells in pages.items()}
    for name, cells in pages.items():
        raw = next((''.join(c['source']) for c in cells if c['cell_type'] == 'raw'), '')
        try: front = yaml.safe_load(raw.strip().strip('-')) or {}
        except yaml.YAMLError as e: front = {}; yield f'{name}: front matter: {e}'
        for key in ('title', 'description'):
            if not str(front.get(key) or '').strip(): yield f'{name}: no {key} (`# Title`, `> sentence`)'
        for target in filter(None, sum(LINK.findall(text[name]), ())):
            if re.match(r'[a-z]+:', target): continue
            path, _, anchor = target.partition('#')
            page = path or name
            if not (folder/page).exists(): yield f'{name}: no file for the link {target}'
            elif anchor and page in text and anchor not in anchors(text[page]):
                yield f'{name}: no heading for the link {target}'

if __name__ == '__main__':
    process()
    found = list(problems(ROOT/'_proc'))
    print(*found, f'site: {len(list((ROOT/"_proc").glob("*.ipynb")))} pages, {len(found)} problems', sep='\n')
    sys.exit(bool(found))
