"""OpenAI's Images API by the official `openai` package (web/openai/{answers,endpoints,fields,refusals}.py)."""

import asyncio
import base64
import hashlib
import io
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import kleinclient
import openai
import pytest
from PIL import Image

from tests.web.conftest import TOKEN, Web

PROMPT = "a red circle on a blue background"


_opened: list[openai.OpenAI] = []


def client(web: Web, key: str = "none", **more: object) -> openai.OpenAI:
    _opened.append(openai.OpenAI(base_url=f"{web.base}/v1", api_key=key, max_retries=0, **more))  # type: ignore[arg-type]
    return _opened[-1]


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


def picture(b64_json: str | None) -> Image.Image:
    assert b64_json is not None
    return Image.open(io.BytesIO(base64.b64decode(b64_json)))


def png(web: Web) -> bytes:
    made = client(web).images.generate(prompt=PROMPT, size="64x64", extra_body={"seed": 1})
    assert made.data is not None
    return base64.b64decode(made.data[0].b64_json or "")


def test_generate(web: Web) -> None:
    """One image comes as base64, of the size and seed asked, with OpenAI's usage and ours; the same again is equal."""
    asked = {"prompt": PROMPT, "size": "128x96", "model": "mini", "extra_body": {"seed": 7, "steps": 2}}
    first, second = client(web).images.generate(**asked), client(web).images.generate(**asked)  # type: ignore[call-overload]
    assert picture(first.data[0].b64_json).size == (128, 96)
    assert first.data[0].seed == 7
    assert (first.size, first.output_format, first.background) == ("128x96", "png", "opaque")
    usage = first.usage
    assert (usage.input_tokens, usage.total_tokens, usage.output_tokens) == (usage.total_tokens, usage.input_tokens, 0)
    assert usage.input_tokens_details.text_tokens > 0
    assert (usage.input_tokens_details.image_tokens, usage.megapixels, usage.cost_microusd) == (0, 1, 14_000)
    assert first.data[0].b64_json == second.data[0].b64_json


@pytest.mark.parametrize(("partial_images", "steps"), [(0, 4), (1, 4), (2, 4), (3, 4), (3, 2), (3, 1)])
def test_stream(web: Web, partial_images: int, steps: int) -> None:
    """Some previews come, numbered, in the format asked, and then the image, equal to the one without a stream."""
    more = {"prompt": PROMPT, "size": "64x64", "output_format": "webp", "extra_body": {"seed": 3, "steps": steps}}
    stream = client(web).images.generate(stream=True, partial_images=partial_images, **more)  # type: ignore[call-overload]
    *partial, completed = list(stream)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * len(partial)
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    assert min(partial_images, 1) <= len(partial) <= min(partial_images, steps)  # a slow reader is spared some
    assert {picture(event.b64_json).format for event in (*partial, completed)} == {"WEBP"}
    assert completed.type == "image_generation.completed"
    assert completed.usage.cost_microusd == 14_000
    assert completed.b64_json == client(web).images.generate(**more).data[0].b64_json  # type: ignore[call-overload]


@pytest.mark.parametrize("count", [1, 2])
def test_edit(web: Web, count: int) -> None:
    """One image or several are the references, in their order; the stream's events are image_edit's."""
    files = [("one.png", png(web)), ("two.png", png(web))][:count]
    images = files[0] if count == 1 else files
    edited = client(web).images.edit(image=images, prompt="make it green", extra_body={"seed": 2, "steps": 2})
    assert edited.data is not None
    assert picture(edited.data[0].b64_json).size == (64, 64)
    stream = client(web).images.edit(
        image=images, prompt="make it green", stream=True, partial_images=1, extra_body={"seed": 2, "steps": 2}
    )
    events = list(stream)
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert events[-1].b64_json == edited.data[0].b64_json


def test_several(web: Web) -> None:
    """n images have consecutive seeds, wrap at 2^64, are billed each, and are what each would be alone."""
    before = web.counted("klein_cost_microusd_total")
    made = client(web).images.generate(prompt=PROMPT, size="64x64", n=3, extra_body={"seed": 2**64 - 2, "steps": 1})
    assert made.data is not None
    assert [image.seed for image in made.data] == [2**64 - 2, 2**64 - 1, 0]  # type: ignore[attr-defined]
    assert made.usage.cost_microusd == 42_000  # type: ignore[union-attr]
    assert web.counted("klein_cost_microusd_total") - before == 42_000
    assert len({hashlib.sha256((image.b64_json or "").encode()).digest() for image in made.data}) == 3
    drawn = client(web).images.generate(prompt=PROMPT, size="64x64", n=2, extra_body={"steps": 1})
    assert drawn.data is not None
    first, second = (image.seed for image in drawn.data)  # type: ignore[attr-defined]
    assert second == first + 1


