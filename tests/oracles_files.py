"""What files must hold, written down again from docs/format.md in plain NumPy and Python: nothing from jaxprune."""

import json
import zlib

import ml_dtypes
import numpy as np
import zstandard

DTYPES = """bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 bfloat16 float32 float64 complex64 complex128
int1 int2 int4 uint1 uint2 uint4""".split()


def entropy(codes):
    """Bits an entry by the frequencies of the values."""
    share = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(share * np.log2(share)).sum())


def number(data, at):
    """An unsigned number of 7 bits a byte, and where the next thing begins."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


def unpacked(data, count):
    """What the coder `packing` coded."""
    if not count:
        return np.zeros(0, np.int64)
    folded, at = number(data, 0)
    least = -(folded + 1) // 2 if folded % 2 else folded // 2
    width = data[at]
    bits = int.from_bytes(data[at + 1 :], "little")
    return np.array([least + ((bits >> (i * width)) & ((1 << width) - 1)) for i in range(count)], np.int64)


def array(data):
    """One leaf; its planes by any coder but the one that learns."""
    form, origin, dtype, rank = data[:4]
    dtype = np.dtype(getattr(ml_dtypes, DTYPES[dtype], DTYPES[dtype]))
    at, shape = 4, []
    for _ in range(rank):
        length, at = number(data, at)
        shape.append(length)
    assert origin in (0, 1, 2)
    count, width = int(np.prod(shape, dtype=int)), dtype.itemsize

    def plane(at, count):
        coder, (size, at) = data[at], number(data, at + 1)
        coded, end = data[at : at + size], at + size
        if coder == 6:
            frame = zstandard.ZstdDecompressor().decompress((0xFD2FB528).to_bytes(4, "little") + coded)
            return np.frombuffer(frame, np.uint8).astype(np.int64), end
        if coder == 3:
            from oracles_classes import classes

            return classes(coded, (count // shape[-1], shape[-1])).reshape(-1).astype(np.int64), end
        return np.array({0: unpacked, 1: static, 2: lanes, 5: gaps}[coder](coded, count), np.int64).reshape(count), end

    if form == 0:
        return np.frombuffer(data[at:], dtype).reshape(shape)
    if form == 1:
        return plane(at, count)[0].astype(dtype).reshape(shape)
    if form == 2:
        size, at = number(data, at)
        table = np.frombuffer(data[at : at + size * width], dtype)
        zero = [i for i in range(size) if not any(table[i : i + 1].tobytes())]
        return table[plane(at + size * width, count)[0] + (zero or [0])[0]].reshape(shape)
    if form == 5:
        codes = plane(at + 4, count)[0].astype(np.float32)
        return (codes * np.frombuffer(data[at : at + 4], np.float32)).astype(dtype).reshape(shape)
    kept = np.ones(count, bool)
    if form == 4:
        flags, at = plane(at, count)
        kept = flags == 1
    exponent = {"float16": 5, "bfloat16": 8, "float32": 8, "float64": 11}.get(dtype.name, 0)
    offset, at = number(data, at) if exponent else (0, at)
    entries = np.zeros((count, width), np.uint8)
    for i in range(width):
        entries[kept, i], at = plane(at, kept.sum())
    bits = entries.reshape(-1).view(f"<u{width}").astype(object)
    if exponent:
        whole, onward = 8 * width, max(0, exponent - 6)
        bits = (bits >> onward) | ((bits & (2**onward - 1)) << (whole - onward))
        bits = np.where(kept, (bits - (offset << (whole - exponent))) % 2**whole, 0)
        bits = (bits >> 1) | ((bits & 1) << (whole - 1))
    return bits.astype(f"<u{width}").view(dtype).reshape(shape)


def read(data):
    """The arrays of a file of dicts, lists and tuples, by path; checks every checksum."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    described = header.pop("__metadata__")["jaxprune"]
    tensors = {k: data[8 + length :][slice(*v["data_offsets"])] for k, v in header.items()}
    tree = json.loads(described)
    assert tree["version"] == 3
    leaves = []

    def walk(item, path):
        join = f"{path}/".lstrip("/")
        if isinstance(item, dict):
            for key, child in item.items():
                walk(child, join + key)
        elif isinstance(item, list):
            assert tree["kinds"][item[0]]["type"] in ("list", "tuple")
            for i, child in enumerate(item[1:]):
                walk(child, f"{join}{i}")
        elif item is not None:
            leaves.append((path, item))

    walk(tree["tree"], "")
    shared, at, small = tensors.get("*", b""), 0, []
    for _, own in leaves:
        if not own:
            size, at = number(shared, at)
            small.append(size)
    found = {}
    for i, (path, own) in enumerate(leaves):
        stored = tensors[path] if own else shared[at : at + small[0]]
        if not own:
            at += small.pop(0)
        seed = zlib.crc32(str(i).encode(), zlib.crc32(described.encode()))
        assert zlib.crc32(stored[:-4], seed).to_bytes(4, "little") == stored[-4:]
        found[path] = array(stored[:-4])
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The coders, one bit or one entry at a time


