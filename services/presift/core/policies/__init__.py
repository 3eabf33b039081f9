"""The policies: frozen sets of hyper-parameters that turn importance into a mask. One file each.

A new policy is a class in a file of its own and a member of POLICIES; services/README.md lists the other files.
"""

from presift.core.plan import Route
from presift.core.policies.adaptive import Adaptive
from presift.core.policies.fields import Heads, KvSelection, Pool, Reduction
from presift.core.policies.policy import Policy
from presift.core.policies.spec_kv import SpecKv
from presift.core.policies.spec_kv_pc import SpecKvPc
from presift.core.policies.spec_pc import SpecPc

# By route, which is also the name on the wire (plan.proto, Policy) and in cache keys.
POLICIES: dict[str, type[Policy]] = {kind.route.value: kind for kind in (SpecPc, SpecKv, SpecKvPc)}

# The routes by what they need from the target.
KV_DROPPING_ROUTES = tuple(kind.route for kind in POLICIES.values() if kind.drops_kv)
KV_KEEPING_ROUTES = (Route.FULL, *(kind.route for kind in POLICIES.values() if not kind.drops_kv))

__all__ = [
    "KV_DROPPING_ROUTES",
    "KV_KEEPING_ROUTES",
    "POLICIES",
    "Adaptive",
    "Heads",
    "KvSelection",
    "Policy",
    "Pool",
    "Reduction",
    "SpecKv",
    "SpecKvPc",
    "SpecPc",
]
