"""Operations that combine entries along axes. Sums and extremes lose an axis; windows and orders need theirs whole."""

from collections.abc import Sequence

from jaxprune.program.evaluation import Narrowing
from jaxprune.program.labelling import Axes, Call


def _reduce(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """What is left of the reduced axis is reduced: whether that is the same is for the certificate to say."""
    return [_without(ins[0], call.params["axes"])]


def _arg(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    for axis in call.params["axes"]:
        call.pin(ins[0][axis], "the result is a position along this axis")
    return [_without(ins[0], call.params["axes"])]


def _without(axes: Axes, gone: Sequence[int]) -> Axes:
    return tuple(labels for axis, labels in enumerate(axes) if axis not in gone)


def _cumulative(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    call.pin(ins[0][call.params["axis"]], "combined in order along this axis")
    return [ins[0]]


def _sort(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    for axes in ins:
        for axis, labels in enumerate(axes):
            call.labels.tie(ins[0][axis], labels)
    call.pin(ins[0][call.params["dimension"]], "sorted along this axis")
    return list(ins)


def _top_k(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    ordered = call.params.get("axis", len(ins[0]) - 1)
    call.pin(ins[0][ordered], "sorted along this axis")
    top = call.fixed(call.out_shape()[ordered], "sorted along this axis")
    return [tuple(top if axis == ordered else labels for axis, labels in enumerate(ins[0]))] * 2


def _window(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    """Axes on which the window is a single entry, moved by one, pass on; the others stay."""
    params, out = call.params, []
    for axis, labels in enumerate(ins[0]):
        moves = (params["window_dimensions"][axis], params["window_strides"][axis], *params["padding"][axis])
        dilated = [params[name][axis] for name in ("base_dilation", "window_dilation") if params.get(name)]
        if moves == (1, 1, 0, 0) and all(width == 1 for width in dilated):
            out.append(labels)
        else:
            call.pin(labels, "combined in windows along this axis")
            out.append(call.fixed(call.out_shape()[axis], "combined in windows along this axis"))
    return [tuple(out)]


def _transform(call: Call, ins: Sequence[Axes]) -> list[Axes]:
    last = len(call.params["fft_lengths"])
    for labels in ins[0][-last:]:
        call.pin(labels, "a Fourier transform along this axis")
    kept = len(ins[0]) - last
    ends = [call.fixed(size, "a Fourier transform along this axis") for size in call.out_shape()[kept:]]
    return [(*ins[0][:kept], *ends)]


NARROWINGS = {
    **{name: Narrowing(_reduce) for name in ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod")},
    **{name: Narrowing(_reduce) for name in ("reduce_and", "reduce_or", "reduce_xor")},
    **{name: Narrowing(_arg) for name in ("argmax", "argmin")},
    **{name: Narrowing(_cumulative) for name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")},
    **{name: Narrowing(_window) for name in ("reduce_window_sum", "reduce_window_max", "reduce_window_min")},
    "sort": Narrowing(_sort),
    "top_k": Narrowing(_top_k),
    "fft": Narrowing(_transform),
}
