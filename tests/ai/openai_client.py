"""The official OpenAI client against a cell: exact tokens, and errors as it knows them.

usage: openai_client.py BASE_URL KEY
"""
import sys

import openai

base, key = sys.argv[1:]
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
try:
    openai.OpenAI(base_url=base, api_key="grove-wrong", max_retries=0).models.list()
    raise AssertionError("no error for a wrong key")
except openai.AuthenticationError:
    pass

# Given up in the middle, and asked again at once.
stream = client.chat.completions.create(model="auto", messages=count, stream=True, temperature=0, max_tokens=999)
for n, chunk in enumerate(stream):
    if n == 20:
        stream.close()
        break
again = client.chat.completions.create(model="auto", messages=count, temperature=0, max_tokens=3)
assert again.choices[0].message.content == " 1 2 3"
print("ok")
