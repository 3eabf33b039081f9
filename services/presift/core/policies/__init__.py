"""The policies: frozen sets of hyper-parameters that turn importance into a mask. One file each."""

from presift.core.policies.adaptive import Adaptive
from presift.core.policies.fields import KvSelection, Pool, Reduction
from presift.core.policies.spec_kv import SpecKv
from presift.core.policies.spec_kv_pc import SpecKvPc
from presift.core.policies.spec_pc import SpecPc

Policy = SpecPc | SpecKv | SpecKvPc

POLICIES: dict[str, type[Policy]] = {"spec_pc": SpecPc, "spec_kv": SpecKv, "spec_kv_pc": SpecKvPc}

__all__ = ["POLICIES", "Adaptive", "KvSelection", "Policy", "Pool", "Reduction", "SpecKv", "SpecKvPc", "SpecPc"]
