"""Machine code of compiled passes, kept on disk and loaded without the compiler.

numba's own cache needs numba: importing it and readying its types takes two thirds of a second of a processor, twice
what a pass over two billion bytes takes. Here the object that it made once is kept, and llvmlite alone links it, in
a twentieth of a second. What is kept is named by everything that it was made from: the sources of its modules, the
versions of both packages, the processor and its features. Nothing is kept where no folder can be written.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POINTER, WHOLE = ctypes.c_void_p, ctypes.c_int64
"""Kinds of arguments: the address of an array's first element, and a 64-bit integer."""
_DIGEST = 32
_NO_OWNER = """
declare void @llvm.trap()
define void @NRT_MemInfo_call_dtor(ptr %0) {
  call void @llvm.trap()
  unreachable
}
"""
"""What numba's code calls when the last reference to an array goes: the arrays here are the caller's and counted by
nobody, so it is never called."""
_LOCK = threading.Lock()
_ENGINES: list[Any] = []
"""What holds the linked code in memory; as long as the process."""


@dataclass(frozen=True)
class Entry:
    """A compiled function of addresses and integers, which returns a 64-bit integer."""

    module: str
    """Where ``name`` stands: a function without arguments that returns numba's dispatcher with one signature."""
    name: str
    sources: tuple[str, ...]
    """Modules of ours that it is made from, ``module`` among them."""
    arguments: tuple[Any, ...]
    """``POINTER`` or ``WHOLE`` each."""


def _file_of(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{module} has no file", name=module)
    return Path(spec.origin)


def _key(entry: Entry) -> str:
    """What the machine code depends on, as a name."""
    import llvmlite
    from llvmlite import binding as llvm

    numba = _file_of("numba")
    version = numba.with_name("_version.py")
    asked = [os.environ.get(name, "") for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_OPT")]
    about = [llvmlite.__version__, llvm.get_default_triple(), llvm.get_host_cpu_name()]
    texts = [*about, llvm.get_host_cpu_features().flatten(), *asked, entry.name]
    digest = hashlib.blake2b((version if version.is_file() else numba).read_bytes(), digest_size=16)
    for piece in [text.encode() for text in texts] + [_file_of(name).read_bytes() for name in entry.sources]:
        digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.hexdigest()


def _folders(entry: Entry) -> list[Path]:
    """Where code may be kept: as numba has it, beside the module or under the user's cache."""
    asked = os.environ.get("NUMBA_CACHE_DIR")
    if asked:
        return [Path(asked)]
    folders = [_file_of(entry.module).parent / "__pycache__"]
    with suppress(RuntimeError):  # a user without a home
        folders.append(Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "prismlab")
    return folders


def _read(files: Sequence[Path]) -> tuple[str, bytes] | None:
    """(symbol, object) of the first file that is whole."""
    for file in files:
        with suppress(OSError):
            kept = file.read_bytes()
            body = kept[_DIGEST:]
            symbol, line, code = body.partition(b"\n")
            if line and hashlib.blake2b(body, digest_size=_DIGEST).digest() == kept[:_DIGEST]:
                return symbol.decode(), code
    return None


def _write(files: Sequence[Path], symbol: str, code: bytes) -> None:
    """Keep it in the first folder that takes it."""
    body = symbol.encode() + b"\n" + code
    for file in files:
        draft = file.with_name(f"{file.name}.{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(hashlib.blake2b(body, digest_size=_DIGEST).digest() + body)
            draft.replace(file)
        except OSError:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
        else:
            return


def build(entry: Entry) -> tuple[str, bytes]:
    """Compile an entry with numba: (its symbol, the object).

    Raises:
        RuntimeError: the code calls what only numba or Python has: it could not be linked without them.
    """
    from llvmlite import binding as llvm

    made = getattr(importlib.import_module(entry.module), entry.name)()
    compiled = next(iter(made.overloads.values()))
    symbol, target = compiled.fndesc.llvm_func_name, compiled.library._codegen._tm
    module = llvm.parse_bitcode(compiled.library._final_module.as_bitcode())
    module.link_in(llvm.parse_assembly(_NO_OWNER))
    for one in (*module.functions, *module.global_variables):
        if not one.is_declaration and one.name != symbol:
            one.linkage = "internal"
    # What was inlined into the entry, and how Python would call it, is left out.
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.add_strip_dead_prototype_pass()
    passes.run(module, llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options()))
    outside = [one.name for one in (*module.functions, *module.global_variables) if one.is_declaration]
    called = [name for name in outside if not name.startswith("llvm.")]
    if called:
        raise RuntimeError(f"{entry.module}.{entry.name} needs {', '.join(called)}: it must allocate and raise nothing")
    return symbol, target.emit_object(module)


def _link(symbol: str, code: bytes) -> int:
    """The address of a function of an object."""
    from llvmlite import binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _ENGINES.append(engine)
    return engine.get_function_address(symbol)


@functools.cache
def _loaded(entry: Entry) -> Callable[..., int]:
    files = [folder / f"{entry.module}.{entry.name}-{_key(entry)}.code" for folder in _folders(entry)]
    found = _read(files)
    if found is None:
        found = build(entry)
        _write(files, *found)
    # numba's convention: where the result and an error go, then the arguments; returned is whether there was an error.
    kind = ctypes.CFUNCTYPE(ctypes.c_int32, POINTER, POINTER, *entry.arguments)
    native = kind(_link(*found))

    def call(*arguments: int) -> int:
        result, error = ctypes.c_int64(), ctypes.c_void_p()
        status = native(ctypes.addressof(result), ctypes.addressof(error), *arguments)
        if status:
            raise RuntimeError(f"{entry.module}.{entry.name} ended with status {status}")
        return result.value

    return call


def load(entry: Entry) -> Callable[..., int]:
    """The function, from what is kept or compiled now; calls leave the interpreter free to other threads.

    Raises:
        ModuleNotFoundError: numba is not installed.
        RuntimeError: see ``build``.
    """
    with _LOCK:  # two threads at once would compile twice
        return _loaded(entry)
