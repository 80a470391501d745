"""What a command line says about the backend: flags, and JSON in them. Pure."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from kvgauge.switch import kv_json, table
from kvgauge.switch.places import Place, Word
from kvgauge.switch.spans import CannotPatch, Mapped

BACKENDS_KEY = "kv_connector_extra_config.backends"
OVERRIDES = ("--override-engine-args", "--override_engine_args")
TRANSCEIVER = "--trtllm.cache_transceiver_config.backend"


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A flag's value: the word that holds it, and which part of it."""

    word: Word
    mapped: Mapped

    @property
    def text(self) -> str:
        return self.mapped.text


def values(words: tuple[Word, ...], *flags: str) -> Iterator[Value]:
    """The values of `--flag value` and `--flag=value`, underscores as good as dashes."""
    names = {flag.replace("_", "-") for flag in flags}
    for word, following in zip(words, [*words[1:], None], strict=False):
        flag, equals, value = word.text.partition("=")
        if flag.replace("_", "-") not in names:
            continue
        if equals and value:
            yield Value(word=word, mapped=word.mapped.part(len(flag) + 1, len(word.text)))
        elif not equals and following is not None and following.text:
            yield Value(word=following, mapped=following.mapped)


def dotted_backends(words: tuple[Word, ...]) -> list[Value]:
    """vLLM's `--kv-transfer-config.kv_connector_extra_config.backends+ X`, and without the plus."""
    flag = f"{table.VLLM_FLAG}.{BACKENDS_KEY}"
    return list(values(words, flag, f"{flag}+"))


def backends_named(engine: str, words: tuple[Word, ...]) -> list[str] | None:
    """The NIXL backends that the command line names.

    returns  vLLM: one or more names, ["UCX"] where its NIXL connector names none, [] where another connector moves the
             KV, None without --kv-transfer-config. SGLang, TensorRT-LLM: [other] where something else than NIXL moves
             the KV, None where the variable decides.
    """
    if engine == "vllm":
        dotted = [value.text.strip('[]"') for value in dotted_backends(words)]
        if dotted:
            return dotted
        for value in values(words, table.VLLM_FLAG):
            found = kv_json.nixl_backends(kv_json.parse(value.text, table.VLLM_FLAG))
            return [name for backends in found for name in backends]
        connector = [v.text for v in values(words, f"{table.VLLM_FLAG}.kv_connector")]
        return (["UCX"] if connector[-1] in kv_json.NIXL_CONNECTORS else []) if connector else None
    if engine == "sglang":
        named = [value.text for value in values(words, table.SGLANG_FLAG)]
        mode = [value.text for value in values(words, "--disaggregation-mode")]
        if not named:
            return ["mooncake"] if mode and mode[-1] in ("prefill", "decode") else None
        return None if named[-1] == "nixl" else [named[-1]]
    backend = transceiver(words)
    return [backend] if backend in ("UCX", "MPI", "MOONCAKE") else None


def transceiver(words: tuple[Word, ...]) -> str | None:
    """cache_transceiver_config.backend, where the command line holds it."""
    for value in values(words, *OVERRIDES):
        with contextlib.suppress(CannotPatch):
            kv_json.parse(value.text, OVERRIDES[0])
            return kv_json.transceiver_backend(value.text)[0]
    for value in values(words, TRANSCEIVER):
        return value.text
    return None


def set_in_shell(words: tuple[Word, ...], name: str) -> bool:
    """Does the command line set this variable itself, in a shell script or through `env`?"""
    return any(word.text.startswith(f"{name}=") for word in words)


def past_nixl(transceiver_backend: str | None, wanted: str) -> bool:
    """Does this cache_transceiver_config.backend keep NIXL from carrying KV over the backend wanted?"""
    return transceiver_backend in ("MPI", "MOONCAKE") or (transceiver_backend == "UCX" and wanted != "UCX")


def role_of(place: Place) -> str | None:
    """prefill or decode, by the manifest or the command line; else what the manifest calls it."""
    texts = [word.text for word in place.words]
    for role in ("prefill", "decode"):
        modes = (after for flag, after in pairwise(texts) if flag.endswith("-mode"))
        if place.role == role or f"--is-{role}-worker" in texts or role in modes:
            return role
    return place.role
