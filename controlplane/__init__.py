"""The control plane: it observes, decides and writes the parameters of the bids."""

import os

# Its matrices are small, and its machine is the data plane's: OpenBLAS's threads would spin for each other there, and a
# decision of 0.3 ms takes 50 ms when another process has the second core. It is read when numpy is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
