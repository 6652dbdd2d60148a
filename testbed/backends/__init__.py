"""The testbed's HTTP server: k workers, a speed, a bounded FIFO queue, and faults on demand."""
