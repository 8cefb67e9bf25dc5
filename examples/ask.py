"""Say what you want, not what you set: files and networks for digits, by the bytes or the accuracy that they must have.

A network of three layers for 8x8 digits is asked for three times: the smallest file within half a point, the most
accurate file under 8 kB, and the fewest multiplications within one point. One set of digits chooses; the test digits
only report. The gap between the two is what the choice owes to its own digits.
"""

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxprune as jp

matplotlib.use("agg")

# ---------------------------------------------------------------------------------------------------------------------
# Digits and a trained network.

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.data))
images, labels = (digits.data[order] / 16).astype(np.float32), digits.target[order]
train, choose, test = ((images[part], labels[part]) for part in (slice(0, 900), slice(900, 1350), slice(1350, None)))
draw, keys = jax.nn.initializers.lecun_normal(), jax.random.split(jax.random.key(0), 3)
shapes = [(64, 96), (96, 96), (96, 10)]
pairs = zip(keys, shapes, strict=True)
params = {f"layer_{i}": {"kernel": draw(key, s), "bias": jnp.zeros(s[1])} for i, (key, s) in enumerate(pairs)}


def logits(params, x):
    for name in ("layer_0", "layer_1"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params["layer_2"]["kernel"] + params["layer_2"]["bias"]


def cross_entropy(params, data):
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, data[0]), data[1]).mean()


@jax.jit
def step(params, state, data):
    updates, state = optimizer.update(jax.grad(cross_entropy)(params, data), state)
    return optax.apply_updates(params, updates), state


optimizer = optax.adam(3e-3)
state = optimizer.init(params)
for _ in range(250):
    params, state = step(params, state, train)

# ---------------------------------------------------------------------------------------------------------------------
# What is measured: how far the outputs move, which is smooth, chooses; accuracy and multiplications are limits.

before = jax.nn.log_softmax(logits(params, choose[0]))


def loss(small):
    return (jnp.exp(before) * (before - jax.nn.log_softmax(logits(small, choose[0])))).sum(axis=1).mean()


def accuracy(params, data=choose):
    return float((logits(params, data[0]).argmax(axis=1) == data[1]).mean())


def multiplications(params):
    """Those of a row of weights whose input is used and of a column that is."""
    kernels = [np.asarray(layer["kernel"]) != 0 for layer in params.values()]
    return sum(int(kernel.any(axis=1).sum()) * int(kernel.any(axis=0).sum()) for kernel in kernels)


def inputs_cut(params, share):
    """The inputs of each layer with the smallest weights become 0: its rows."""
    return {name: layer | {"kernel": rows_cut(layer["kernel"], share)} for name, layer in params.items()}


def rows_cut(kernel, share):
    sizes = jnp.square(kernel).sum(axis=1)
    return kernel * (sizes >= jnp.quantile(sizes, share))[:, None]


# ---------------------------------------------------------------------------------------------------------------------
# Three wishes.

widths = {"int": (lambda params, bits: jp.quantize(params, bits, spec=jp.QuantSpec(axis="units")), [2, 3, 4, 5, 6, 8])}
cuts = {"cut": (inputs_cut, [0.1, 0.2, 0.3, 0.4, 0.5])}
measures = {"accuracy": (accuracy, "max"), "multiplications": (multiplications, "min")}
table, dense = jp.sensitivity(loss, params, widths), accuracy(params)

smallest = jp.search(loss, params, table, minimize="bytes", limits={"accuracy": dense - 0.005}, measures=measures)
under = jp.search(loss, params, table, limits={"bytes": 8000})
fastest = jp.search(
    loss, params, cuts, minimize="multiplications", limits={"accuracy": dense - 0.01}, measures=measures
)

# ---------------------------------------------------------------------------------------------------------------------
# One table, on test digits, and why the file under 8 kB is as it is.

uniform = {bits: widths["int"][0](params, bits) for bits in widths["int"][1]}
fitting = [bits for bits, coded in uniform.items() if jp.compress(coded).nbytes <= 8000]
same_bytes = jp.dequantize(uniform[max(fitting, default=2)])
rows = {"dense": (params, jp.compress(params).nbytes)}
wishes = {
    "smallest within half a point": smallest,
    "most accurate under 8 kB": under,
    "fastest within one point": fastest,
}
rows |= {name: (jp.dequantize(found.params), found.values["bytes"]) for name, found in wishes.items()}
print(f"{'':30}{'bytes':>8}{'multiplications':>17}{'chose':>8}{'test':>8}")
for name, (small, size) in rows.items():
    work = multiplications(small)
    print(f"{name:30}{size:>8,.0f}{work:>17,}{accuracy(small):>8.1%}{accuracy(small, test):>8.1%}")
print(f"\n{under}")

# ---------------------------------------------------------------------------------------------------------------------
# The picture: all that was evaluated together.

figure = under.plot().figure
figure.savefig("ask.png", dpi=120)

evaluations = sum(found.evaluations for found in wishes.values())
print(
    f"max_bytes=8000 bytes={under.values['bytes']:.0f} accuracy={accuracy(jp.dequantize(under.params), test):.3f} "
    f"uniform_accuracy={accuracy(same_bytes, test):.3f} evaluations={evaluations}"
)
