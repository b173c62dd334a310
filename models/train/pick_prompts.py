"""Write the held-out prompts that the repository's tests ask."""

import argparse
import json
from pathlib import Path

from models.train.evaluate import held_out_samples

TESTED = {
    "arithmetic": ("add", "subtract", "multiply"),
    "copy": ("copy",),
    "tool_call": ("tool_call",),
}


def main() -> None:
    """Write one JSON file of messages, tools and expected replies by task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--count", type=int, default=21, help="prompts of each kind")
    args = parser.parse_args()
    content = {}
    for name, tasks in TESTED.items():
        samples = [s for t in tasks for s in held_out_samples(t, args.count // len(tasks), seed=5)]
        content[name] = [
            {"messages": s.messages, "tools": s.tools, "reply": s.reply} for s in samples
        ]
    args.path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
