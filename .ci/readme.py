"""Run nbs/index.ipynb in place and write README.md from it: its words, and what its cells print.

    python .ci/readme.py
No Quarto needed. Cells marked `#| hide` are left out, `#| echo: false` shows the output alone.
"""
import re, subprocess
from pathlib import Path
import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
REPO = 'https://github.com/r1nb/r1nb/blob/main/'

def markdown(cell):
    "What a reader of the README sees of one cell."
    if cell.cell_type == 'markdown': return cell.source
    marks = set(re.findall(r'^#\s*\|\s*([\w-]+(?:: *\w+)?)', cell.source, re.M))
    if cell.cell_type != 'code' or {'hide', 'default_exp'} & {m.split()[0] for m in marks}: return ''
    source = re.sub(r'^#\s*\|.*\n?', '', cell.source, flags=re.M)
    parts = [] if 'echo: false' in marks else [f'```python\n{source}\n```']
    for o in cell.outputs:
        data = o.get('data', {})
        text = data.get('text/markdown') or o.get('text') or data.get('text/plain', '')
        asis = 'text/markdown' in data or 'output: asis' in marks
        parts.append(text.strip() if asis else f'```text\n{text.strip()}\n```')
    return '\n\n'.join(p for p in parts if p)

def relink(text):
    "Links relative to nbs/ become links relative to the repository."
    text = re.sub(r'\]\((?!https?:|#|mailto:)(?:\./)?([^)]+)\)', r'](nbs/\1)', text)
    return text.replace(f']({REPO}', '](')

def readme(path):
    "The page, from a notebook that is executed, saved and cleaned on the way."
    nb = nbformat.read(path, 4)
    NotebookClient(nb, timeout=60, resources={'metadata': {'path': path.parent}},
                   extra_arguments=['--log-level=ERROR']).execute()
    nbformat.write(nb, path)
    subprocess.run(['nbdev_clean', '--fname', path], cwd=ROOT, check=True)
    cells = [markdown(c).strip() for c in nb.cells]
    return relink('\n\n'.join(c for c in cells if c)) + '\n'

if __name__ == '__main__':
    head = '<!-- written by .ci/readme.py from nbs/index.ipynb: edit that -->\n\n'
    (ROOT/'README.md').write_text(head + readme(ROOT/'nbs/index.ipynb'), encoding='utf-8')
