"""The engine without a supervisor, under sanitizers, over scripted servers: fixtures of the socket tests."""

from tests.socket.conftest import engine_program, service, start_balancer, start_origin

__all__ = ["engine_program", "service", "start_balancer", "start_origin"]