def signed(data, at):
    """A signed number, and where the next thing begins."""
    folded, at = number(data, at)
    return (-(folded + 1) // 2 if folded % 2 else folded // 2), at


def packed_bits(codes, bits):
    """Codes (two's complement where negative) as bytes: code i at bit i * bits, low bits first."""
    total = sum((int(code) % 2**bits) << (i * bits) for i, code in enumerate(codes))
    return total.to_bytes(-(-len(codes) * bits // 8), "little")


def high_bits(data):
    """The bits of bytes as text, the highest of each byte first."""
    return "".join(f"{byte:08b}" for byte in data)


def small_integers(data, at, count):
    """A list of integers, and where the next thing begins."""
    if not count:
        return [], at
    k = data[at]
    if k == 32:
        return [0] * count, at + 1
    bits, place, classes = high_bits(data[at + 1 :]), 0, []
    for _ in range(count):
        end = bits.index("1", place)
        classes.append(end - place)
        place = end + 1
    at += 1 + -(-place // 8)
    bits, place, values = high_bits(data[at:]), 0, []
    for q in classes:
        start, extra = (q * 2**k, k) if q <= 2 else ((2 ** (q - 2) + 1) * 2**k, k + q - 2)
        values.append(start + int("0" + bits[place : place + extra], 2))
        place += extra
    return values, at + -(-place // 8)


def table(data, at=0):
    """The values and levels of a table, and where the next thing begins."""
    value, at = signed(data, at)
    count, at = number(data, at)
    gaps, at = small_integers(data, at, count - 1)
    levels, at = small_integers(data, at, count if count > 1 else 0)
    symbols = [value + sum(gaps[:i]) + i for i in range(count)]
    return symbols, [level + 1 for level in levels] or [1], at


def frequencies(levels):
    """Whole numbers that sum to 2**24, in proportion to the squares of the levels but for what rounding does."""
    sums = [sum(level**2 for level in levels[:i]) for i in range(len(levels) + 1)]
    shift = max(0, sums[-1].bit_length() - 39)
    scaled = [(c >> shift) * (2**24 - len(levels)) // (sums[-1] >> shift) for c in sums]
    return [1 + b - a for a, b in zip(scaled, scaled[1:], strict=False)]


def static(data, count):
    """What the coder `ans` coded."""
    if not count:
        return []
    symbols, levels, at = table(data)
    if len(symbols) == 1:
        return symbols * count
    return stream(data[at:], [list(zip(symbols, levels, strict=True))] * count)


def stream(data, tables):
    """The entries of a stream, of which each has a table: pairs of values and levels."""
    rest = data + bytes(-len(data) % 4)
    words = [int.from_bytes(rest[i : i + 4], "little") for i in range(0, len(rest), 4)]
    state, values, known = 0, [], {}
    while words and state < 2**32:
        state = state << 32 | words.pop()
    for pairs in tables:
        if len(pairs) == 1:
            values.append(pairs[0][0])
            continue
        if id(pairs) not in known:
            known[id(pairs)] = frequencies([level for _, level in pairs])
        shares = known[id(pairs)]
        below, i, offset = 0, 0, state % 2**24
        while below + shares[i] <= offset:
            below, i = below + shares[i], i + 1
        values.append(pairs[i][0])
        state = (state >> 24) * shares[i] + offset - below
        if words and state < 2**32:
            state = state << 32 | words.pop()
    assert not state and not words
    return values


def gaps(data, count):
    """What the coder `gaps` coded."""
    if not count:
        return []
    common, at = signed(data, 0)
    others, at = number(data, at)
    tables = []
    for _ in range(2):
        symbols, levels, at = table(data, at)
        tables += [list(zip(symbols, levels, strict=True))] * others
    coded = stream(data[at:], tables)
    values, place = [common] * count, -1
    for value, gap in zip(coded[:others], coded[others:], strict=True):
        place += gap + 1
        values[place] = value
    return values


def lane_frequencies(levels):
    """Of 2**12: those of values, 0 for rare ones, and that of the escape."""
    fine = frequencies(levels)
    coarse = [(f + 2048) // 4096 for f in fine]
    limit = sorted(coarse)[-256] if len(coarse) > 255 else 0
    coarse = [f if f > limit else 0 for f in coarse]
    rare = [f for f, c in zip(fine, coarse, strict=True) if not c]
    escape = max(1, (sum(rare) + 2048) // 4096) if rare else 0
    coarse[coarse.index(max(coarse))] += 4096 - sum(coarse) - escape
    return coarse, escape


def lane_stream(data, symbols, levels, count):
    """The entries of a stream in lanes."""
    least, at = number(data, 0)
    above, at = small_integers(data, at, 64)
    states = [int.from_bytes(data[at + 4 * i : at + 4 * i + 4], "little") for i in range(64)]
    at, words = at + 256, []
    for more in above:
        size = 2 * (least + more)
        words.append([int.from_bytes(data[at + i : at + i + 2], "little") for i in range(0, size, 2)])
        at += size
    shares, escape = lane_frequencies(levels)
    slots = [(symbols[k], f) for k, f in enumerate(shares) if f] + [(None, escape)] * (escape > 0)
    places = [(slot, begin) for begin, slot in zip(np.cumsum([0] + [f for _, f in slots]), slots, strict=False)]
    values = []
    for i in range(count):
        x = states[i % 64]
        (value, f), begin = [place for place in places if place[1] <= x % 4096][-1]
        x = (x // 4096) * f + x % 4096 - int(begin)
        states[i % 64] = x if x >= 2**16 else x * 2**16 + words[i % 64].pop(0)
        values.append(value)
    assert set(states) == {2**16} and not any(words)
    rare = [(s, level) for s, level, f in zip(symbols, levels, shares, strict=True) if not f]
    others = iter(stream(data[at:], [rare] * values.count(None)))
    return [next(others) if value is None else value for value in values]


def lanes(data, count):
    """What the coder `lanes` coded."""
    if not count:
        return []
    symbols, levels, at = table(data)
    return lane_stream(data[at:], symbols, levels, count)
