"""How generating and explaining begin: within the tenant's quota, in a slot."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from presift.orchestrator.admission.admission import Admission, Slot
from presift.orchestrator.admission.quotas import Quota
from presift.orchestrator.admission.request_cost import RequestCost
from presift.orchestrator.domain.request import Request, TokenIds
from presift.rpc.deadline import Deadline


@asynccontextmanager
async def admitted(
    admission: Admission, request: Request, cost: RequestCost, quota: Quota, deadline: Deadline, *, max_new_tokens: int
) -> AsyncIterator[Slot]:
    """A slot for a request whose tenant's quota is not used up: its prompt is not tokenized before.

    `max_new_tokens` of all its choices together; 0: nothing is generated. Raises Overloaded or DeadlineExceeded.
    """
    is_exact = isinstance(request.prompt, TokenIds)
    await quota.estimate(cost.prompt_tokens, max_new_tokens=max_new_tokens, is_exact=is_exact)
    async with admission.slot(request.tenant or "", cost, deadline) as slot:
        yield slot
