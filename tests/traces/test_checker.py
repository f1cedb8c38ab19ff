"""The step checker: verdicts worked out by hand, and text that would hang others."""

from __future__ import annotations

import random
import time
from fractions import Fraction

import pytest

from edge_distill.traces.checker import check_step, find_statements

VERIFIED = """
3 * 4 = 12
3 × 4 = 12
3 x 4 = 12
12 ÷ 4 = 3
7 − 10 = −3
5 - -3 = 8
-1 - -6 = 5
-(-12) = 12
-7 // 2 = -4 (rounded down)
17 % 5 = 2
780 mod 461 = 319
780 = 1 * 461 + 319
2 + 3 * 4 = 14
(2 + 3) * 4 = 20
2(35+31) = 132
5(46.0)=230.0 minutes
2 ** 10 = 1024
2^10 = 1024
5² = 25
sqrt(144) = 12
gcd(586, 594) = 2
lcm(4, 6) = 12
3 * 4 = 12 = 10 + 2
74 + 38 + 30 + T = 142 + T
0.1 + 0.2 = 0.3
1,234 + 1 = 1,235
1,234,567.5 * 2 = 2,469,135
$380,000 x 8/100 = $30,400
€12 + €16 = €28
10 * €5 = €50.
$5 + 50 cents = $5.50
$84/hour * 14 hours = $1176
3 trays * 28 rolls = 84 rolls
30 boys - 5 absent = 25 boys
145.0 meters / 1.25 meters per plant = 116 plants total
280 carrot / 4 carrot/minute = 70 minutes
There are 32 girls x 2 boys/girl = 64 boys in the garden.
25 years * 4= 100 years old
50% of 80 = 40
1580 * 5% = 79
15 / 20 = 75%
15 / 20 * 100 = 75%
107 spools / 428 spools * 100% = 25%
100% - 50% = 50%
50 percent of 80 = 40
1/4 * 3200 = 800 beds
15/45 = 1/3 kilometers per minute
1 1/2 + 2 = 3 1/2
10 / 3 = 3.33
20 / 3 = 6.67
10 / 3 ≈ 3.3
13 / 7 ≈ 2
19.5 ≈ 20
298 + 3 ≈ 300
48 * 0.3333333333333333 = 16
132 / 28 = 4 remainder 20
132 / 28 = 4 R 20
90 minutes = 1.5 hours
45 minutes * 2 = 1.5 hours
60 minutes + 30 minutes = 1.5 hours
3 hours * 60 = 180 minutes
5 kg + 3 kg = 8000 g
1.5 km = 1500 m
84 < 132
3 * 28 = 84 < 132
2x + 3 = 11 -> x = 4
2x + 3 = 11, so 2x = 8 and x = 4
3y = 12 => y = 4
-98*e = -1218 - 56 = -1274
Thus, T = 186 - 142 = 44 bouncy balls came in the tube.
Since their goal is 90, they need to collect 90 - 77 signatures. 90 - 77 = 13 signatures
Jim has 27 + 58 = 85 because 85 = 80 + 5
Of the 76 pupils, 46 are girls, so 76 pupils - 46 girls = 30 boys
- 5 + 3 = 8
2. So 116 plants needed - 26 owned = 90 plants to buy
Step 3: 4 + 5 = 9
On 2024-05-12 he had 5 + 3 = 8 apples
At 10:30 he ran 3 * 4 = 12 miles
30-6-12 = 12 pink bricks
$3 \\times 4 = 12$
\\frac{1}{2} * 8 = 4
3 * 4 = \\boxed{12}
**3 * 4 = 12**
3 + 4 = <<3+4=7>>7
2 million + 500 thousand = 2.5 million
13 ÷ 1/2 = 26
2**3 + 4**2 = 24
Cost of 5 kg apples = 5 * 3 = 15
3 + 4 = 7 and 7 * 2 = 14
"""

REFUTED = """
3 * 4 = 13
7 - 10 = 3
3 * 4 = 12 = 10 + 3
3 * 28 = 84 rolls = 80 + 5
£55 = 1/2 x £390
2 + 3 * 4 = 20
1,234 + 1 = 2,235
0.1 + 0.2 = 0.4
3 trays * 28 rolls = 85 rolls
$16 + $28 = $45
50% of 80 = 45
15 / 20 = 70%
10 / 3 = 3
10 / 3 = 3.4
10 / 3 ≈ 3.4
13÷2/3=19 minutes
300 + 95 ≈ 300
132 / 28 = 4 remainder 19
132 / 28 = 5 R 20
5 kg + 3 kg = 8 m
5 kg + 3 kg = 8 g
60 minutes + 30 minutes = 2 hours
90 minutes = 2 hours
€5 + €3 = $8
84 > 132
3 * 28 = 84 > 132
2x + 3 = 11 -> x = 5
2x + 3x = 5x = 10 and x = 3
gcd(586, 594) = 4
780 = 1 * 461 + 318
-7 // 2 = -3
The total of 3 + 4 = 8
so that's 0.68*40 = 27 students
3 + 4 = 7, so 7 * 2 = 15
5 + 5 = 10 and 10 + 10 = 30
5 = 6
He ate 2 ** 3 = 9
"""

