"""Everything here starts processes: gRPC's handlers of a fork would crash a child that is forked while a call runs."""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # read when grpc is loaded
