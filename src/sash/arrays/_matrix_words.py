"""Eight characters of a text at once, as a word of 64 bits, and what processors do with such words: numba's functions, written in LLVM.

numba's cache of `_matrix_numbers.py` and `_matrix_decimals.py` does not see changes of this file: touch those after them.
"""

from __future__ import annotations

import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_WORD, _TWO_WORDS, _BIT = ir.IntType(64), ir.IntType(128), ir.IntType(1)


def _letters(typing, text, at):
    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        found = builder.load(builder.bitcast(builder.gep(data, [values[1]]), _WORD.as_pointer()), align=1)
        return builder.bswap(found) if sys.byteorder == "big" else found

    return types.uint64(text, types.intp), build


def _product(typing, x, y):
    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        whole = builder.mul(*(builder.zext(value, _TWO_WORDS) for value in values))
        upper = builder.trunc(builder.lshr(whole, _TWO_WORDS(64)), _WORD)
        return context.make_tuple(builder, signature.return_type, (upper, builder.trunc(whole, _WORD)))

    return types.UniTuple(types.uint64, 2)(types.uint64, types.uint64), build


def _zeros(typing, x):
    return types.uint64(types.uint64), lambda context, builder, signature, values: builder.ctlz(values[0], _BIT(1))


letters: Any = intrinsic(_letters)
"""letters(text, at): eight bytes of the text from a place on, the first one lowest; there must be so many."""
product: Any = intrinsic(_product)
"""product(x, y): the upper and the lower half of the product of two words."""
zeros: Any = intrinsic(_zeros)
"""zeros(x): bits above the first one; x is not 0."""
