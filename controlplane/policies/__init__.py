"""One policy a file; `controlplane.registry` finds them by name."""
