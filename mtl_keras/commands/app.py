"""Open a page that shows what a model sees in a picture: classes, objects and depth.

    python -m mtl_keras app runs/demo

Drop a picture, and move the sliders of the clustering. Ctrl-C ends it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pathlib
import signal
import socket
import sys
import tempfile
import time
import webbrowser
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mtl_keras.commands.console import start_tensorflow
from mtl_keras.commands.predict import is_model, open_model
from mtl_keras.errors import UserError
from mtl_keras.experiments.arguments import parse_options
from mtl_keras.experiments.options import AppOptions

if TYPE_CHECKING:
    import gradio as gr

STOPPING = (signal.SIGINT, signal.SIGTERM)
PORTS = range(7860, 7960)
NUM_EXAMPLES = 4
EXAMPLE_SIZE = (256, 512)


def main(argv: Sequence[str] | None = None) -> None:
    """Serves the page of the model that the command line names, until Ctrl-C."""
    options = parse_options(AppOptions, argv, positional=("model",))
    with folder_until_stopped() as folder:
        serve(options, folder)


@contextlib.contextmanager
def folder_until_stopped() -> Iterator[pathlib.Path]:
    """A folder for uploads and answers, which do not outlive the page. Ends quietly at
    Ctrl-C, and when the process is asked to terminate."""
    before: dict[int, Any] = {number: signal.getsignal(number) for number in STOPPING}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(
            prefix="mtl_keras-", ignore_cleanup_errors=True
        ) as folder:
            try:
                yield pathlib.Path(folder)
            except KeyboardInterrupt:
                # Once is enough: the folder has to go, and then the process ends.
                before = dict.fromkeys(STOPPING, signal.SIG_IGN)
                for number, handler in before.items():
                    signal.signal(number, handler)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve(options: AppOptions, folder: pathlib.Path) -> None:
    """Serves the page; what is uploaded is kept in a folder."""
    path = pathlib.Path(options.model)
    if not is_model(path):
        raise UserError(
            f"There is no model in {path}, neither a run nor a SavedModel; train one "
            "with train.py first."
        )
    find_port(options.host, options.port)  # complains before the model is loaded
    set_environment(folder)
    start_tensorflow(options.verbose)
    from mtl_keras.commands.page import build_page

    model, camera_of = open_model(path, options)
    blocks = build_page(model, camera_of, render_examples(folder))
    port = find_port(options.host, options.port)
    try:
        address = launch(blocks, options.host, port)
    except OSError as error:  # somebody was faster
        raise UserError(f"Port {port} is in use; choose another --port.") from error
    print(f"{path} is at {address} (Ctrl-C ends it).", flush=True)
    if not is_loopback(options.host):
        print(
            f"Note: whoever can reach port {port} of this machine can use the page; it "
            "has no password.",
            file=sys.stderr,
        )
    if options.browser and has_screen():
        webbrowser.open(address)
    # The server is a daemon thread: it ends with this one, and does not wait until
    # every browser has closed the page.
    while True:
        time.sleep(1)


def launch(blocks: gr.Blocks, host: str, port: int) -> str:
    """Serves a page on a free port, in a thread, and returns its address."""
    from mtl_keras.commands.page import STYLE, THEME

    blocks.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        theme=THEME,
        css=STYLE,
        footer_links=[],
        state_session_capacity=16,  # a picture and its outputs may take 200 MB
        # What variables of the environment could turn on.
        share=False,
        mcp_server=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        inline=False,
        prevent_thread_lock=True,
        quiet=True,
    )
    return str(blocks.local_url)


def set_environment(folder: pathlib.Path) -> None:
    """Settings that Gradio reads when it is imported: where it puts files, and that
    nothing is sent to anyone."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    # It asks itself whether it can be reached, which a proxy knows nothing of.
    own = os.environ.get("NO_PROXY", os.environ.get("no_proxy", ""))
    hosts = ",".join(filter(None, [own, "127.0.0.1", "localhost", "::1"]))
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = hosts


def find_port(host: str, port: int = 0) -> int:
    """A port of this machine that is free.

    Args:
        host: str, the address to listen on.
        port: int, the one that is wanted, or 0 for the first free one of `PORTS`.

    Raises:
        UserError: if there is none, or the host is not an address of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        with socket.create_server((address[0], 0), family=family):
            pass
    except OSError as error:
        raise UserError(
            f"{host} is not an address of this machine ({_reason(error)}); choose "
            "another --host."
        ) from error
    for candidate in [port] if port else PORTS:
        try:
            with socket.create_server((address[0], candidate), family=family):
                return candidate
        except OSError as error:
            reason = _reason(error)
    which = f"port {port}" if port else f"any port from {PORTS[0]} to {PORTS[-1]}"
    raise UserError(f"{host} cannot use {which} ({reason}); choose another --port.")


def _reason(error):
    return str(error.strerror).partition(" (while")[0].lower()


def is_loopback(host: str) -> bool:
    """Whether what listens on a host can be reached from this machine alone."""
    found = socket.getaddrinfo(host, None)
    return all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in found)


def has_screen() -> bool:
    """Whether a browser has a place for a window; one in the terminal would hide it."""
    names = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, names))


def render_examples(folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes a few rendered streets that no run has seen."""
    from mtl_keras.png import encode_png
    from mtl_keras.streets import render_scene, scene_seed

    paths = [folder / f"street {k + 1}.png" for k in range(NUM_EXAMPLES)]
    for k, path in enumerate(paths):
        scene = render_scene(scene_seed(0, "test", k), EXAMPLE_SIZE)
        path.write_bytes(encode_png(scene["image"]))
    return paths