def test_transparent(web: Web) -> None:
    """A transparent background has an alpha channel; JPEG with it is refused."""
    made = client(web).images.generate(prompt=PROMPT, size="64x64", background="transparent")
    assert made.data is not None
    assert picture(made.data[0].b64_json).mode == "RGBA"
    assert made.background == "transparent"
    with pytest.raises(openai.BadRequestError) as caught:
        client(web).images.generate(prompt=PROMPT, background="transparent", output_format="jpeg")
    assert caught.value.param == "background"


BAD = [
    ({"size": "100x64"}, "size"),
    ({"size": "huge"}, "size"),
    ({"n": 11}, "n"),
    ({"n": 0}, "n"),
    ({"quality": "high"}, "quality"),
    ({"response_format": "url"}, "response_format"),
    ({"output_format": "svg"}, "output_format"),
    ({"output_compression": 50}, "output_compression"),
    ({"output_compression": 0, "output_format": "webp"}, "output_compression"),
    ({"partial_images": 2}, "partial_images"),
    ({"stream": True, "n": 2}, "n"),
    ({"stream": True, "partial_images": 4}, "partial_images"),
    ({"moderation": "low"}, "moderation"),
    ({"style": "vivid"}, "style"),
    ({"user": "x" * 129}, "user"),
    ({"prompt": " "}, "prompt"),
    ({"extra_body": {"seed": 2**64}}, "seed"),
    ({"extra_body": {"steps": 51}}, "steps"),
    ({"extra_body": {"guidance": 2}}, "guidance"),
    ({"extra_headers": {"Idempotency-Key": "\x7f"}}, "Idempotency-Key"),
]


@pytest.mark.parametrize(("given", "param"), BAD)
def test_a_bad_field_is_named(web: Web, given: dict[str, object], param: str) -> None:
    """What cannot be honoured is refused by its own name, in OpenAI's form, and is not tried again."""
    with pytest.raises(openai.BadRequestError) as caught:
        client(web).images.generate(**{"prompt": PROMPT, **given})  # type: ignore[call-overload]
    error = caught.value
    assert (error.param, error.code, error.type) == (param, "INVALID_FIELD", "invalid_request_error")
    assert param in error.message
    assert error.response.headers["x-should-retry"] == "false"
    assert error.request_id


