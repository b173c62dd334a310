"""One request to a gateway: exits 0 when the answer has tokens and says which workers served it."""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request

URL = os.environ["BATON_URL"]
KEY = os.environ.get("BATON_API_KEY", "")
# A certificate names the host that clients use, not the Service.
CONTEXT = ssl._create_unverified_context()


def call(path, body):
    """POSTs a body and returns headers and document of the answer."""
    headers = {"content-type": "application/json", "x-baton-explain": "1"}
    if KEY:
        headers["authorization"] = f"Bearer {KEY}"
    data = json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=30, context=CONTEXT) as answer:
        return answer.headers, json.load(answer)


def main():
    """Asks until an answer comes; returns what is wrong, or None."""
    end_s = time.monotonic() + float(os.environ["BATON_TIMEOUT_S"])
    body = {"prompt": os.environ["BATON_PROMPT"], "max_tokens": 8, "temperature": 0}
    while True:
        try:
            headers, answer = call("/v1/completions", body)
            break
        except urllib.error.HTTPError as error:
            # 429 and 503 pass; anything else is a wrong request or key.
            problem = f"{error.code}: {error.read().decode(errors='replace')[:500]}"
            if error.code not in (429, 503):
                return problem
        except OSError as error:
            problem = str(error)
        if time.monotonic() > end_s:
            return f"no answer from {URL} in time: {problem}"
        time.sleep(2)
    plan, tokens = headers["x-baton-plan"], answer["usage"]["completion_tokens"]
    print(f"{tokens} tokens; {plan}")
    if not tokens or not plan:
        return f"an answer without tokens or a plan: {answer}"
    return None


if __name__ == "__main__":
    sys.exit(main())
