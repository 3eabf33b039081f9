from dataclasses import fields

from presift.core.answer import Finished
from presift.core.generation import FinishReason
from presift.rpc.answer_codec import finished_to_wire
from presift.v1 import orchestrator_pb2, target_pb2

# Of these, each service sends its own, or none.
BY_SERVICE = {"prompt_tokens", "kv_mask"}


def test_every_field_of_a_finished_answer_is_sent_by_both_services():
    values = finished_to_wire(Finished(9, 8, 2, FinishReason.STOP, 9))
    assert set(values) | BY_SERVICE == {field.name for field in fields(Finished)}
    assert target_pb2.TargetUsage(**values).completion_tokens == 2
    assert orchestrator_pb2.Usage(**values).cached_tokens == 8
