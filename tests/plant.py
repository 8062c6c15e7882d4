"""Defects to plant in real text, of several kinds and severities, for tests and measurements."""

import random

FOREIGN = dict(
    es=[
        'Entonces tenemos que calcular el número de manzanas que quedan en la caja.',
        'Ahora vamos a sumar los dos resultados para obtener la respuesta final.',
        'Primero hay que encontrar el valor de la variable y luego dividir por tres.',
        'Como el triángulo es isósceles, los ángulos de la base son iguales.',
    ],
    fr=[
        "D'abord nous devons trouver le nombre de billes que contient chaque sac.",
        'Il reste donc la moitié des pommes, ce qui donne le résultat cherché.',
        'On peut maintenant calculer la somme des deux termes pour conclure.',
        'La longueur du côté est égale à la racine carrée de cette aire.',
    ],
    de=[
        'Zuerst müssen wir die Anzahl der Äpfel in der Kiste berechnen.',
        'Danach wird das Ergebnis durch zwei geteilt und wir erhalten die Antwort.',
        'Das bedeutet, dass die Summe der beiden Zahlen nicht gerade sein kann.',
        'Wenn der Zug eine Stunde fährt, legt er die ganze Strecke zurück.',
    ],
    it=[
        'Quindi dobbiamo calcolare il numero totale delle mele nella scatola.',
        'La somma dei due numeri è uguale a quella che abbiamo trovato prima.',
        'Poi si divide il risultato per tre e si ottiene la risposta.',
    ],
    pt=[
        'Agora precisamos somar os dois valores para obter a resposta final.',
        'Portanto, o número de maçãs que sobram na caixa é igual à metade.',
        'Se o trem não para, ele chega à cidade em duas horas.',
    ],
    nl=[
        'Eerst moeten we het aantal appels in de doos berekenen.',
        'Dat betekent dat de som van deze getallen niet even kan zijn.',
    ],
    sv=[
        'Först måste vi räkna ut hur många äpplen som finns i lådan.',
        'Det betyder att summan av talen inte kan vara jämn.',
    ],
    pl=[
        'Najpierw musimy obliczyć liczbę jabłek, które są w pudełku.',
        'To znaczy, że suma tych liczb nie jest parzysta.',
    ],
    tr=[
        'Önce kutudaki elmaların sayısını bulmak için toplama yapmalıyız.',
        'Bu nedenle iki sayının toplamı çift olamaz ve cevap budur.',
    ],
    id=[
        'Sekarang kita harus menghitung jumlah apel yang ada di dalam kotak itu.',
        'Jadi jawaban dari soal ini adalah tidak sama dengan dua.',
    ],
    vi=[
        'Bây giờ chúng ta cần tính số táo còn lại trong hộp này.',
        'Vì vậy tổng của hai số không thể là số chẵn được.',
    ],
    cs=['Nejprve musíme spočítat, kolik jablek je nyní v krabici.'],
    fi=['Ensin meidän täytyy laskea, kuinka monta omenaa laatikossa on.'],
    zh=[
        '首先我们需要计算盒子里苹果的总数。',
        '所以答案应该是这个数的一半。',
        '接下来把两个结果相加。',
        '因为三角形是等腰的,所以两个底角相等。',
    ],
    ja=['まず、箱の中のりんごの数を計算する必要があります。', 'したがって、答えはその半分です。'],
    ko=['먼저 상자 안에 있는 사과의 개수를 계산해야 합니다.', '따라서 답은 그 절반입니다.'],
    ru=[
        'Сначала нужно посчитать количество яблок в коробке.',
        'Значит, ответ равен половине суммы.',
        'Теперь сложим оба результата.',
    ],
    ar=['أولا يجب أن نحسب عدد التفاح في الصندوق.', 'إذن الجواب هو نصف هذا العدد.'],
    hi=['पहले हमें डिब्बे में सेबों की संख्या निकालनी होगी।', 'इसलिए उत्तर इसका आधा है।'],
    el=['Πρώτα πρέπει να υπολογίσουμε τον αριθμό των μήλων στο κουτί.'],
    th=['ก่อนอื่นเราต้องหาจำนวนแอปเปิลในกล่อง'],
    he=['ראשית עלינו לחשב את מספר התפוחים בקופסה.'],
    uk=['Спочатку треба порахувати кількість яблук у коробці.'],
)


def sentences(text):
    parts = text.replace('\n', '\n ').split('. ')
    return parts if len(parts) > 1 else text.split(' ')


def insert(rng, text, piece):
    "Put a piece between two sentences (or words, where there is but one)."
    parts = sentences(text)
    glue = '. ' if '. ' in text else ' '
    parts.insert(rng.randint(0, len(parts)), piece.rstrip('.') if glue == '. ' else piece)
    return glue.join(parts)


