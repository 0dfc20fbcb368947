"""Runs inside: the first thing that a confined Python does. It takes one job, sets the limits, and runs the program.

The keeper passes this file compiled (the file itself is not visible inside), and ``plain.py`` as ``PLAIN``: to the
template (``template.py``), whose forks go on here, or with ``-c`` to a Python of its own. Nothing here is a secret and
nothing here is trusted afterwards: the program runs in the same interpreter and may change all of it, so what it sends
is only ever a plain value, and what it should have sent never comes in.

Jobs (marshal, from the parent, on descriptor 3) are dicts with ``mode``:
- ``io``: run ``source`` as a script with the standard streams.
- ``call``: load ``source`` as a module, then answer requests, a line of JSON each.
- ``tests``: the judge's side. Run ``prelude`` and ``tests``; what they use of the program is asked for by such
  requests.
"""

from __future__ import annotations

import builtins
import gc
import io
import marshal
import os
import resource
import sys

TYPE_CHECKING = False  # the module typing is not worth its milliseconds here
if TYPE_CHECKING:
    from typing import Any

CONTROL = 3
OUT_OF_MEMORY = 77
"""Exit status of a program that could not get memory."""
PLAIN = globals().get("PLAIN", b"")
"""The code of ``plain.py``, in marshal's form."""
LOADED: dict[str, Any] = {}
"""What it defines, once it has run."""


def read_exactly(size):
    found = b""
    while len(found) < size:
        piece = os.read(CONTROL, size - len(found))
        if not piece:
            os._exit(0)
        found += piece
    return found


def send(data):
    while data:
        data = data[os.write(CONTROL, data) :]


def set_limits(limits, processes):
    megabyte = 1 << 20
    for what, value in (
        (resource.RLIMIT_AS, limits["memory"] * megabyte),
        (resource.RLIMIT_CPU, limits["cpu"]),
        (resource.RLIMIT_FSIZE, limits["scratch"] * megabyte),
        (resource.RLIMIT_NOFILE, limits["files"]),
        (resource.RLIMIT_NPROC, limits["processes"] + processes),
        # 1 and not 0: a pattern with a pipe ignores 0 and starts its helper on the host.
        (resource.RLIMIT_CORE, 1),
    ):
        most = resource.getrlimit(what)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(what, (value, value))


def module(name):
    made = type(sys)(name)
    made.__dict__["__builtins__"] = builtins
    sys.modules[name] = made
    return made.__dict__


def flushed(stream):
    try:
        # As the interpreter has it: what the program has closed, or taken away, is no error.
        if stream is not None and not stream.closed:
            stream.flush()
    except BaseException:
        return False
    return True


def finish(code):
    """Leave as an interpreter does, without taking it apart: threads, exit functions, streams."""
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        if "atexit" in sys.modules:
            sys.modules["atexit"]._run_exitfuncs()
    except SystemExit:
        pass
    except BaseException:
        code = code or 1
    if not (flushed(sys.stdout) and flushed(sys.stderr)):
        code = code or 120
    # An interpreter that is taken apart writes what still stands in any stream.
    for kind in (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom):
        for stream in [one for one in (sys.__stdout__, sys.__stderr__, *gc.get_objects()) if type(one) is kind]:
            flushed(stream)
    os._exit(code)


def status_of(end):
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    sys.stderr.write(f"{end.code}\n")
    return 1


def show_error():
    """By the interpreter's own printer, whatever a program has put in its place."""
    kind, error, trace = sys.exc_info()
    if kind is not None and error is not None:
        sys.__excepthook__(kind, error, trace)


def run_script(job):
    send(b"A")
    os.close(CONTROL)
    try:
        code = compile(job["source"].removeprefix("\ufeff"), "<program>", "exec", dont_inherit=True)
        sys.argv = ["program.py"]
        exec(code, module("__main__"))
    except SystemExit as end:
        finish(status_of(end))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except BaseException:
        show_error()
        finish(1)
    finish(0)


class Lines:
    """Lines of JSON on the control socket."""

    def __init__(self):
        self.left = b""

    def take(self):
        parts = [self.left]
        while b"\n" not in parts[-1]:
            piece = os.read(CONTROL, 1 << 16)
            if not piece:
                os._exit(0)
            parts.append(piece)
        line, _, self.left = b"".join(parts).partition(b"\n")
        return line


class Answers:
    """The program's side of function tests: calls what it is asked to call."""

    def __init__(self, space, plain):
        self.space, self.plain = space, plain
        self.kept = []

    def refer(self, value):
        self.kept.append(value)
        return len(self.kept) - 1

    def named(self, name):
        if name not in self.space and hasattr(self.space.get("Solution"), name):
            return getattr(self.space["Solution"](), name)
        if name not in self.space:
            raise NameError(name)
        return self.space[name]

    def answer(self, line):
        plain = self.plain
        asked = plain["read"](line, lambda number: self.kept[number])
        kind, target, args, more = asked
        target = self.named(target) if isinstance(target, str) else self.kept[target[0]]
        if kind == "get":
            return plain["write"]([getattr(target, args[0]), None], self.refer)
        if kind == "set":
            setattr(target, args[0], args[1])
            return plain["write"]([None, None], self.refer)
        if kind == "item":
            return plain["write"]([target[args[0]], None], self.refer)
        if kind == "list":
            return plain["write"]([list(target), None], self.refer)
        if kind == "len":
            return plain["write"]([len(target), None], self.refer)
        before = plain["write"](args, self.refer)
        value = target(*args, **more)
        after = plain["write"](args, self.refer)
        return plain["write"]([value, args if before != after else None], self.refer)


def load_plain():
    if not LOADED:
        LOADED["__name__"] = "plain"
        exec(marshal.loads(PLAIN), LOADED)
    return LOADED


