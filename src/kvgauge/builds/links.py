"""What a shared object links to: the names, search paths and symbol versions the loader will ask for.

Only headers and four sections are looked at, so a mapped file costs a few pages. Layout source: System V gABI,
chapters 4 and 5; version sections: LSB Core, "Symbol Versioning".
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec

from kvgauge.builds.elf import NotAnElfFile

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_DYN = struct.Struct("<qQ")
_VERNEED = struct.Struct("<HHIII")  # version, entries, file, first entry, next
_VERNAUX = struct.Struct("<IHHII")  # hash, flags, other, name, next
_VERDEF = struct.Struct("<HHHHIII")  # version, flags, index, entries, hash, first entry, next

_SHT_DYNAMIC, _SHT_VERDEF, _SHT_VERNEED = 6, 0x6FFFFFFD, 0x6FFFFFFE
_DT_NEEDED, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 1, 14, 15, 29
_VERSION_OF_FILE = 1  # the first definition names the library itself
_ENTRIES_MAX = 10_000
_NAME_BYTES_MAX = 4096

Image = bytes | mmap.mmap


class Links(msgspec.Struct, frozen=True, kw_only=True):
    """What the loader reads of one library.

    needed    sonames, in order
    paths     folders it says its libraries lie in, $ORIGIN as written
    early     whether those come before LD_LIBRARY_PATH (DT_RPATH) or after it (DT_RUNPATH)
    versions  soname -> symbol versions it wants of that library (FABRIC_1.7)
    defines   symbol versions it offers itself
    """

    soname: str | None
    needed: tuple[str, ...]
    paths: tuple[str, ...]
    early: bool
    versions: dict[str, tuple[str, ...]]
    defines: tuple[str, ...]
    machine: int


def read_links(path: Path) -> Links:
    """raises OSError, NotAnElfFile"""
    with path.open("rb") as handle:
        try:
            mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # an empty file cannot be mapped
            raise NotAnElfFile(f"{path.name}: {error}") from error
        with mapped:
            return links(mapped)


def links(image: Image) -> Links:
    """raises NotAnElfFile"""
    try:
        return _links(image)
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        if isinstance(error, NotAnElfFile):
            raise
        raise NotAnElfFile(f"cut short or damaged: {error}") from error


def _links(image: Image) -> Links:
    header = _EHDR.unpack_from(image)
    if header[0][:6] != b"\x7fELF\x02\x01":
        raise NotAnElfFile("not a 64-bit little-endian ELF file")
    at, size, count = header[6], header[11], header[12]
    sections = [_SHDR.unpack_from(image, at + i * size) for i in range(count)]
    found: dict[int, list[str]] = {}
    versions: dict[str, tuple[str, ...]] = {}
    defines: tuple[str, ...] = ()
    for section in sections:
        if section[1] not in (_SHT_DYNAMIC, _SHT_VERDEF, _SHT_VERNEED):
            continue
        strings = sections[section[6]][4]
        if section[1] == _SHT_DYNAMIC:
            for tag, name in _dynamic(image, section[4], section[5]):
                found.setdefault(tag, []).append(_name(image, strings + name))
        elif section[1] == _SHT_VERNEED:
            versions = {name: tuple(wanted) for name, wanted in _wanted(image, section[4], strings)}
        else:
            defines = tuple(_defined(image, section[4], strings))
    early = _DT_RUNPATH not in found
    paths = found.get(_DT_RPATH if early else _DT_RUNPATH, [])
    return Links(
        soname=next(iter(found.get(_DT_SONAME, ())), None),
        needed=tuple(found.get(_DT_NEEDED, ())),
        paths=tuple(folder for path in paths for folder in path.split(":") if folder),
        early=early,
        versions=versions,
        defines=defines,
        machine=header[2],
    )


def _name(image: Image, at: int) -> str:
    end = image.find(b"\0", at, at + _NAME_BYTES_MAX)
    if end < 0:
        raise NotAnElfFile("a name without an end")
    return bytes(image[at:end]).decode("utf-8", "replace")


def _dynamic(image: Image, at: int, size: int) -> Iterator[tuple[int, int]]:
    for offset in range(at, min(at + size, at + _ENTRIES_MAX * _DYN.size), _DYN.size):
        tag, value = _DYN.unpack_from(image, offset)
        if tag == 0:
            return
        if tag in (_DT_NEEDED, _DT_SONAME, _DT_RPATH, _DT_RUNPATH):
            yield tag, value


def _wanted(image: Image, at: int, strings: int) -> Iterator[tuple[str, list[str]]]:
    for _ in range(_ENTRIES_MAX):
        _, count, file, first, step = _VERNEED.unpack_from(image, at)
        names, aux = [], at + first
        for _ in range(count):
            _, _, _, name, next_aux = _VERNAUX.unpack_from(image, aux)
            names.append(_name(image, strings + name))
            aux += next_aux
        yield _name(image, strings + file), names
        if step == 0:
            return
        at += step


def _defined(image: Image, at: int, strings: int) -> Iterator[str]:
    for _ in range(_ENTRIES_MAX):
        _, flags, _, _, _, first, step = _VERDEF.unpack_from(image, at)
        if not flags & _VERSION_OF_FILE:
            yield _name(image, strings + struct.unpack_from("<I", image, at + first)[0])
        if step == 0:
            return
        at += step
