"""``python -m benchmarks [parts] [--quick]``: run, write JSON, render the page."""

from __future__ import annotations

import argparse
import importlib
import json

from .measure import machine
from .render import OUT, render

PARTS = ("precision", "flows", "orders", "scaling", "overhead", "choices")


def main() -> None:
    """Run the parts asked for, all by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which parts (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer samples and rounds, to try it out")
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    _write("machine", machine())
    for name in args.parts or PARTS:
        print(f"{name} ...", flush=True)
        _write(name, importlib.import_module(f".{name}", __package__).run(args.quick))
        print(f"  {OUT / name}.json")
    print(f"wrote {render()}")


def _write(name: str, data: object) -> None:
    (OUT / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