def run_calls(job):
    plain, lines = load_plain(), Lines()
    send(b"A")
    space = module("program")
    try:
        exec(compile(job["source"].removeprefix("\ufeff"), "<program>", "exec", dont_inherit=True), space)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except BaseException as error:
        show_error()
        sys.stderr.flush()
        send(plain["write"](["raised", type(error).__name__]).encode() + b"\n")
        os._exit(1)
    send(b'["l", "loaded", null]\n')
    answers = Answers(space, plain)
    while True:
        line = lines.take()
        try:
            said = f'["l", "value", {answers.answer(line)}]'
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        except BaseException as error:
            said = plain["write"](["raised", type(error).__name__])
        send(said.encode() + b"\n")


class Refused(Exception):
    """The program gave something that cannot be compared."""


class Broken(Exception):
    """The test itself cannot be run."""


class Remote:
    """Something of the program's that is no plain value: it can be called and asked, never compared."""

    __slots__ = ("_judge", "_target")

    def __init__(self, judge, target):
        object.__setattr__(self, "_judge", judge)
        object.__setattr__(self, "_target", target)

    def __call__(self, *args, **more):
        value, changed = self._judge.ask("call", self._target, list(args), more)
        if isinstance(changed, list) and len(changed) == len(args):
            for old, new in zip(args, changed, strict=True):
                put_back(old, new)
        return value

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._judge.ask("get", self._target, [name], {})[0]

    def __setattr__(self, name, value):
        self._judge.ask("set", self._target, [name, value], {})

    def __getitem__(self, key):
        return self._judge.ask("item", self._target, [key], {})[0]

    def __iter__(self):
        found = self._judge.ask("list", self._target, [], {})[0]
        if type(found) is not list:
            raise Refused("no list")
        return iter(found)

    def __len__(self):
        found = self._judge.ask("len", self._target, [], {})[0]
        if type(found) is not int:
            raise Refused("no length")
        return found

    def _refuse(self, *_):
        raise Refused("the program gave an object where a plain value was expected")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __contains__ = _refuse
    __hash__ = None  # type: ignore[assignment]


def put_back(old, new):
    """What the program did to an argument in place."""
    if isinstance(old, list) and isinstance(new, list):
        old[:] = new
    elif isinstance(old, (dict, set)) and type(new) is type(old):
        old.clear()
        old.update(new)


class Judge:
    """The tests' side: asks the program, through the parent, and compares plain values."""

    def __init__(self, plain):
        self.plain, self.lines, self.heard = plain, Lines(), False

    def refer(self, value):
        if type(value) is Remote:
            target = value._target
            return target[0] if type(target) is list else self.unknown(value)
        return self.unknown(value)

    def unknown(self, value):
        raise Broken(f"the test hands the program a {type(value).__name__}, which cannot cross")

    def ask(self, kind, target, args, more):
        send(self.plain["write"]([kind, target, args, more], self.refer).encode() + b"\n")
        line = self.lines.take()
        self.heard = True
        try:
            said = self.plain["read"](line, lambda number: Remote(self, [number]))
        except self.plain["NotPlain"]:
            raise Refused("what the program gave is no plain value") from None
        if type(said) is list and len(said) == 2 and said[0] == "value" and type(said[1]) is list and len(said[1]) == 2:
            return said[1]
        name = said[1] if type(said) is list and len(said) > 1 and type(said[1]) is str else "RuntimeError"
        kind = getattr(builtins, name, None)
        # StopIteration would end a map of the tests early, and what is left of them would count as passed.
        barred = (OSError, UnicodeError, StopIteration, StopAsyncIteration)
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, barred):
            raise kind("raised by the program")
        raise RuntimeError(f"the program raised {name[:60]}")


class Names(dict):
    """Names of the tests; what they do not define is the standard library's, else the program's."""

    judge: Any = None

    def __missing__(self, name):
        if hasattr(builtins, name) or name.startswith("__"):
            raise KeyError(name)
        if name in sys.stdlib_module_names:
            return __import__(name)
        return Remote(self.judge, name)


def run_tests(job):
    judge = Judge(load_plain())
    send(b"A")
    names = Names(__name__="tests", __builtins__=builtins)
    Names.judge = judge
    try:
        exec(compile(job["prelude"], "<prelude>", "exec", dont_inherit=True), names)
        if job["entry"]:
            names[job["entry"]] = Remote(judge, job["entry"])
            names["candidate"] = names[job["entry"]]
        exec(compile(job["tests"], "<tests>", "exec", dont_inherit=True), names)
        if job["entry"] and callable(names.get("check")):
            names["check"](names["candidate"])
        said = ["passed", ""]
    except Broken as error:
        said = ["broken", str(error)]
    except BaseException as error:
        # Before the program has said a word, it cannot be at fault.
        said = ["failed" if judge.heard else "broken", f"{type(error).__name__}: {error}"[:200]]
    if said[0] == "passed" and not judge.heard:
        said = ["broken", "the tests never asked the program anything"]
    send(judge.plain["write"](["end", *said]).encode() + b"\n")
    os._exit(0)


def main(processes):
    """Take the job and run it; ``processes`` that are not the program's count against its limit."""
    os.closerange(CONTROL + 1, 1 << 16)  # whatever those who started it have left open
    size = int.from_bytes(read_exactly(8), "little")
    job = marshal.loads(read_exactly(size))
    quitter = __import__("_sitebuiltins").Quitter
    builtins.exit, builtins.quit = quitter("exit", "Ctrl-D"), quitter("quit", "Ctrl-D")
    set_limits(job["limits"], processes)
    {"io": run_script, "call": run_calls, "tests": run_tests}[job["mode"]](job)


if __name__ == "__main__":
    main(int(sys.argv[1]))
