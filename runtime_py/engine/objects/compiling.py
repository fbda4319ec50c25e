"""The process that compiles: Numba and LLVM, set up for the processor that is asked for, make objects of drivers.

Nothing that is compiled here is ever run here, so the processor may be another machine's. Numba's code generator gets
LLVM's target of that processor, which decides how loops are vectorized and which instructions there are.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import runtime_py.system.numba_ready  # noqa: F401 (before Numba)

import llvmlite.binding as llvm  # isort: skip
from numba.core import codegen, cpu, dispatcher, types
from numba.core.caching import NullCache
from numba.core.compiler_lock import global_compiler_lock

from runtime_py.engine.objects import store
from runtime_py.engine.objects.wanted import AMX, LOOP, Wanted
from runtime_py.machine.isa import ISAS, WEIGHT_OFFSET, Tag
from runtime_py.machine.processor import Processor, aimed_at, target


class _NoLinker:
    """Stands where Numba has the linker of code that is to be run."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: None


class _Codegen(codegen.JITCPUCodegen):
    """Numba's code generator for the processor that this process compiles for."""

    def _init(self, llvm_module: Any) -> None:
        wanted = target()
        addresses = {"reloc": "pic", "codemodel": "small"} if wanted.lies_together else {"codemodel": "large"}
        machine = llvm.Target.from_triple(wanted.triple).create_target_machine(
            cpu=wanted.cpu, features=wanted.features, opt=3, **addresses
        )
        self._tm_features, self._tm = wanted.features, machine
        self._engine = _NoLinker()  # type: ignore[assignment]
        self._target_data = machine.target_data
        self._data_layout = str(self._target_data)
        self._loopvect, self._opt_level = False, 0  # as JITCPUCodegen has it

    def _create_empty_module(self, name: str) -> Any:
        module = super()._create_empty_module(name)
        module.triple = target().triple
        return module

    def _add_module(self, module: Any) -> None:
        """It is not run."""

    def _scan_and_fix_unresolved_refs(self, module: Any) -> None:
        """It is not linked."""

    def set_env(self, env_name: str, env: Any) -> None:
        """It is not run."""


_stand_ins: list[list[Any]] = []


def _stand_in(*arguments: Any) -> Any:
    """Numba knows a compiled function by what calls it from Python, which nothing does here: any of its own will do."""
    _stand_ins.append([])
    return _stand_ins[-1].append


def prepare() -> None:
    """Set this process up, before a kernel is imported and while it is aimed at a processor."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    dispatcher.FunctionCache = lambda function: NullCache()  # type: ignore[attr-defined]
    codegen.JITCPUCodegen = _Codegen  # type: ignore[misc]
    context: Any = cpu.CPUContext
    cpu.rtsys.initialize = lambda context: None  # type: ignore[method-assign]  # the runtime of arrays: kernels have none
    context.post_lowering = lambda *arguments: None  # which would link it
    context.get_executable = _stand_in
    context.create_cpython_wrapper = lambda *arguments, **named: None


def compiled(wanted: Wanted) -> bytes:
    """The object of what is wanted, whose only visible function is Wanted.symbol, with C's calling convention."""
    return bytes(cpu_codegen()._tm.emit_object(_module(wanted)))


def assembly(wanted: Wanted) -> str:
    """What compiled() has, to be read."""
    return str(cpu_codegen()._tm.emit_assembly(_module(wanted)))


def _module(wanted: Wanted) -> Any:
    """LLVM's module of what is wanted, optimized."""
    from runtime_py.engine.loop.driver import SIGNATURE, Machine

    module_name, function = wanted.maker.split(".")
    found = getattr(import_module(f"runtime_py.engine.loop.{module_name}"), function)
    isa = wanted.isa.removesuffix(AMX)
    if wanted.maker != LOOP:
        machine = Machine(ISAS[isa], WEIGHT_OFFSET[isa], wanted.width_tag)
        found = found(Tag("step", wanted.step), machine)
    found.compile(SIGNATURE.args)
    compiled = found.overloads[SIGNATURE.args]
    with global_compiler_lock:
        compiled.library._ensure_finalized()
    module = compiled.library._final_module.clone()
    module.link_in(llvm.parse_assembly(_visible(wanted.symbol, compiled)))
    for value in (*module.functions, *module.global_variables):
        if not value.is_declaration and value.name != wanted.symbol:
            value.linkage = "internal"
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, llvm.create_pass_builder(cpu_codegen()._tm, llvm.create_pipeline_tuning_options()))
    return module


def cpu_codegen() -> Any:
    """Numba's code generator in this process."""
    from numba.core.registry import cpu_target

    return cpu_target.target_context.codegen()


def _visible(symbol: str, compiled: Any) -> str:
    """A function of LLVM that calls Numba's: nine numbers in, 0 out where all went well, else what it returned."""
    count = len(compiled.signature.args)
    numbers = ", ".join(f"i64 %a{i}" for i in range(count))
    own = f'@"{compiled.fndesc.llvm_func_name}"'
    returned = "i32" if compiled.signature.return_type == types.int32 else "ptr"
    declared = ", ".join(["ptr", "ptr", *["i64"] * count])
    value = "%value = load i32, ptr %slot" if returned == "i32" else "%value = add i32 0, 0"
    return f"""
        target triple = "{target().triple}"
        declare i32 {own}({declared})
        define i32 @{symbol}({numbers}) {{
          %slot = alloca {returned}
          %raised = alloca ptr
          %code = call i32 {own}(ptr %slot, ptr %raised, {numbers})
          {value}
          %none = icmp eq i32 %code, -2
          %status = select i1 %none, i32 0, i32 %code
          %good = icmp eq i32 %status, 0
          %result = select i1 %good, i32 %value, i32 %status
          ret i32 %result
        }}"""


def main(order: str) -> None:
    """order: JSON of the folder, the processor, and what is wanted."""
    asked = json.loads(order)
    processor = Processor(**asked["processor"])
    with aimed_at(processor):
        prepare()
        for one in asked["wanted"]:
            width = None if one["width"] is None else tuple(one["width"])
            wanted = Wanted(one["maker"], one["step"], width, one["isa"])
            code = compiled(wanted)
            try:
                store.keep(Path(asked["place"]), wanted, processor, code)
            except OSError as error:
                print(f"OSError {error.strerror or error}", flush=True)
                sys.exit(1)
