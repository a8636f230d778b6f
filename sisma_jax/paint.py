"""Paint masks in a browser and generate faces: `python -m sisma_jax.paint --workdir runs/demo`."""

import argparse
import errno
import importlib.util
import ipaddress
import signal
import socket
import threading
import time

from sisma_jax.common import cli
from sisma_jax.common.errors import InputError
from sisma_jax.common.install import how_to_install
from sisma_jax.data.label_values import Reading
from sisma_jax.data.mask_options import add_mask_options
from sisma_jax.painting.accounts import read_accounts


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(
        "sisma_jax.paint", __doc__, "python -m sisma_jax.paint --workdir runs/demo --port 7861"
    )
    parser.add_argument(
        "--workdir", type=cli.path, required=True, help="run folder (or export) of a trained model"
    )
    parser.add_argument(
        "--parser",
        type=cli.path,
        help="face parser that finds the masks of photos (default: runs/parser where it fits)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to serve on; 0.0.0.0 lets everyone in who reaches this machine (see --auth)",
    )
    parser.add_argument("--port", type=int, default=7860, help="port to serve on")
    parser.add_argument(
        "--auth",
        type=cli.path,
        metavar="FILE",
        help="ask visitors for a password: lines user:password, in a file that only you can read",
    )
    add_mask_options(parser, "uploaded masks")
    return parser.parse_args()


def check_address(host: str, port: int) -> None:
    """Raises InputError unless a server can listen there."""
    if not 1 <= port <= 65535:
        raise InputError(f"--port is {port}: use 1..65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise InputError(
                f"--host {host} is no address ({error.strerror}): give one of this machine's, such "
                "as 127.0.0.1, or 0.0.0.0 for all of them"
            ) from error
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise InputError(
                    f"--host {host} is no address of this machine: give one that is, such as "
                    "127.0.0.1, or 0.0.0.0 for all of them"
                ) from error
            if error.errno == errno.EACCES:
                raise InputError(
                    f"--port {port} needs the rights of an administrator: give a port from 1024"
                ) from error
            raise InputError(
                f"port {port} of {host} cannot be used ({error.strerror}): end what uses it, or "
                "give another --port or --host"
            ) from error


def who_may_use_it(host: str, *, password: bool) -> str:
    """State in one sentence who may use a page served at `host`, with or without a password."""
    addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    here = all(ipaddress.ip_address(address).is_loopback for address in addresses)
    everyone = "everyone on this machine" if here else "everyone who reaches this machine"
    if not password:
        return f"{everyone} may use it without a password (--auth asks for one)"
    plain = "" if here else "; passwords and pictures go unencrypted unless a proxy adds HTTPS"
    return f"{everyone} may use it who has a password of --auth{plain}"


def main() -> None:
    args = parse_arguments()
    reading = Reading(args.class_order, True, args.nearest_colour)
    check_address(args.host, args.port)
    accounts = read_accounts(args.auth) if args.auth else []
    if importlib.util.find_spec("gradio") is None:
        raise InputError(
            f"the page needs gradio, which is not installed: {how_to_install('paint')}"
        )
    # These take seconds to import.
    from sisma_jax.devices.compilation_cache import keep_compiled_programs
    from sisma_jax.models.face_parser import load_parser
    from sisma_jax.painting import app
    from sisma_jax.painting.studio import Studio
    from sisma_jax.painting.temporary import temporary_files

    if args.parser is not None and not args.parser.exists():
        load_parser(args.parser)  # raises before the model is read
    keep_compiled_programs()
    studio = Studio.open(args.workdir, args.parser, reading)
    classes, size = len(studio.classes), studio.size
    print(
        f"{args.workdir}, step {studio.synthesizer.step}: {classes} classes, {size}x{size} pixels"
    )
    print(f"masks to begin with: {studio.starts.origin}")
    print(f"face parser for photos: {studio.no_parser or studio.parser.name}")
    print("the first faces, which compiles the model ...", end=" ", flush=True)
    begun = time.perf_counter()
    # Shells start background jobs with SIGINT ignored.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    hangup = getattr(signal, "SIGHUP", None)  # a closed terminal; not on Windows
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:  # nohup ignores it
        signal.signal(hangup, signal.default_int_handler)
    try:
        with temporary_files() as files:
            page = app.build(studio, files)
            print(f"{time.perf_counter() - begun:.0f} s")
            at = {"host": args.host, "port": args.port, "size": size, "accounts": accounts}
            with app.served(page, files, **at) as address:
                print(who_may_use_it(args.host, password=bool(accounts)))
                print(f"paint at {address} (Ctrl-C ends it)", flush=True)
                threading.Event().wait()
    except KeyboardInterrupt:
        print("\nended")


if __name__ == "__main__":
    cli.run(main)