UNKNOWN = """
There are 3 trays with 28 rolls each.
Pages 10-20 = 11 pages
Pages 10–20 = 11
1990-1995 = 5 years
2024-05-12 = 3
10:30 - 9:15 = 75 minutes
From 5/12/2024 - 3 = 9
W = 5 episodes
Let x = 5
x = 3 or x = -3
y = x + 70
x * x = 9
2x + 70 = 272
Total - 5 = 3
half * 74 = 38
half of 30 + 4 = 19
2 * 3 apples and 4 pears = 10
1 tray = 28 rolls
Day 2 = 5 + 3
Cost of 5 kg apples = 5 * 3
1 hour 30 minutes = 1.5 hours
2 hours 15 minutes + 45 minutes = 3 hours
1 hour + 30 = 90 minutes
$200 - 10% = $180
5 dozen + 3 = 63
60 / 12 = 6 dozen
25 = 25.0 + error
3 + ? = 7
3 + x
2^1000000 = 5
1 / 0 = 7
1 / 8 = 0.13
version 1.2.3 - 4 = 5
= 5
3 =
= = =
"""


def _lines(table: str) -> list[str]:
    return table.strip().splitlines()


@pytest.mark.parametrize("text", _lines(VERIFIED))
def test_verified(text: str) -> None:
    assert check_step(text) == "verified", find_statements(text)


@pytest.mark.parametrize("text", _lines(REFUTED))
def test_refuted(text: str) -> None:
    assert check_step(text) == "refuted", find_statements(text)


@pytest.mark.parametrize("text", _lines(UNKNOWN))
def test_unknown(text: str) -> None:
    assert check_step(text) == "unknown", find_statements(text)


def test_statements_say_what_they_use_and_give() -> None:
    first, second = find_statements("She has 3 trays * 28 rolls = 84 rolls, so 84 + n = 90.")
    assert (first.uses, first.gives) == ((Fraction(3), Fraction(28)), Fraction(84))
    assert (second.uses, second.gives, second.variables) == ((Fraction(84),), Fraction(90), {"n"})


def test_random_sums_and_products_agree_with_python() -> None:
    generator = random.Random(5)
    for _ in range(2000):
        terms = [str(generator.randint(-99, 999))]
        for _ in range(generator.randint(1, 6)):
            terms += [generator.choice(["+", "-", "*", "//"]), str(generator.randint(1, 99))]
        expression = " ".join(terms)
        value = eval(expression)
        assert check_step(f"{expression} = {value}") == "verified", expression
        assert check_step(f"{expression} = {value + 1}") == "refuted", expression


HOSTILE = {
    "brackets": "(" * 2000 + "1" + ")" * 1990 + " = 1",
    "open": "(" * 3990 + "=1",
    "equals": "=" * 3999,
    "chain": "1=" * 1999,
    "pluses": "1" + "+1" * 1990 + " = 1",
    "minuses": "-" * 3900 + "1 = 1",
    "powers": "9^" * 1900 + "9 = 1",
    "factors": "9999999*" * 490 + "1 = 1",
    "digits": "9" * 3900 + " = 1",
    "words": "a " * 1990 + "= 1",
    "units": "1 a b c d e f " * 280 + "= 1",
    "commas": "1," * 1990 + "= 1",
    "slashes": "1/" * 1990 + "1 = 1",
    "calls": "gcd(" * 900 + "1" + ")" * 300 + " = 1",
    "braces": "\\frac{" * 600,
    "stars": "**a" * 1300,
    "marks": "<<" * 1900,
    "unicode": "１ ＋ ２ ＝ ３ ٣ + ٤ = ٧ ½ + ¼ = ¾ \x00 \u202e",
    "long": "3 * 4 = 12 " * 100_000,
    "lines": "\n" * 1000 + "> " * 1400,
    "bullets": "- " * 1999 + "=",
    "dates": "1-1-" * 990 + "=1",
    "letters": "x y z = " * 480,
    "spaces": "1" + " " * 3900 + "= 1",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_takes_no_time(name: str) -> None:
    started = time.process_time()
    check_step(HOSTILE[name])
    # the slowest takes about 40 ms; a quadratic one would take seconds
    assert time.process_time() - started < 1.0


def test_random_text_never_raises() -> None:
    generator = random.Random(6)
    pieces = [
        *"0123456789+-*/=()[]^%x.,:;$€ \n",
        "12",
        " = ",
        " + ",
        "gcd(",
        "1/2",
        "kg",
        "minutes",
        "≈",
        "->",
        "of",
        "\\",
    ]
    for _ in range(8_000):
        text = "".join(generator.choices(pieces, k=generator.randint(1, 30)))
        assert check_step(text) in ("verified", "refuted", "unknown")
