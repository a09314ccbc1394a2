"""One numpy array out of a pickle, without running it: the few instructions that spell an array are read as data.

A pickle is a program for a stack machine that may call any function by name. Relevancy matrices of EPIC-KITCHENS-100 are
passed around as pickles, so this module walks over the instructions with `pickletools.genops`, which executes nothing,
and keeps names and calls as plain tuples. The only names that it knows are those that numpy writes for an array; at the
end the tuples are checked to spell one array of numbers, and its bytes are given to `np.frombuffer`. Anything else is
refused with its name and position: no module is imported and no function is called on behalf of the file.

Sources: the description of the instructions in Python's own `pickletools`; `ndarray.__reduce__` and
`ndarray.__reduce_ex__` of numpy, section "pickling" of its reference.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stvl.core.errors import DataError

_ARRAY = frozenset(f"numpy.{core}.multiarray _reconstruct" for core in ("core", "_core"))
_BUFFER = frozenset(f"numpy.{core}.numeric _frombuffer" for core in ("core", "_core"))
_NAMES = (
    _ARRAY
    | _BUFFER
    | {"numpy ndarray", "numpy dtype", "_codecs encode", "__builtin__ bytes", "builtins bytes"}
)
_CONSTANTS: dict[str, Any] = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
}
_PLAIN = frozenset(
    ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")
    + ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
    + ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
)
_OLD_TEXT = frozenset(("STRING", "BINSTRING", "SHORT_BINSTRING"))
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_SKIP = frozenset(("PROTO", "FRAME"))


class _Name(NamedTuple):
    """A name in the file; never looked up."""

    name: str


class _Call:
    """A call in the file, never made: what is called, with what, and the state it is given afterwards."""

    def __init__(self, function: str, args: tuple) -> None:
        self.function, self.args = function, args
        self.state: tuple[Any, ...] = ()


_MARK = _Name("(mark)")


def read_pickled_array(path: str | Path) -> np.ndarray:
    """The array of numbers in a pickle of protocols 0 to 5 as numpy 1 and 2 write them; nothing in the file is executed.

    Raises:
        DataError: no such file, no pickle, or a pickle of anything but one array of numbers, with the first thing in it
            that does not belong there. Make it an .npy file where you trust it (``np.save``).
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            return _to_array(_interpret(file))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except _Refused as problem:
        raise DataError(
            f"{path} is not read: {problem}. Only a pickle of one numpy array of numbers is read, and nothing in it is"
            " run; if you trust the file, convert it to .npy with numpy and give that"
        ) from None
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, EOFError) as problem:
        raise DataError(f"{path} is not a pickle of one numpy array ({problem})") from problem


class _Refused(Exception):
    """Something that does not spell an array."""


def _interpret(file: Any) -> Any:
    """The value that the instructions leave, as numbers, texts, tuples, `_Name` and `_Call`."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    value: Any
    for opcode, value, place in pickletools.genops(file):
        name = opcode.name
        if name == "STOP":
            return stack.pop()
        if name in _SKIP:
            continue
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _PLAIN:
            stack.append(value)
        elif name in _OLD_TEXT:
            # Python 2 wrote bytes as texts; genops reads them as latin-1, so this gives the bytes back.
            stack.append(value if isinstance(value, bytes) else value.encode("latin-1"))
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if name == "MEMOIZE" else int(value)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(value)])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _TUPLES or name == "TUPLE":
            count = _TUPLES.get(name)
            first = len(stack) - count if count else len(stack) - 1 - stack[::-1].index(_MARK)
            if first < 0:
                raise _Refused(f"a tuple of too few values at byte {place}")
            items = tuple(stack[first + (count is None) :])
            del stack[first:]
            stack.append(items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                last, module = stack.pop(), stack.pop()
                value = f"{module} {last}"
            if value not in _NAMES:
                raise _Refused(f"it names {str(value).replace(' ', '.')!r} at byte {place}")
            stack.append(_Name(str(value)))
        elif name == "REDUCE":
            args, function = stack.pop(), stack.pop()
            stack.append(_called(function, args, place))
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], _Call) or not isinstance(state, tuple):
                raise _Refused(f"it gives a state to something that has none at byte {place}")
            stack[-1].state = state
        else:
            raise _Refused(f"it holds the instruction {name} at byte {place}")
    raise _Refused("it ends too early")


def _called(function: Any, args: Any, place: int | None) -> Any:
    if not isinstance(function, _Name) or not isinstance(args, tuple):
        raise _Refused(f"it calls something without a name at byte {place}")
    if function.name == "_codecs encode":
        # Protocols 0 to 2 of Python 3 spell bytes as a latin-1 text.
        text, *coding = args
        if not isinstance(text, str) or coding not in (["latin1"], ["latin-1"]):
            raise _Refused(f"it encodes something other than a latin-1 text at byte {place}")
        return text.encode("latin-1")
    if function.name.endswith(" bytes"):
        if args:
            raise _Refused(f"it calls bytes with values at byte {place}")
        return b""
    if function.name == "numpy ndarray":
        raise _Refused(f"it calls numpy.ndarray at byte {place}")
    return _Call(function.name, args)


def _to_array(value: Any) -> np.ndarray:
    if not isinstance(value, _Call):
        raise _Refused(f"it holds {type(value).__name__}, no array")
    if value.function in _BUFFER:
        data, dtype, shape, order = value.args
        return _filled(data, dtype, shape, order == "F" or order == b"F")
    if value.function not in _ARRAY:
        raise _Refused(f"it holds {value.function.replace(' ', '.')}, no array")
    if value.args[0] != _Name("numpy ndarray"):
        raise _Refused("it holds an array of another kind than numpy's own")
    _, shape, dtype, fortran, data = value.state
    return _filled(data, dtype, shape, bool(fortran))


def _filled(data: Any, dtype: Any, shape: Any, fortran: bool) -> np.ndarray:
    made = _dtype(dtype)
    if not isinstance(data, (bytes, bytearray)):
        raise _Refused("its array holds no bytes, but objects")
    if not isinstance(shape, tuple) or not all(isinstance(side, int) and side >= 0 for side in shape):
        raise _Refused(f"its array has the shape {shape!r}")
    expected = made.itemsize * int(np.prod(shape, dtype=np.int64))
    if len(data) != expected:
        raise _Refused(
            f"its array of shape {shape} and type {made} needs {expected} bytes, it has {len(data)}"
        )
    return np.frombuffer(data, made).reshape(shape, order="F" if fortran else "C")


def _dtype(value: Any) -> np.dtype:
    if not isinstance(value, _Call) or value.function != "numpy dtype":
        raise _Refused("its array has no type")
    code = value.args[0]
    code = code.decode("ascii") if isinstance(code, bytes) else code
    if not isinstance(code, str) or code[:1] not in ("f", "i", "u", "b") or not code[1:].isdigit():
        raise _Refused(f"its array is of type {code!r}, not of numbers")
    order = value.state[1] if len(value.state) > 1 else "="
    order = order.decode("ascii") if isinstance(order, bytes) else order
    if order not in ("<", ">", "=", "|"):
        raise _Refused(f"its array has the byte order {order!r}")
    return np.dtype(code).newbyteorder(order)
