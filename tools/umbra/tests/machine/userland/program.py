# What a processor can get wrong: integers of any size, floats to the last bit, hashes, strings,
# regular expressions, exceptions, generators, threads. Prints the same everywhere.
import base64, bisect, binascii, collections, decimal, fractions, functools, hashlib, heapq
import itertools, json, math, operator, queue, random, re, statistics, string, struct, textwrap
import threading, zlib

print("hashes")
data = bytes(range(256)) * 40
for name in ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "blake2b", "blake2s", "sha3_256"):
    print(name, hashlib.new(name, data).hexdigest()[:32])
print("crc", zlib.crc32(data), zlib.adler32(data), binascii.crc_hqx(data, 0))
packed = zlib.compress(data, 9)
print("zlib", len(packed), zlib.decompress(packed) == data)
print("pbkdf2", hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 200).hex())

print("integers")
print(2**521 - 1, math.factorial(60), pow(3, 10**18, 10**18 + 9))
print((-7) // 2, (-7) % 2, divmod(-(10**30), 10**7 + 19), ~(1 << 70), (1 << 200) >> 131)
print(math.isqrt(10**61), math.gcd(2**100 - 1, 3**60), (10**40).bit_length(), hex(-(2**90) + 1))

print("floats")
for x in (0.1, 1 / 3, 1e300 * 1e10, -0.0, 5e-324, 2**53 + 1.0, 1e22, 123456789.123456789, math.pi):
    print(repr(x), x.hex() if math.isfinite(x) else x, round(x, 3) if math.isfinite(x) else x)
for f in (math.sin, math.cos, math.tan, math.exp, math.atan, math.sinh, math.tanh, math.erf, math.cbrt):
    print(f.__name__, [repr(f(k / 7)) for k in range(-9, 10, 4)])
for f in (math.log, math.log2, math.sqrt, math.gamma, math.lgamma):
    print(f.__name__, [repr(f(k / 7)) for k in range(1, 40, 9)])
print(repr(math.pow(1.1, 123.4)), repr(1e16 + 1), math.fsum([0.1] * 10), sum([0.1] * 10), 7.5 // 2, -7.5 % 2)
print(math.frexp(1e-310), math.ldexp(0.7, -1070), math.nextafter(1, 2), math.fmod(-7, 3), math.remainder(7, 4))
print(float("1e-400"), float("inf") - float("inf"), int(1e20), round(2.5), round(-3.5), "%.20f %g" % (0.1, 1e-5))
print(complex(1, 2) ** 3, abs(3 + 4j), (2 + 0j) ** 0.5)
print(struct.pack("<dfqHb", 1.5, 0.1, -(2**62), 65535, -1).hex(), struct.unpack("<f", b"\x01\x00\x00\x00"))
print(statistics.mean([1.5, 2.5, 10]), statistics.stdev(range(17)), statistics.median([5, 1, 9, 3]))

print("decimal")
decimal.getcontext().prec = 50
print(decimal.Decimal(2).sqrt(), decimal.Decimal(1).exp(), decimal.Decimal("1e-3").ln())
print(decimal.Decimal("0.1") + decimal.Decimal("0.2"), decimal.Decimal(10) / 7, decimal.Decimal(-7) % 3)
print(sum(fractions.Fraction(1, n) for n in range(1, 30)))

print("random")
random.seed(20131)
print([random.randrange(10**6) for _ in range(8)], random.random(), random.gauss(0, 1))
values = [random.getrandbits(64) for _ in range(3000)]
print(hashlib.sha256(repr(sorted(values)).encode()).hexdigest())
print(sorted(values, key=lambda v: (v & 0xFF, -v))[::700], heapq.nlargest(3, values))
print(bisect.bisect(sorted(values), 1 << 63), functools.reduce(operator.xor, values))

print("text")
words = re.findall(r"[a-z]+", textwrap.dedent(re.__doc__).lower())
print(len(words), collections.Counter(words).most_common(6))
print(re.sub(r"(\w+) (\w+)", r"\2 \1", "one two three four"), re.split(r"[,;]\s*", "a, b;c,d"))
print(re.match(r"(?P<y>\d{4})-(?P<m>\d\d)(?=-)", "2013-06-07").groupdict(), bool(re.search(r"(a+)+$", "a" * 18 + "b")))
print("naïve Straße ΣΊΣΥΦΟΣ".casefold(), "ǆ".title(), "日本語".encode("utf-16-le").hex(), "%r" % "\u200b\U0001f600")
print(string.Template("$who likes $$").substitute(who="tim"), "{:>10,.2f}|{:^9b}|{:#x}".format(1234567.891, 37, 255))
print(base64.b85encode(data[:20]), "a\tb".expandtabs(4), "x".join("abc"), "abcabc".translate({97: "z"}))

print("json")
thing = {"list": [1, 2.5, None, True, -1e-7, 1e100], "nested": {"k": "v\u00e9\n\"", "empty": []}, "big": 2**70}
text = json.dumps(thing, sort_keys=True, indent=1)
print(text, json.loads(text) == thing)
try:
    json.loads('{"a": [1, 2,}')
except json.JSONDecodeError as error:
    print(error)

print("programs")


def queens(n, row=0, columns=0, up=0, down=0):
    if row == n:
        return 1
    free = ~(columns | up | down) & ((1 << n) - 1)
    total = 0
    while free:
        bit = free & -free
        free ^= bit
        total += queens(n, row + 1, columns | bit, (up | bit) << 1, (down | bit) >> 1)
    return total


def collatz(n):
    while n != 1:
        yield n
        n = n // 2 if n % 2 == 0 else 3 * n + 1


print(queens(6), sum(1 for _ in collatz(837799)), max(collatz(27)))
sieve = bytearray([1]) * 20000
for n in range(2, 142):
    if sieve[n]:
        sieve[n * n :: n] = bytes(len(range(n * n, 20000, n)))
print(sum(sieve) - 2, list(itertools.islice(itertools.permutations("abcd"), 20, 24)))
a, b = 0.0, 1.0
for _ in range(2000):
    a, b = 3.9 * b * (1 - b) + a * 1e-9, (a + b) / 2 % 1
print(repr(a), repr(b))


@functools.lru_cache(None)
def edit(s, t):
    if not s or not t:
        return len(s) + len(t)
    return min(edit(s[1:], t) + 1, edit(s, t[1:]) + 1, edit(s[1:], t[1:]) + (s[0] != t[0]))


print(edit("shadow paging", "shallow page"))

print("exceptions")
for bad in ("1 / 0", "[][1]", "{}['k']", "int('x')", "None.a", "'a' + 1", "math.sqrt(-1)", "2.0 ** 5000"):
    try:
        eval(bad)
    except Exception as error:
        print(bad, type(error).__name__, error)


def deep(n):
    return 1 + deep(n + 1)


try:
    deep(0)
except RecursionError as error:
    print("recursion", str(error)[:40])

print("threads")
lock, tally, jobs, results = threading.Lock(), collections.Counter(), queue.Queue(), queue.Queue()


def worker():
    while (job := jobs.get()) is not None:
        results.put((job, hashlib.sha256(bytes([job]) * 5000).hexdigest()[:8]))
        for _ in range(300):
            with lock:
                tally["turns"] += 1


threads = [threading.Thread(target=worker) for _ in range(4)]
for thread in threads:
    thread.start()
for job in range(24):
    jobs.put(job)
for _ in threads:
    jobs.put(None)
for thread in threads:
    thread.join()
print(tally["turns"], sorted(results.queue)[:4], len(results.queue))
barrier, order = threading.Barrier(3), []
parts = [threading.Thread(target=lambda: order.append(barrier.wait())) for _ in range(3)]
for part in parts:
    part.start()
for part in parts:
    part.join()
print(sorted(order))
