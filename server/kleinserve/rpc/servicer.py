"""The contract's methods: a message becomes what the desk is asked, its answer becomes messages. Knows no transport."""

from klein.v1 import image_pb2, usage_pb2

from kleinserve.config import Config
from kleinserve.core import Completed, EncodedImage, ModelFacts
from kleinserve.desk.desk import Desk, Stream
from kleinserve.errors import InvalidField, PermissionDenied, Violation, quoted
from kleinserve.rpc import capabilities, events, periods, requests
from kleinserve.rpc.call import Call, Method
from kleinserve.rpc.forward import Forward
from kleinserve.usage.ledger import Ledger

KEY_METADATA = "klein-idempotency-key"


class Images:
    """klein.v1.ImageService."""

    def __init__(self, desk: Desk, forward: Forward, facts: ModelFacts, config: Config):
        self._desk, self._forward, self._facts, self._config = desk, forward, facts, config

    async def generate(self, message: image_pb2.GenerateRequest | image_pb2.EditRequest, call: Call) -> None:
        """Generate and Edit."""
        call.stream = await self._open(message, call)
        del message  # its references may hold 40 MiB, and a stream lives for long
        call.draft = None
        await self._tell(call)

    async def _open(self, message: image_pb2.GenerateRequest | image_pb2.EditRequest, call: Call) -> Stream | None:
        """The stream of what is asked for; None: another server has answered."""
        self._desk.check()
        call.draft = draft = requests.draft(message, self._facts, self._config)
        _check_key(call, draft.options.idempotency_key, "options.idempotency_key")
        return await self._forward.unless_elsewhere(message, call, lambda: self._desk.open(draft, call.asked()))

    async def attach(self, message: image_pb2.AttachRequest, call: Call) -> None:
        key = requests.key(message)
        _check_key(call, key, "idempotency_key")
        call.stream = await self._forward.unless_elsewhere(message, call, lambda: self._desk.attach(key, call.asked()))
        await self._tell(call)

    async def cancel(self, message: image_pb2.CancelRequest, call: Call) -> None:
        key = requests.key(message)
        _check_key(call, key, "idempotency_key")
        if await self._forward.unless_elsewhere(message, call, lambda: self._desk.cancel(key, call.known)):
            await call.write(image_pb2.CancelResponse())

    async def get_capabilities(self, message: image_pb2.GetCapabilitiesRequest, call: Call) -> None:
        requests.nothing(message)
        await call.write(capabilities.response(self._facts, self._config))

    async def _tell(self, call: Call) -> None:
        """Write what happens to the job until its image is whole; nothing where another server has answered."""
        if (stream := call.stream) is None:
            return
        await call.begin()
        numbered = events.Numbered(stream.job.request.request_id, stream.reader.terms.client_tag)
        async for happened in stream.reader.events():
            if isinstance(happened, EncodedImage):
                for each in numbered.image(happened, self._config.chunk_bytes):
                    stream.reader.check()
                    await call.write(each)
                continue
            call.is_complete = isinstance(happened, Completed)
            await call.write(numbered.event(happened))
        self._desk.delivered(stream)


class Usages:
    """klein.v1.UsageService: what the ledger holds. A caller sees its own, an admin everyone's."""

    def __init__(self, ledger: Ledger):
        self._ledger = ledger

    async def get_usage(self, message: usage_pb2.GetUsageRequest, call: Call) -> None:
        start, end = periods.period(message)
        totals = await self._ledger.totals(start, end, _whose(message.caller, call))
        await call.write(usage_pb2.GetUsageResponse(totals=[periods.total(each) for each in totals]))

    async def list_usage_records(self, message: usage_pb2.ListUsageRecordsRequest, call: Call) -> None:
        start, end = periods.period(message)
        await call.begin()
        async for record in self._ledger.records(start, end, _whose(message.caller, call), message.after_record_id):
            await call.write(usage_pb2.ListUsageRecordsResponse(record=periods.record(record)))


def methods(images: Images, usages: Usages) -> dict[str, Method]:
    """Every RPC by its path."""
    image, usage = "/klein.v1.ImageService/", "/klein.v1.UsageService/"
    return {
        image + "Generate": Method(image_pb2.GenerateRequest, True, images.generate, "generate", True),
        image + "Edit": Method(image_pb2.EditRequest, True, images.generate, "edit", True),
        image + "Attach": Method(image_pb2.AttachRequest, True, images.attach, makes_image=True),
        image + "Cancel": Method(image_pb2.CancelRequest, False, images.cancel),
        image + "GetCapabilities": Method(image_pb2.GetCapabilitiesRequest, False, images.get_capabilities),
        usage + "GetUsage": Method(usage_pb2.GetUsageRequest, False, usages.get_usage),
        usage + "ListUsageRecords": Method(usage_pb2.ListUsageRecordsRequest, True, usages.list_usage_records),
    }


def _check_key(call: Call, key: str, field: str) -> None:
    """The metadata's key, by which proxies route, is the message's. Raises: InvalidField."""
    given = call.transport.metadata.get(KEY_METADATA)
    if given is not None and given != key:
        said = f"{quoted(key)}, but {KEY_METADATA} in the metadata is {quoted(given)}; they must be equal"
        raise InvalidField(Violation(field, said))


def _whose(caller: str, call: Call) -> str | None:
    """Whose usage is asked for: None is everyone's. Raises: PermissionDenied."""
    if call.known.is_admin:
        return caller or None
    if caller not in ("", call.known.name):
        raise PermissionDenied("only an admin caller sees the usage of others")
    return call.known.name
