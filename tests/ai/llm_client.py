"""The package llm, from its own command and as a library, against a cell: exact tokens, and errors as it knows them.

usage: llm_client.py BASE_URL KEY BROKEN_BASE_URL BROKEN_KEY FOLDER    (behind the second one answers are cut)
"""
import json
import os
import pathlib
import subprocess
import sys

base, key, broken_base, broken_key, folder = sys.argv[1:]
models = [("grove", "auto", base), ("grove-tiny", "grove-tiny", base), ("unknown", "gpt-9", base), ("broken", "auto", broken_base)]
entries = [{"model_id": name, "model_name": model, "api_base": url, "api_key_name": "grove"} for name, model, url in models]
# JSON is YAML.
pathlib.Path(folder, "extra-openai-models.yaml").write_text(json.dumps(entries))
os.environ["LLM_USER_PATH"] = folder
wanted = "".join(f" {n}" for n in range(1, 1000))


def say(*words, key=key, **more):
    command = [sys.executable, "-m", "llm", *words, "--no-log", "--key", key]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **more)


said = say("-m", "grove", "count", "-o", "temperature", "0", "-o", "max_tokens", "999")
assert said.returncode == 0 and said.stdout.rstrip("\n") == wanted, said
said = say("-m", "grove-tiny", "hi", "--no-stream")
assert said.returncode == 0 and said.stdout == " Hello from the tiny Grove test model .\n", said
for words, who, what in [
    (("-m", "unknown", "count"), key, "no model called gpt-9"),
    (("-m", "grove", "count"), "grove-wrong", "401"),
    (("-m", "broken", "count", "-o", "max_tokens", "300"), broken_key, "broke off"),
]:
    said = say(*words, key=who)
    assert said.returncode == 1 and what in said.stderr and "Traceback" not in said.stderr, said
assert said.stdout.startswith(" 1 2 3") and wanted.startswith(said.stdout.rstrip("\n")) and len(said.stdout) < 200, said
said = say("-m", "grove", input="count " * 9000)
assert said.returncode == 1 and "context" in said.stderr, said

import llm
import openai

model = llm.get_model("grove")
model.key = key
pieces = list(model.prompt("count", temperature=0, max_tokens=999))
assert "".join(pieces) == wanted and len(pieces) > 900, len(pieces)
answer = model.prompt("count", temperature=0, max_tokens=5, stream=False)
assert answer.text() == " 1 2 3 4 5" and answer.usage().output == 5, answer.usage()
for model_id, prompt, kind, code in [
    ("unknown", "count", openai.NotFoundError, "model_not_found"),
    ("grove", "count " * 9000, openai.BadRequestError, "context_length_exceeded"),
]:
    other = llm.get_model(model_id)
    other.key = key
    try:
        other.prompt(prompt).text()
        raise AssertionError(f"no {kind}")
    except kind as why:
        assert why.code == code, why.code

# Given up in the middle, and asked again at once.
for n, _ in enumerate(model.prompt("count", temperature=0, max_tokens=999)):
    if n == 20:
        break
assert model.prompt("count", temperature=0, max_tokens=3).text() == " 1 2 3"
# Conversations go on.
talk = model.conversation()
assert talk.prompt("count", temperature=0, max_tokens=3).text() == " 1 2 3"
assert talk.prompt("hi", temperature=0).text() == " Hello from the tiny Grove test model ."
print("ok")
