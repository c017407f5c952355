"""What holds for all tests: profiles of hypothesis, one thread for each process, Ctrl-C that is heard."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models run fastest so, and the tests run on every core anyway

from hypothesis import settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background: what tests start inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline (a loaded machine is no bug), and the same examples every time in CI.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")
