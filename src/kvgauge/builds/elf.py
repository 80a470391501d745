"""Just enough ELF to run LIBFABRIC without an NVIDIA driver: read what a library lacks, write a stand-in.

NIXL's LIBFABRIC plugin is linked against libcuda.so.1, which only a driver brings. On a machine without
one, a shared object of that name whose functions all return CUDA_ERROR_NO_DEVICE is enough: the plugin
then sees no GPU, which is the truth. It is written here byte by byte so that nobody needs a compiler.

Layout source: System V gABI, chapters 4 and 5; machine numbers from the psABI supplements.
"""

import struct
from collections.abc import Iterable
from pathlib import Path

CUDA_ERROR_NO_DEVICE = 100

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_SYM = struct.Struct("<IBBHQQ")
_DYN = struct.Struct("<qQ")

_PT_LOAD, _PT_DYNAMIC = 1, 2
_SHT_DYNSYM = 11
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_SONAME = 4, 5, 6, 10, 11, 14
_PAGE = 0x10000  # the largest page size Linux uses on aarch64; harmless on x86-64

# machine -> (e_machine, code of `return 100`)
_MACHINES = {
    "x86_64": (62, bytes.fromhex("b864000000c3")),  # mov eax, 100; ret
    "aarch64": (183, bytes.fromhex("800c8052c0035fd6")),  # mov w0, #100; ret
}


class NotAnElfFile(ValueError):
    """The bytes are not a 64-bit little-endian ELF file, or are cut short."""


def undefined_symbols(image: bytes) -> frozenset[str]:
    """Names the library expects others to define (its .dynsym entries without a section).

    raises NotAnElfFile
    """
    try:
        header = _EHDR.unpack_from(image)
        if header[0][:6] != b"\x7fELF\x02\x01":
            raise NotAnElfFile("not a 64-bit little-endian ELF file")
        section_at, section_size, section_count = header[6], header[11], header[12]
        sections = [_SHDR.unpack_from(image, section_at + i * section_size) for i in range(section_count)]
        names: set[str] = set()
        for section in sections:
            if section[1] != _SHT_DYNSYM:
                continue
            strings_at = sections[section[6]][4]
            for at in range(section[4], section[4] + section[5], _SYM.size):
                name_at, _, _, defined_in, _, _ = _SYM.unpack_from(image, at)
                if defined_in == 0 and name_at:
                    start = strings_at + name_at
                    names.add(image[start : image.index(b"\0", start)].decode("ascii", "replace"))
        return frozenset(names)
    except (struct.error, IndexError, ValueError) as error:
        if isinstance(error, NotAnElfFile):
            raise
        raise NotAnElfFile(f"cut short or damaged: {error}") from error


def undefined_cuda_symbols(libraries: Iterable[Path]) -> frozenset[str]:
    """Driver API names (cuXxx) that any of these libraries leaves undefined; runtime API (cudaXxx) is not meant."""
    names: set[str] = set()
    for library in libraries:
        try:
            found = undefined_symbols(library.read_bytes())
        except NotAnElfFile:
            continue  # linker scripts and data files also end in .so
        names.update(n for n in found if n.startswith("cu") and n[2:3].isupper())
    return frozenset(names)


def _sysv_hash(name: bytes) -> int:
    value = 0
    for byte in name:
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ (high >> 24)) & ~high & 0xFFFFFFFF
    return value


def _hash_table(names: list[bytes]) -> bytes:
    """SysV hash section: one chain per bucket over the symbols, symbol 0 being the null symbol."""
    buckets = [0] * max(1, len(names) // 2)
    chains = [0] * (len(names) + 1)
    for index, name in enumerate(names, start=1):
        slot = _sysv_hash(name) % len(buckets)
        chains[index], buckets[slot] = buckets[slot], index
    return struct.pack(f"<II{len(buckets)}I{len(chains)}I", len(buckets), len(chains), *buckets, *chains)


def stand_in(soname: str, symbols: Iterable[str], machine: str) -> bytes:
    """A shared object named `soname` whose every symbol is one function that returns CUDA_ERROR_NO_DEVICE.

    machine  as platform.machine() says: x86_64 or aarch64
    raises   ValueError for another machine
    """
    if machine not in _MACHINES:
        raise ValueError(f"no stand-in libcuda for {machine!r}: only {', '.join(_MACHINES)} are known")
    e_machine, code = _MACHINES[machine]
    names = [s.encode("ascii") for s in sorted(set(symbols))]

    strings = b"\0" + soname.encode("ascii") + b"\0"
    name_at = []
    for name in names:
        name_at.append(len(strings))
        strings += name + b"\0"

    code_at = _EHDR.size + 3 * _PHDR.size
    hash_at = (code_at + len(code) + 15) & ~15
    hashes = _hash_table(names)
    symbols_at = (hash_at + len(hashes) + 7) & ~7
    strings_at = symbols_at + _SYM.size * (len(names) + 1)
    text_end = strings_at + len(strings)
    dynamic_at = (text_end + _PAGE - 1) & ~(_PAGE - 1)

    dynamic = b"".join(
        _DYN.pack(tag, value)
        for tag, value in (
            (_DT_SONAME, 1),
            (_DT_HASH, hash_at),
            (_DT_STRTAB, strings_at),
            (_DT_SYMTAB, symbols_at),
            (_DT_STRSZ, len(strings)),
            (_DT_SYMENT, _SYM.size),
            (0, 0),
        )
    )
    global_function, own_section = (1 << 4) | 2, 1
    table = bytes(_SYM.size) + b"".join(
        _SYM.pack(at, global_function, 0, own_section, code_at, len(code)) for at in name_at
    )
    ident = b"\x7fELF" + bytes([2, 1, 1, 0]) + bytes(8)
    image = bytearray(dynamic_at + len(dynamic))
    header = _EHDR.pack(ident, 3, e_machine, 1, 0, _EHDR.size, 0, 0, _EHDR.size, _PHDR.size, 3, _SHDR.size, 0, 0)
    read_execute, read_write = 5, 6
    programs = (
        _PHDR.pack(_PT_LOAD, read_execute, 0, 0, 0, text_end, text_end, _PAGE)
        + _PHDR.pack(_PT_LOAD, read_write, dynamic_at, dynamic_at, dynamic_at, len(dynamic), len(dynamic), _PAGE)
        + _PHDR.pack(_PT_DYNAMIC, read_write, dynamic_at, dynamic_at, dynamic_at, len(dynamic), len(dynamic), 8)
    )
    for at, part in (
        (0, header + programs),
        (code_at, code),
        (hash_at, hashes),
        (symbols_at, table),
        (strings_at, strings),
        (dynamic_at, dynamic),
    ):
        image[at : at + len(part)] = part
    return bytes(image)
