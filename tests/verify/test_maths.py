"""The verifier ``math``: its stated rules, math-verify as the reference of the fast path, and what would hang it."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismlab.verify.math_pool import MathPool
from prismlab.verify.math_text import LONGEST, answer_text, clean, last_box
from prismlab.verify.maths import judge_math
from prismlab.verify.verdict import Verdict

pytest.importorskip("math_verify", reason="math-verify is not installed: pip install 'prismlab[verify]'")
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
BOMBS = (
    r"10^{10^{10^{10}}}",
    r"\sum_{n=1}^{10^{9}} \frac{1}{n^2}",
    r"\Gamma(10^{6})",
    "2^{2^{2^{2^{2^2}}}}",
    "9999999!",
    r"\prod_{n=1}^{10^8} n",
    r"\int_0^{10^9} x^{x^x} dx",
    r"\binom{10^9}{10^8}",
    r"\sqrt{" * 60 + "2" + "}" * 60,
    "(" * 150 + "1" + ")" * 150,
    "+".join(f"x^{{{n}}}" for n in range(150)),
    r"\lim_{x \to \infty} x^{x^{x}}",
    "10**10**10",
    "1e999999999",
    r"\frac{1}{1+" * 80 + "1" + "}" * 80,
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^{100000}",
    r"((2^{99999})^{99999})^{99999}",
    r"\sin(10^{10^{10}})",
)


@pytest.fixture(scope="module")
def pool() -> Iterator[MathPool]:
    made = MathPool()
    made.ask("1", "x", 30.0)
    yield made
    made.close()


def word(gold: str, response: str, pool: MathPool, seconds: float = 120.0) -> str:
    return judge_math(gold, response, pool=pool, seconds=seconds).verdict


@pytest.mark.parametrize(
    ("gold", "response", "verdict"),
    [
        # Which answer counts.
        ("42", r"\boxed{41} no, \boxed{42}", "right"),
        ("41", r"\boxed{41} no, \boxed{42}", "wrong"),
        ("42", " ".join(rf"\boxed{{{n}}}" for n in range(100)), "wrong"),
        ("42", r"\boxed{42", "no_answer"),
        ("42", r"\boxed{}", "no_answer"),
        ("42", "", "no_answer"),
        ("42", "So 41.\n#### 42", "right"),
        ("42", "The answer is 42. Not 41.", "wrong"),
        ("42", "41\nthe answer is $42$.", "right"),
        ("42", "x\n40 + 2 = 42", "right"),
        ("42", "She has 42 apples.", "right"),
        ("42", "whatever the reference says", "wrong"),
        (r"\frac{1}{2}", r"\boxed{\frac{1}{2}}", "right"),
        (r"3\sqrt{2}", "Answer: 3\\sqrt 2", "right"),
        # Characters.
        ("42", "\\boxed{４２}", "right"),
        ("-42", "\\boxed{\u221242}", "right"),
        ("42", "\\boxed{٤٢}", "wrong"),
        ("A", "\\boxed{\u0410}", "wrong"),
        # Units and percent.
        ("10", r"\boxed{10\text{ cm}}", "right"),
        (r"10\text{ cm}", r"\boxed{10}", "right"),
        (r"10\text{ cm}", r"\boxed{10\ \mathrm{m}}", "wrong"),
        ("10 cm", "The answer is 10 cm.", "right"),
        ("18", r"\boxed{\$18}", "right"),
        (r"90^\circ", r"\boxed{90}", "right"),
        ("50", r"\boxed{50\%}", "right"),
        ("0.5", r"\boxed{50\%}", "wrong"),
        (r"50\%", r"\boxed{0.5}", "wrong"),
        # Numbers.
        ("1234.5", r"\boxed{1,234.5}", "right"),
        ("1234.5", r"\boxed{1.234,5}", "wrong"),
        ("1,000", r"\boxed{1{,}000}", "right"),
        ("72", "72.0", "right"),
        ("0.5", "1/2", "right"),
        ("1/3", "0.333333", "right"),
        ("1/3", "0.33", "wrong"),
        ("007", "7", "right"),
        # Formulas.
        (r"\frac{\pi}{2}", r"\boxed{\pi/2}", "right"),
        ("x^2+1", r"\boxed{1+x^{2}}", "right"),
        ("(1,2)", r"\boxed{(2,1)}", "wrong"),
        ("5", r"\boxed{x = 5}", "right"),
        (r"\frac{3}{4}", r"\boxed{\frac{\frac{3}{2}}{2}}", "right"),
        (r"\frac{3}{4}", r"\boxed{\dfrac34}", "right"),
        (r"\sqrt{8}", r"\boxed{2\sqrt2}", "right"),
        (r"2^{10}", r"\boxed{1024}", "right"),
        (r"\{1,2\}", r"\boxed{\{2,1\}}", "right"),
        ("42", r"\boxed{\boxed{42}}", "right"),
        ("42", r"\boxed{42!}", "wrong"),
        ("42", r"\boxed{42 \\ 43}", "wrong"),
        ("42", r"\boxed{42\%\%}", "wrong"),
        ("42", r"\boxed{41.99999}", "wrong"),
        ("42", "\\boxed{4\ufe0f2}", "wrong"),
        ("24", "\\boxed{\u202e42}", "wrong"),
        ("42", r"\boxed{[0,1000]}", "wrong"),
        ("42", r"\boxed{\infty-\infty}", "wrong"),
        ("42", r"\boxed{\text{see reference}}", "wrong"),
        ("42", r"\boxed{42 \text{ or } 43}", "wrong"),
        (r"\text{Monday}", r"\boxed{Monday}", "right"),
        # More than one value.
        ("42", r"\boxed{\geq 42}", "wrong"),
        ("42", r"\boxed{42 \text{ or anything}}", "wrong"),
        ("42", r"\boxed{42 \text{ 43}}", "wrong"),
        ("42", r"\boxed{42 \pm 1}", "wrong"),
        ("42", r"\boxed{4 2}", "wrong"),
        ("x>1", r"\boxed{x > 1}", "right"),
        (r"1 \text{ or } 2", r"\boxed{1 \text{ or } 2}", "right"),
        ("10080", r"\boxed{10\,080}", "right"),
        ("10080", r"\boxed{10,\!080}", "right"),
        ("42", r"\boxed{42\ cm^2}", "right"),
        ("42", r"\boxed{42\text{ square units}}", "right"),
        ("3 xy", r"\boxed{3}", "wrong"),
        ("42", "\\boxed{4\u200b2}", "wrong"),
        # The item itself.
        ("", "42", "no_verdict"),
        ("####", "42", "no_verdict"),
        ("9" * (LONGEST + 1), "42", "no_verdict"),
    ],
)
def test_stated_rules(gold: str, response: str, verdict: str, pool: MathPool) -> None:
    assert word(gold, response, pool) == verdict


def test_reasons(pool: MathPool) -> None:
    assert "U+0410 CYRILLIC CAPITAL LETTER A" in judge_math("A", "\\boxed{\u0410}", pool=pool, seconds=120.0).reason
    assert judge_math("10 cm", r"\boxed{10\text{ m}}", pool=pool).reason == "unit 'm' is not 'cm'"
    assert judge_math("4", r"\boxed{5}", pool=pool).reason == "'5' is not '4'"
    assert judge_math("4", r"\boxed{" + "9" * 5000 + "}", pool=pool).reason == "an answer of 5,000 characters"


def test_extraction_takes_linear_time() -> None:
    """A search that began anew at every character would take minutes of a processor."""
    began = time.thread_time()
    for text in (
        "The final answer is " + " " * 60_000 + "x",
        r"\boxed{" * 20_000,
        r"\boxed{" + "{" * 100_000,
        "$" * 100_001,
        "answer is " * 20_000,
        "1,234" * 20_000,
        "a" * 100_000 + "1",
        r"\(" * 50_000,
        "1/" * 50_000,
        r"\text{" * 20_000,
    ):
        answer_text(text)
        clean(text[:LONGEST])
    assert time.thread_time() - began < 20.0


@given(
    st.text()
    | st.lists(
        st.sampled_from(
            [r"\boxed{", "}", "{", "$", "####", "1", ",", ".", "%", r"\text{", "answer is", "\n", r"\(", " "]
        )
    ).map("".join)
)
def test_no_text_raises(text: str) -> None:
    found = answer_text(text)
    assert found is None or clean(found[:LONGEST]).text is not None
    assert (
        last_box(r"\boxed{" + text.replace("{", "").replace("}", "").replace("\\", "") + "}") is not None
        or len(text) > LONGEST
    )


def written(value: Fraction, rng: random.Random) -> str:
    kind = rng.randrange(4)
    if kind == 0 and value.denominator == 1:
        return str(value.numerator)
    if kind == 1 or 10**6 % value.denominator:
        sign = "-" if value < 0 else ""
        return rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    if kind == 2:
        return f"{value.numerator}/{value.denominator}"
    text = f"{float(value):.6f}"
    return text if rng.random() < 0.5 else text.rstrip("0").rstrip(".")


def test_the_fast_path_gives_what_math_verify_gives() -> None:
    """On pairs that are equal, near and far; math-verify is asked here without anything of ours."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    ways = [LatexExtractionConfig(), ExprExtractionConfig()]
    rng, fast = random.Random(0), 0

    class NoPool:
        def ask(self, *_: Any) -> str:
            return "fault"

    for _ in range(250):
        value = Fraction(rng.randint(-500, 500), rng.choice([1, 1, 1, 2, 4, 5, 8, 10, 100, 1000, 10**6, 3, 7]))
        other = value + rng.choice([0, 0, 1, Fraction(1, 10), Fraction(1, 10**6), -2 * value])
        gold, answer = written(value, rng), written(other, rng)
        ours = judge_math(gold, rf"\boxed{{{answer}}}", pool=NoPool())  # type: ignore[arg-type]
        if ours.verdict == "no_verdict":
            continue
        fast += 1
        sides = [parse(rf"\boxed{{{text}}}", ways) for text in (gold, answer)]
        assert verify(*sides) == (ours.verdict == "right"), (gold, answer, ours)
    assert fast > 150


