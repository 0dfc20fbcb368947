"""Thirty-two 16-bit lanes as a type of numba's, and the operations of the pass over bfloat16, one instruction each.

A compiler that vectorises a loop for itself widens what need not be wide: a high product by way of 32 bits, a test as a
lane of ones. Written as vectors, a block costs less than half. LLVM cuts these vectors to what a machine has: one
register with AVX-512, two with AVX2, four with NEON.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, models, register_model

WIDTH = 32
"""Lanes of a vector."""
_16, _32, _64 = (ir.IntType(bits) for bits in (16, 32, 64))
_VECTOR = ir.VectorType(_16, WIDTH)


class Lanes(types.Type):
    """The type of a vector of ``WIDTH`` unsigned 16-bit integers."""

    def __init__(self) -> None:
        super().__init__(name=f"lanes({WIDTH} x uint16)")


lanes = Lanes()


@register_model(Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(get_or_insert_function(builder.module, kind, name), args)


def _test(builder: Any, symbol: str, signed: bool, a: Any, b: Any) -> Any:
    return (builder.icmp_signed if signed else builder.icmp_unsigned)(symbol, a, b)


def _binary(generate: Callable[[Any, Any, Any], Any], result: Any = lanes) -> Any:
    """An operation of two vectors; ``generate`` makes its instructions."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return generate(builder, *args)

    def typed(typingctx: Any, a: Any, b: Any) -> Any:
        return result(lanes, lanes), emit

    return intrinsic(typed)


def _plain(name: str) -> Any:
    return _binary(lambda builder, a, b: getattr(builder, name)(a, b))


def _named(name: str, *more: Any) -> Any:
    return _binary(lambda builder, a, b: _call(builder, f"llvm.{name}.v{WIDTH}i16", _VECTOR, a, b, *more))


def _picked(symbol: str, signed: bool) -> Any:
    return _binary(lambda builder, a, b: builder.select(_test(builder, symbol, signed, a, b), a, b))


def _counted(symbol: str, signed: bool = False) -> Any:
    """In how many lanes a test holds: one bit a lane, then the bits that are set."""

    def generate(builder: Any, a: Any, b: Any) -> Any:
        bits = builder.bitcast(_test(builder, symbol, signed, a, b), ir.IntType(WIDTH))
        return builder.zext(builder.ctpop(bits), _64)

    return _binary(generate, types.int64)


add, sub, shl, shr, ashr = (_plain(name) for name in ("add", "sub", "shl", "lshr", "ashr"))
both, any_of, xor = (_plain(name) for name in ("and_", "or_", "xor"))
add_held, sub_held = _named("sadd.sat"), _named("ssub.sat")
"""Signed, held at -32768 and 32767 instead of running over."""
high = _named("umul.fix", ir.Constant(_32, 16))
"""The upper 16 bits of the unsigned product."""
umax, umin, smax, smin = (_picked(*which) for which in ((">", False), ("<", False), (">", True), ("<", True)))
above, equal, at_most = (_counted(symbol) for symbol in (">", "==", "<="))
negative_than = _counted("<", True)


def _choose(typingctx: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
    """``yes`` in lanes in which a > b (unsigned), ``no`` in the others."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(_test(builder, ">", False, *args[:2]), *args[2:])

    return lanes(lanes, lanes, lanes, lanes), emit


def _splat(typingctx: Any, value: Any) -> Any:
    """One uint16 in all lanes."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        empty = ir.Constant(_VECTOR, ir.Undefined)
        first = builder.insert_element(empty, args[0], ir.Constant(_32, 0))
        return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(_32, WIDTH), [0] * WIDTH))

    return lanes(types.uint16), emit


def _load(typingctx: Any, array: Any, at: Any) -> Any:
    """``array[at : at + WIDTH]`` of a contiguous uint16 array; whether it is that long is the caller's to know."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load(builder.bitcast(builder.gep(data, [args[1]]), _VECTOR.as_pointer()), align=2)

    return lanes(array, types.intp), emit


def _largest(typingctx: Any, a: Any) -> Any:
    """The largest lane, unsigned."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(_call(builder, f"llvm.vector.reduce.umax.v{WIDTH}i16", _16, args[0]), _64)

    return types.int64(lanes), emit


choose: Any = intrinsic(_choose)
splat: Any = intrinsic(_splat)
load: Any = intrinsic(_load)
largest: Any = intrinsic(_largest)


@numba.njit(inline="always")
def all_lanes(value: Any) -> Any:  # pragma: no cover - runs compiled
    """A whole number up to 65535 in all lanes."""
    return splat(np.uint16(value))