def test_a_bad_edit_is_named(web: Web) -> None:
    """A mask, what is no image, and too many images are refused by their names."""
    image = png(web)
    for given, param, code in (
        ({"image": image, "mask": image}, "mask", "INVALID_FIELD"),
        ({"image": b"no image"}, "image[0]", "REFERENCE_UNREADABLE"),
        ({"image": [image] * 5}, "image", "INVALID_FIELD"),
        ({"image": image, "input_fidelity": "high"}, "input_fidelity", "INVALID_FIELD"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client(web).images.edit(prompt=PROMPT, **given)  # type: ignore[call-overload]
        assert (caught.value.param, caught.value.code) == (param, code)


def test_models(web: Web) -> None:
    """The served model is the one there is; another is 404."""
    assert [model.id for model in client(web).models.list()] == ["mini"]
    assert client(web).models.retrieve("mini").id == "mini"
    for ask in (
        lambda: client(web).models.retrieve("dall-e-3"),
        lambda: client(web).images.generate(prompt=PROMPT, model="dall-e-3"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert caught.value.param == "model"
    assert httpx.get(f"{web.base}/v1/chat/completions", trust_env=False).json()["error"]["code"] == "NOT_FOUND"


def test_what_is_no_request_is_refused(web: Web) -> None:
    """Bodies that are no JSON object and no parts get an answer in OpenAI's form."""
    with httpx.Client(base_url=web.base, trust_env=False) as raw:
        for path, body, kind in (
            ("generations", b"{", "application/json"),
            ("generations", b"[" * 100_000, "application/json"),
            ("generations", b"[]", "application/json"),
            ("generations", b"{}", "text/plain"),
            ("generations", b'{"prompt": 7}', "application/json"),
            ("edits", b"{}", "application/json"),
            ("edits", b"--x\r\nrubbish", "multipart/form-data; boundary=x"),
            ("edits", b"", "multipart/form-data"),
        ):
            answer = raw.post(f"/v1/images/{path}", content=body, headers={"content-type": kind})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_FIELD")
        answer = raw.post("/v1/images/generations", content=b" " * (44 * 1024 * 1024 + 1))
        assert answer.status_code == 413


async def test_closing_cancels(web: Web) -> None:
    """A stream that is closed, and an answer that is not waited for, end their images on the server."""
    before = web.counted("klein_cancelled_total")
    asked = {"prompt": PROMPT, "size": "512x512", "extra_body": {"steps": 50}}
    stream = client(web).images.generate(stream=True, partial_images=3, **asked)  # type: ignore[call-overload]
    stream.close()
    await web.counts("klein_cancelled_total", before + 1)
    with pytest.raises(openai.APITimeoutError):
        client(web, timeout=1.0).images.generate(n=2, **asked)  # type: ignore[call-overload]
    await web.counts("klein_cancelled_total", before + 3)


def test_a_key_replays(web: Web) -> None:
    """The same request under its key costs nothing again, each of n by its own key; another is refused with 409."""
    asked = {"prompt": PROMPT, "size": "64x64", "n": 2, "extra_headers": {"Idempotency-Key": "shelf"}}
    first = client(web).images.generate(**asked)  # type: ignore[call-overload]
    before = web.counted("klein_cost_microusd_total")
    second = client(web).images.generate(**asked)  # type: ignore[call-overload]
    assert [image.b64_json for image in second.data] == [image.b64_json for image in first.data]
    assert web.counted("klein_cost_microusd_total") == before
    with pytest.raises(openai.ConflictError) as caught:
        client(web).images.generate(**{**asked, "prompt": "another"})  # type: ignore[call-overload]
    assert caught.value.code == "IDEMPOTENCY_KEY_REUSED"


async def test_one_of_several_is_attached_to(web: Web) -> None:
    """Over gRPC, while they run and when they are kept: the i-th of n is `KEY/i`; each is billed once."""
    asked = {"prompt": PROMPT, "size": "256x256", "n": 2, "extra_headers": {"Idempotency-Key": "attached"}}
    ask: Any = partial(client(web).images.generate, **asked, extra_body={"steps": 50})  # type: ignore[call-overload]
    before = web.counted("klein_cost_microusd_total")
    async with kleinclient.AsyncClient(web.target) as klein:
        answer = asyncio.create_task(asyncio.to_thread(ask))
        await web.counts("klein_running_requests", 2)
        running = await asyncio.gather(*(klein.attach(f"attached/{index}").result() for index in (1, 2)))
        drawn = [base64.b64decode(image.b64_json) for image in (await answer).data]
        kept = [await klein.attach(f"attached/{index}") for index in (1, 2)]
    assert drawn == [image.data for image in running] == [image.data for image in kept]
    assert {image.is_replay for image in (*running, *kept)} == {True}
    assert web.counted("klein_cost_microusd_total") - before == 28_000


def test_the_token_is_the_key(limited: Web) -> None:
    """The package's api_key is the caller's token; another is 401 in OpenAI's form, for the models too."""
    assert [model.id for model in client(limited, TOKEN).models.list()] == ["mini"]
    for ask in (
        lambda: client(limited, "other").models.list(),
        lambda: client(limited, "other").images.generate(prompt=PROMPT),
    ):
        with pytest.raises(openai.AuthenticationError) as caught:
            ask()
        assert (caught.value.code, caught.value.type) == ("UNAUTHENTICATED", "authentication_error")


def test_a_rate_limit(limited: Web) -> None:
    """Three megapixels of two a minute are 429 as a whole: nothing is billed, and the package is told when to retry."""
    with pytest.raises(openai.RateLimitError) as caught:
        client(limited, TOKEN).images.generate(prompt=PROMPT, size="64x64", n=3, extra_body={"steps": 50})
    error = caught.value
    assert (error.code, error.type) == ("QUOTA_EXCEEDED", "rate_limit_error")
    assert error.response.headers["x-should-retry"] == "true"
    assert 1 <= int(error.response.headers["retry-after"]) <= 60
    assert limited.counted("klein_cost_microusd_total") == 0
