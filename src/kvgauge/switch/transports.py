"""The transports that UCX_TLS may name. Pure."""

ALIASES = {  # openucx/ucx, src/ucp/core/ucp_context.c, August 2026, without what only bootstraps
    "mm": ("posix", "sysv", "xpmem"),
    "sm": ("posix", "sysv", "xpmem", "knem", "cma"),
    "shm": ("posix", "sysv", "xpmem", "knem", "cma"),
    "ib": ("rc_verbs", "ud_verbs", "rc_mlx5", "ud_mlx5", "dc_mlx5", "gga_mlx5", "srd", "rc_gda"),
    "ud_v": ("ud_verbs",),
    "ud_x": ("ud_mlx5",),
    "ud": ("ud_mlx5", "ud_verbs"),
    "rc_v": ("rc_verbs",),
    "rc_x": ("rc_mlx5",),
    "rc": ("rc_mlx5", "rc_verbs"),
    "dc": ("dc_mlx5",),
    "dc_x": ("dc_mlx5",),
    "cuda": ("cuda_copy", "cuda_ipc", "gdr_copy"),
    "rocm": ("rocm_copy", "rocm_ipc", "rocm_gdr"),
    "ze": ("ze_copy", "ze_ipc", "ze_gdr"),
    "gaudi": ("gaudi_gdr",),
    "gga": ("gga_mlx5",),
    "ugni": ("ugni_smsg", "ugni_rdma"),
}
KNOWN = frozenset(
    {name for names in ALIASES.values() for name in names} | {"tcp", "self", "cma", "knem", "xpmem", "ugni_udt"}
)
CONNECTED = frozenset({"rc_verbs", "rc_mlx5", "dc_mlx5", "rc_gda"})
DATAGRAM = frozenset({"ud_verbs", "ud_mlx5"})
RDMA = CONNECTED | DATAGRAM | {"srd", "gga_mlx5"}
BETWEEN_HOSTS = RDMA | {"tcp"}


def expand(value: str) -> tuple[list[str], frozenset[str], bool]:
    """(words as written, transports they stand for, whether it is a list of what to leave out) of a UCX_TLS."""
    excluded = value.startswith("^")
    words = [word.strip() for word in value.removeprefix("^").split(",") if word.strip()]
    names: set[str] = set()
    for word in words:
        plain = word.partition(":")[0]  # ud:aux only bootstraps
        exact = plain.startswith("\\")
        names.update((plain[1:],) if exact else ALIASES.get(plain, (plain,)))
    return words, frozenset(names), excluded
