"""The official OpenAI client against a cell: exact tokens, and errors as it knows them.

usage: openai_client.py BASE_URL KEY BROKEN_BASE_URL BROKEN_KEY    (behind the second one answers are cut)
"""
import sys

import openai

base, key, broken_base, broken_key = sys.argv[1:]
client = openai.OpenAI(base_url=base, api_key=key, max_retries=0, timeout=60)
count = [{"role": "user", "content": "count"}]
wanted = "".join(f" {n}" for n in range(1, 1000))

names = [model.id for model in client.models.list()]
assert "auto" in names and "grove-tiny" in names, names
assert client.models.retrieve("grove-tiny").id == "grove-tiny"

stream = client.chat.completions.create(
    model="auto", messages=count, stream=True, temperature=0, max_tokens=999, stream_options={"include_usage": True}
)
text, ids, usage, finish, roles = "", set(), None, None, []
for chunk in stream:
    ids.add(chunk.id)
    usage = chunk.usage or usage
    for choice in chunk.choices:
        text += choice.delta.content or ""
        finish = choice.finish_reason or finish
        roles += [choice.delta.role] if choice.delta.role else []
assert text == wanted, text
assert (len(ids), usage.completion_tokens, finish, roles) == (1, 999, "length", ["assistant"]), (ids, usage, finish, roles)

raw = client.chat.completions.with_raw_response.create(model="grove-tiny", messages=count, temperature=0, max_tokens=5)
assert raw.headers["x-grove-cell"] == "ann"
whole = raw.parse()
assert whole.choices[0].message.content == " 1 2 3 4 5" and whole.usage.completion_tokens == 5
assert whole.choices[0].message.role == "assistant"

parts = client.completions.create(model="grove-tiny", prompt=" 1 2 3", max_tokens=3, temperature=0, stream=True)
assert "".join(part.choices[0].text for part in parts if part.choices) == " 4 5 6"


def refused(kind, code, **request):
    try:
        client.chat.completions.create(**{"model": "auto", "messages": count, **request})
    except kind as why:
        assert why.code == code, (why.code, code)
        return
    raise AssertionError(f"no {kind}")


refused(openai.NotFoundError, "model_not_found", model="gpt-9")
refused(openai.NotFoundError, "model_not_found", model="gpt-9", stream=True)
refused(openai.BadRequestError, "context_length_exceeded", messages=[{"role": "user", "content": "count " * 9000}])
refused(openai.BadRequestError, "context_length_exceeded", messages=[{"role": "user", "content": "count " * 9000}], stream=True)
refused(openai.BadRequestError, None, messages=[])
for headers in ({}, {"Authorization": ""}):
    try:
        stranger = openai.OpenAI(base_url=base, api_key="grove-wrong", max_retries=0)
        stranger.chat.completions.create(model="auto", messages=count, extra_headers=headers)
        raise AssertionError("no error for a wrong key")
    except openai.AuthenticationError as why:
        assert why.code == "invalid_api_key", why.code
try:
    client.post("/chat/completions", cast_to=object, content=b'{"model":', options={"headers": {"Content-Type": "application/json"}})
    raise AssertionError("no error for what is no JSON")
except openai.BadRequestError as why:
    assert why.type == "invalid_request_error" and "JSON" in why.message, why
try:
    client.embeddings.create(model="grove-tiny", input="count", encoding_format="float")
    raise AssertionError("no error for what the server does not do")
except openai.NotFoundError as why:
    assert why.code == "not_supported", why.code

# Given up in the middle, and asked again at once.
stream = client.chat.completions.create(model="auto", messages=count, stream=True, temperature=0, max_tokens=999)
for n, chunk in enumerate(stream):
    if n == 20:
        stream.close()
        break
again = client.chat.completions.create(model="auto", messages=count, temperature=0, max_tokens=3)
assert again.choices[0].message.content == " 1 2 3"

# An answer that breaks off is an error, not a short answer.
broken = openai.OpenAI(base_url=broken_base, api_key=broken_key, max_retries=0, timeout=60)
text = ""
try:
    for chunk in broken.chat.completions.create(model="auto", messages=count, stream=True, temperature=0, max_tokens=300):
        text += chunk.choices[0].delta.content or "" if chunk.choices else ""
    raise AssertionError(f"no error behind {text}")
except openai.APIError as why:
    assert why.code == "broke_off", why
assert text.startswith(" 1 2 3") and wanted.startswith(text) and len(text) < 200, text
try:
    broken.chat.completions.create(model="auto", messages=count, temperature=0, max_tokens=300)
    raise AssertionError("no error for a whole answer that breaks off")
except openai.InternalServerError as why:
    assert (why.status_code, why.code) == (502, "broke_off"), why
print("ok")
