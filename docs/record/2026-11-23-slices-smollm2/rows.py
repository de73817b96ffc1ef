"""Rows {"prompt","completion"} as {"messages"}: rows.py IN.jsonl OUT.jsonl."""
import json, sys

with open(sys.argv[2], "w") as out:
    for line in open(sys.argv[1]):
        row = json.loads(line)
        prompt, completion = row.pop("prompt").strip(), row.pop("completion").strip()
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        out.write(json.dumps({"messages": messages}) + "\n")
