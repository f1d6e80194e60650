"""The copy-paste example of a finetune, as the Dashboard shows it: curl and Python, trigger phrase included."""

import json
import shlex
from typing import Literal, TypeAlias

from lora_runtime.finetunes import Finetune

Language: TypeAlias = Literal["curl", "python"]


def write_example(finetune: Finetune, base_url: str, language: Language) -> str:
    """Return a program that renders one image with `finetune` and prints where it is.

    The key is read from BFL_API_KEY; without keys on the server it may be anything.
    """
    body = {
        "prompt": " ".join(filter(None, ("A portrait of", finetune.trigger_phrase, "in a sunlit studio"))),
        "finetune_id": finetune.id,
        "finetune_strength": 1.0,
    }
    url = f"{base_url}{finetune.endpoint.path}"
    if language == "curl":
        return _CURL.format(url=shlex.quote(url), body=shlex.quote(json.dumps(body, indent=2, ensure_ascii=False)))
    return _PYTHON.format(url=json.dumps(url), body=_indent(json.dumps(body, indent=4, ensure_ascii=False)))


def _indent(text: str) -> str:
    return text.replace("\n", "\n    ")


_CURL = """\
# Submit
RESPONSE=$(curl -s -X POST {url} \\
  -H "x-key: $BFL_API_KEY" \\
  -H 'Content-Type: application/json' \\
  -d {body})
POLLING_URL=$(echo "$RESPONSE" | jq -r '.polling_url')

# Poll
while true; do
  RESULT=$(curl -s "$POLLING_URL" -H "x-key: $BFL_API_KEY")
  STATUS=$(echo "$RESULT" | jq -r '.status')
  [ "$STATUS" = "Ready" ] && echo "$RESULT" | jq -r '.result.sample' && break
  [ "$STATUS" != "Pending" ] && echo "$RESULT" && break
  sleep 1
done
"""

_PYTHON = """\
import os, time, requests

headers = {{"x-key": os.environ.get("BFL_API_KEY", "")}}
response = requests.post(
    {url},
    headers=headers,
    json={body},
)
response.raise_for_status()
task = response.json()

while True:
    time.sleep(1)
    result = requests.get(task["polling_url"], headers=headers).json()
    if result["status"] == "Ready":
        print(result["result"]["sample"])
        break
    if result["status"] != "Pending":
        print(result)
        break
"""
