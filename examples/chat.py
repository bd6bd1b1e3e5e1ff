"""Asks a router one question over HTTP and prints the answer as it streams.

pip install openai && python examples/chat.py [URL] [QUESTION]
"""

import sys

import openai

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
question = sys.argv[2] if len(sys.argv) > 2 else "introduce yourself"
with openai.OpenAI(base_url=url, api_key="any", timeout=60) as client:
    try:
        stream = client.chat.completions.create(
            model="",  # the only one; `client.models.list()` has the names
            messages=[{"role": "user", "content": question}],
            temperature=0.6,
            max_completion_tokens=256,
            stream=True,
        )
        for chunk in stream:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    except openai.OpenAIError as error:
        sys.exit(f"{url}: {error}")
print()
