"""Drop KV in a stock SGLang server, without presift's services: python stock_sglang.py [URL]

The server: `pip install .` in a clone, beside SGLang, then `PRESIFT_SGLANG_PLUGIN=1 python -m sglang.launch_server ...`
(on a plain CPU `python -m presift.target.stock_server ...`). The client only adds one of SGLang's custom parameters.
"""

import json
import sys
import urllib.request


def generate(url: str, token_ids: list[int], plan: dict | None = None) -> dict:
    """SGLang's answer to a prompt. `plan` says which KV to keep."""
    sampling = {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True}
    if plan:
        sampling["custom_params"] = {"presift": json.dumps(plan)}
    body = json.dumps({"input_ids": token_ids, "sampling_params": sampling}).encode()
    request = urllib.request.Request(f"{url}/generate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def main(url: str = "http://127.0.0.1:30000") -> int:
    prompt = [(7 * i + 1) % 500 for i in range(300)]
    # "lookahead" is what a small model would generate next; without it, the window alone selects.
    plan = {"capacity": 64, "window": 16, "lookahead": [3, 1, 4], "protected": [[0, 8]]}
    for name, chosen in (("all KV", None), ("64 KV pairs", plan), ("64 KV pairs again", plan)):
        answer = generate(url, prompt, chosen)
        held = answer["meta_info"]["prompt_tokens"]  # with a plan, what the prompt holds while decoding
        print(f"{name}: {answer['output_ids']}, {held} KV tokens held, {answer['meta_info']['cached_tokens']} cached")
        for report in answer["meta_info"].get("presift", [])[-1:]:
            coverage, reused = report["coverage"], report["reused_entry"]
            print(f"  of {report['prompt_tokens']} prompt tokens; coverage {coverage:.2f}, reused entry: {reused}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