def mixed(rng, text, how):
    lang = rng.choice(list(FOREIGN))
    s = rng.choice(FOREIGN[lang])
    if how == 'clause':
        if ' ' in s:
            w = s.split()
            i = rng.randint(0, max(0, len(w) - 6))
            s = ' '.join(w[i : i + 6])
        return insert(rng, text, s)
    if how == 'sentence':
        return insert(rng, text, s)
    if how == 'several':
        for s in rng.choices(FOREIGN[lang], k=3):
            text = insert(rng, text, s)
        return text
    words = text.split(' ')  # 'script': one word of a foreign script
    s = rng.choice(FOREIGN[rng.choice('zh ja ko ru ar hi th'.split())])
    piece = s[:2] if ' ' not in s else max(s.split(), key=len)
    words.insert(rng.randint(0, len(words)), piece)
    return ' '.join(words)


def looping(rng, text, how):
    parts = [s for s in text.replace('\n', ' ').split('. ') if len(s.split()) >= 5]
    s = rng.choice(parts) if parts else text
    w = text.split()
    if how == 'phrase':  # a few words, for ever
        k = rng.randint(3, 6)
        i = rng.randint(0, max(0, len(w) - k))
        piece = 'so we get ' + ' '.join(w[i : i + k])
        return text + (' ' + piece) * rng.randint(6, 20)
    if how == 'word':
        return text + f' {rng.choice(["the", "wait", "so", "and then", "hmm"])}' * rng.randint(
            12, 60
        )
    if how == 'sentence':
        return text + ('. ' + s) * rng.randint(4, 10)
    if how == 'lines':  # the same line between others
        lines = [x + '.' for x in text.replace('\n', ' ').split('. ')]
        line = rng.choice(
            [
                'Let me think about this again from the start.',
                'Wait, I should double check that this is right.',
                s + '.',
            ]
        )
        n = max(5, round(0.6 * len(text.split()) / len(line.split())))
        for _ in range(n):
            lines.insert(rng.randint(0, len(lines)), line)
        return '\n'.join(lines)
    if how == 'whole':
        return '\n\n'.join([text] * rng.randint(3, 5))
    return text + rng.choice('ahm!哈?z') * rng.randint(60, 400)  # 'sign'


def broken(rng, thought, answer, how):
    s = f'<think>\n{thought}\n</think>\n\n{answer}'
    tag = rng.choice(['<think>', '</think>'])
    return {
        'no open': s.replace('<think>', '', 1),
        'no close': s.replace('</think>', '', 1),
        'no tags': f'{thought}\n\n{answer}',
        'twice': s.replace(tag, tag * 2, 1),
        'nested': s.replace('<think>', '<think><think>').replace('</think>', '</think></think>'),
        'swapped': f'</think>\n{thought}\n<think>\n\n{answer}',
        'before': 'Sure! ' + s,
        'empty thought': f'<think>\n\n</think>\n\n{answer}',
        'empty answer': f'<think>\n{thought}\n</think>\n\n',
        'misspelt': s.replace(
            tag, tag.replace('think', rng.choice(['thinking', 'Think', 'thnk']))
        ),
        'spaced': s.replace(tag, tag.replace('think', ' think ')),
        'control': s
        + rng.choice(['<|im_end|>', '<|endoftext|>', '<｜end▁of▁sentence｜>', '</s>']),
        'two thoughts': s + f'\n<think>\n{thought}\n</think>',
    }[how]


BREAKS = [
    'no open',
    'no close',
    'no tags',
    'twice',
    'nested',
    'swapped',
    'before',
    'empty thought',
    'empty answer',
    'misspelt',
    'spaced',
    'control',
    'two thoughts',
]
SAME = dict(
    zip(
        'the a is find what how many number value each every total then has have compute '
        'of'.split(),
        'this one equals determine which what several count amount every each overall next '
        'owns possess calculate from'.split(),
    )
)
FILL = 'then thus value now just so total really given suppose also exactly'.split()


def reworded(rng, text, rate):
    "About one word in 1/rate changed: dropped, replaced, or joined by another."
    out = []
    for w in text.split(' '):
        u = rng.random() / rate
        if u >= 1:
            out.append(w)
        elif u >= 0.75:
            out += [w, rng.choice(FILL)]
        elif u >= 0.25:
            out.append(SAME.get(w.lower()) or rng.choice(FILL))
    return ' '.join(out)


def other_numbers(rng, text):
    import re

    return re.sub(r'\d+', lambda m: str(rng.randint(2, 10 ** len(m[0]))), text)


def disguised(rng, text, how):
    "The same text for a reader, another for a comparison of bytes."
    if how == 'case':
        return text.upper() if rng.random() < 0.5 else text.lower()
    if how == 'spaces':
        return text.replace(' ', rng.choice(['  ', '\n', '\u00a0', '\t']))
    if how == 'unseen':
        return ''.join(c + '\u200b' * (rng.random() < 0.1) for c in text)
    if how == 'wide':
        return ''.join(
            chr(ord(c) + 0xFEE0) if '!' <= c <= '~' and rng.random() < 0.3 else c for c in text
        )
    return text
