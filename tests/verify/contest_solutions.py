"""Correct programs, written for these tests, for some of the CodeContests problems, by the row (from 0) in the file."""

from __future__ import annotations

SQUARE = """
for _ in range(int(input())):
    s = input().strip()
    h = len(s) // 2
    print("YES" if len(s) % 2 == 0 and s[:h] == s[h:] else "NO")
"""

LIKES = """
def root(n, k):
    r = round(n ** (1 / k))
    while r ** k > n:
        r -= 1
    while (r + 1) ** k <= n:
        r += 1
    return r

for _ in range(int(input())):
    n = int(input())
    print(root(n, 2) + root(n, 3) - root(n, 6))
"""

COMPARE = """
import sys
t, *rest = map(int, sys.stdin.read().split())
for i in range(t):
    x, p, y, q = rest[4 * i : 4 * i + 4]
    low = min(p, q)
    p, q = p - low, q - low
    if p > 7:
        print(">")
    elif q > 7:
        print("<")
    else:
        a, b = x * 10 ** p, y * 10 ** q
        print("<" if a < b else ">" if a > b else "=")
"""

SPECIAL = """
for _ in range(int(input())):
    n, k = map(int, input().split())
    total, power = 0, 1
    while k:
        if k & 1:
            total = (total + power) % 1000000007
        power = power * n % 1000000007
        k >>= 1
    print(total)
"""

GAME = """
n = int(input())
a = list(map(int, input().split()))
left = 1
while left < n and a[left] > a[left - 1]:
    left += 1
right = 1
while right < n and a[n - right - 1] > a[n - right]:
    right += 1
print("Alice" if left % 2 or right % 2 else "Bob")
"""

NEIGHBOURS = """
M = 998244353
n = int(input())
a = list(map(int, input().split()))
# f(i) = sum over j < i of (-1)^(i-j-1) f(j) min(a[j+1..i]); the sums by minimum are kept on a stack.
f = [0] * (n + 1)
f[0] = 1
stack, total = [], 0
for i in range(1, n + 1):
    weight = f[i - 1]
    total = -total % M
    while stack and stack[-1][0] >= a[i - 1]:
        low, some, sign = stack.pop()
        some = some if (i - sign) % 2 == 0 else -some
        total = (total - low * some) % M
        weight = (weight + some) % M
    stack.append((a[i - 1], weight, i))
    total = (total + a[i - 1] * weight) % M
    f[i] = total
print(f[n] % M)
"""

SOLUTIONS = {50: NEIGHBOURS, 52: SPECIAL, 75: GAME, 113: COMPARE, 139: SQUARE, 140: LIKES}
