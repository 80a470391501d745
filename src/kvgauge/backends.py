"""What NIXL, UCX and libfabric must be told so that a worker uses one backend over one fabric. Data and pure lookups.

Only variables that somebody reads: NIXL reads no NIXL_BACKEND, no NIXL_LIBFABRIC_MAX_RAILS (docs/decisions/0002).
"""

from kvgauge.failures import TargetError

# A worker inherits nothing but these, so that a variable left in a shell cannot change what is measured and
# no secret of the user's reaches a process that has no need of it.
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "SSL_CERT_FILE")

# Start-up lines prove what ran; both are quiet once a worker is up, so they cost nothing while it is timed.
LOGGED = {"NIXL_LOG_LEVEL": "INFO", "UCX_LOG_LEVEL": "info", "UCX_LOG_FILE": "stderr"}

# numpy would start a thread for each core at import.
QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def needs_interface(backend: str, release: tuple[int, ...]) -> bool:
    """libfabric's tcp provider refuses loopback, and the UCX of NIXL before 1.0.1 finds no route on it."""
    return backend == "LIBFABRIC" or release < (1, 0, 1)


def worker_environment(
    backend: str | None,
    fabric: str,
    interface: str | None,
    release: tuple[int, ...] = (1, 5),
    *,
    plugin_dir: str | None = None,
    gpu: bool = False,
) -> dict[str, str]:
    """Variables of one embedded worker, besides INHERITED.

    interface   what the transport binds where it cannot stay on loopback (`needs_interface`)
    release     of the build: before 1.0, NIXL looks for libfabric's older sockets provider by name
    plugin_dir  of the build: NIXL opens these plugins instead of its own
    gpu         this machine has an NVIDIA GPU: NIXL since 1.x does not start UCX without its CUDA transports there
                (cuda_copy carries nothing between processes)
    raises      TargetError for a fabric the embedded target cannot use
    """
    if fabric != "tcp":
        raise TargetError(
            f"the embedded target moves KV between two processes of this machine over tcp; fabric {fabric!r} needs "
            "real workers: point kvgauge at them with a url or kubernetes target, or set fabric: tcp"
        )
    own: dict[str, str] = {}
    if backend == "UCX":
        own = {"UCX_TLS": "tcp,self,cuda_copy" if gpu else "tcp,self", "UCX_NET_DEVICES": interface or "lo"}
    elif backend == "LIBFABRIC":
        own = {"FI_PROVIDER": "tcp" if release >= (1, 0) else "tcp,sockets"}
        if interface is not None:
            own["FI_TCP_IFACE"] = interface
    if plugin_dir is not None:
        own["NIXL_PLUGIN_DIR"] = plugin_dir
    return {**LOGGED, **QUIET, **own}
