import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Operation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERATION_UNSPECIFIED: _ClassVar[Operation]
    OPERATION_GENERATE: _ClassVar[Operation]
    OPERATION_EDIT: _ClassVar[Operation]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_DELIVERED: _ClassVar[Outcome]
    OUTCOME_CANCELLED: _ClassVar[Outcome]
    OUTCOME_DEADLINE: _ClassVar[Outcome]
    OUTCOME_FAILED: _ClassVar[Outcome]
    OUTCOME_REFUSED: _ClassVar[Outcome]
OPERATION_UNSPECIFIED: Operation
OPERATION_GENERATE: Operation
OPERATION_EDIT: Operation
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_DELIVERED: Outcome
OUTCOME_CANCELLED: Outcome
OUTCOME_DEADLINE: Outcome
OUTCOME_FAILED: Outcome
OUTCOME_REFUSED: Outcome

class Usage(_message.Message):
    __slots__ = ("output_pixels", "output_megapixels", "reference_megapixels", "cost_microusd", "billable", "price_version")
    OUTPUT_PIXELS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_MEGAPIXELS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_MEGAPIXELS_FIELD_NUMBER: _ClassVar[int]
    COST_MICROUSD_FIELD_NUMBER: _ClassVar[int]
    BILLABLE_FIELD_NUMBER: _ClassVar[int]
    PRICE_VERSION_FIELD_NUMBER: _ClassVar[int]
    output_pixels: int
    output_megapixels: int
    reference_megapixels: int
    cost_microusd: int
    billable: bool
    price_version: str
    def __init__(self, output_pixels: _Optional[int] = ..., output_megapixels: _Optional[int] = ..., reference_megapixels: _Optional[int] = ..., cost_microusd: _Optional[int] = ..., billable: _Optional[bool] = ..., price_version: _Optional[str] = ...) -> None: ...

class GetUsageRequest(_message.Message):
    __slots__ = ("start_time", "end_time", "caller")
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    caller: str
    def __init__(self, start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., caller: _Optional[str] = ...) -> None: ...

class UsageTotal(_message.Message):
    __slots__ = ("caller", "operation", "requests", "images", "output_megapixels", "reference_megapixels", "cost_microusd")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_MEGAPIXELS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_MEGAPIXELS_FIELD_NUMBER: _ClassVar[int]
    COST_MICROUSD_FIELD_NUMBER: _ClassVar[int]
    caller: str
    operation: Operation
    requests: int
    images: int
    output_megapixels: int
    reference_megapixels: int
    cost_microusd: int
    def __init__(self, caller: _Optional[str] = ..., operation: _Optional[_Union[Operation, str]] = ..., requests: _Optional[int] = ..., images: _Optional[int] = ..., output_megapixels: _Optional[int] = ..., reference_megapixels: _Optional[int] = ..., cost_microusd: _Optional[int] = ...) -> None: ...

class GetUsageResponse(_message.Message):
    __slots__ = ("totals",)
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    totals: _containers.RepeatedCompositeFieldContainer[UsageTotal]
    def __init__(self, totals: _Optional[_Iterable[_Union[UsageTotal, _Mapping]]] = ...) -> None: ...

class ListUsageRecordsRequest(_message.Message):
    __slots__ = ("start_time", "end_time", "caller", "after_record_id")
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    AFTER_RECORD_ID_FIELD_NUMBER: _ClassVar[int]
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    caller: str
    after_record_id: str
    def __init__(self, start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., caller: _Optional[str] = ..., after_record_id: _Optional[str] = ...) -> None: ...

class ListUsageRecordsResponse(_message.Message):
    __slots__ = ("record",)
    RECORD_FIELD_NUMBER: _ClassVar[int]
    record: UsageRecord
    def __init__(self, record: _Optional[_Union[UsageRecord, _Mapping]] = ...) -> None: ...

class UsageRecord(_message.Message):
    __slots__ = ("record_id", "request_id", "caller", "client_tag", "model", "operation", "outcome", "reason", "usage", "width", "height", "references", "steps_run", "accelerator_microseconds", "accept_time", "end_time")
    RECORD_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    CLIENT_TAG_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    STEPS_RUN_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    record_id: str
    request_id: str
    caller: str
    client_tag: str
    model: str
    operation: Operation
    outcome: Outcome
    reason: str
    usage: Usage
    width: int
    height: int
    references: int
    steps_run: int
    accelerator_microseconds: int
    accept_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    def __init__(self, record_id: _Optional[str] = ..., request_id: _Optional[str] = ..., caller: _Optional[str] = ..., client_tag: _Optional[str] = ..., model: _Optional[str] = ..., operation: _Optional[_Union[Operation, str]] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., reason: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., references: _Optional[int] = ..., steps_run: _Optional[int] = ..., accelerator_microseconds: _Optional[int] = ..., accept_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
