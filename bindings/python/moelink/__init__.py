"""Expert-parallel dispatch and combine over libmoelink.

The module ``moelink._moelink`` has every function, struct and constant of the C headers under its own name; it is here as
``moelink.c``. The classes of this package own handles and memory. Collective calls block, without the interpreter lock: every
rank makes them on a thread (or in a process) of its own. Failures raise ``moelink.Error``, with ``status`` and the library's
text.
"""

import atexit
import threading

from . import _moelink as c
from ._moelink import CallError, DeviceError, Error, GroupError, PeerError
from .group import Group
from .manager import Manager, Received
from .rows import Rows

__all__ = ["CallError", "DeviceError", "Error", "Group", "GroupError", "Manager", "PeerError", "Received", "Rows", "c",
           "log_to", "version", "version_string"]

version = c.moelink_version
version_string = c.moelink_version_string

_log_lock = threading.Lock()
_log_receiver = None


def log_to(receiver):
    """Sends log messages to receiver(level, text); None: to standard error again. It may be called on any thread."""
    global _log_receiver
    with _log_lock:
        c.moelink_log_set_callback(receiver)
        _log_receiver = receiver


# The library may log for longer than there is an interpreter.
atexit.register(log_to, None)
