"""The fault tests' farm and balancer, for what is tested on a live one."""

from tests.faults.conftest import balancer, farm, shared_farm

__all__ = ["balancer", "farm", "shared_farm"]