def test_what_would_hang_is_decided_within_its_limit_also_from_threads(pool: MathPool) -> None:
    """All at once, up to sixteen of them at work, none on the main thread."""
    found: dict[str, tuple[Verdict, float]] = {}

    def work(bomb: str) -> None:
        began = time.monotonic()
        said = judge_math("42", rf"\boxed{{{bomb}}}", pool=pool, seconds=1.0)
        found[bomb] = said, time.monotonic() - began

    threads = [threading.Thread(target=work, args=(bomb,)) for bomb in BOMBS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {bomb: said for bomb, (said, _) in found.items() if said.verdict != "wrong"} == {}
    assert sum("not decided within 1 s" in said.reason for said, _ in found.values()) >= 3
    # What they left behind does not stand in the way.
    assert word(r"\sqrt{12}", r"\boxed{2\sqrt{3}}", pool) == "right"


def test_an_answer_is_never_run(pool: MathPool, tmp_path: Path) -> None:
    """math-verify gives what looks like a sum to sympy's parser, which evaluates it as Python: nothing with a letter in
    it may get there."""
    canary = tmp_path / "canary"
    for text in (
        f"__import__('os').system('touch {canary}')",
        f"1+__import__('os').system('touch {canary}')",
        f"1+(lambda:open('{canary}','w'))()",
        f"2*open('{canary}','w').fileno()",
        f"=1+open('{canary}','w').fileno().",
    ):
        for response in (rf"\boxed{{{text}}}", f"The final answer is {text}. I hope", f"answer: {text}"):
            assert word("42", response, pool) in ("wrong", "no_answer")
        assert pool.ask(text, "42", 120.0) in ("wrong", "gold")
    assert not canary.exists()


def kill_idle(pool: MathPool) -> None:
    """Kill the workers that wait, and wait until they have ended."""
    for worker in list(pool.idle):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(worker.handle, signal.SIGKILL)
        assert select.select([worker.handle], [], [], 120.0)[0]


def test_workers_are_killed_and_replaced(pool: MathPool) -> None:
    assert pool.ask("x+1", "1+x", 120.0) == "right"
    kill_idle(pool)
    assert pool.ask("x+1", "1+x", 120.0) == "right"
    assert pool.parent is not None
    pool.parent.kill()
    pool.parent.wait()
    kill_idle(pool)
    assert pool.ask("x+1", "1+x", 120.0) == "right"


def test_the_machines_trouble_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = MathPool()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert judge_math("x", r"\boxed{y}", pool=broken).verdict == "no_verdict"
    broken.close()


def test_an_item_that_is_no_mathematics_has_no_verdict(pool: MathPool) -> None:
    assert pool.ask("", "1", 120.0) == "gold"


def test_nothing_is_left_when_the_process_ends() -> None:
    code = (
        "from prismlab.verify.maths import judge_math\nfrom prismlab.verify.math_pool import shared_pool\n"
        "judge_math('x+1', r'\\boxed{1+x}')\nprint(shared_pool().parent.pid)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not os.path.exists(f"/proc/{int(done.stdout)}")  # noqa: PTH110
    assert done.stderr == ""


def test_every_gold_answer_of_gsm8k_verifies_against_itself_in_three_notations() -> None:
    seen = 0
    for name in ("math/gsm8k_train.jsonl.gz", "math/gsm8k_test.jsonl"):
        file = SHARED / name
        if not file.is_file():
            pytest.skip(f"no {file}: real data is not beside this checkout")
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                final = row["answer"].rpartition("####")[2].strip()
                boxed, marked, told = rf"So \boxed{{{final}}}.", f"So\n#### {final}", f"The answer is ${final}."
                for response in (boxed, marked, told):
                    assert judge_math(row["answer"], response).verdict == "right", (final, response)
                other = Fraction(final.replace(",", "")) + 1
                assert judge_math(row["answer"], rf"\boxed{{{float(other)}}}").verdict == "wrong"
                seen += 1
    assert seen > 8000
