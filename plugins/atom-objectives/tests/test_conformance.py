"""Fine-tuning and preferences hold the contract of an objective."""

import itertools
from pathlib import Path

from atom.testing import conformance

NUMBERS = "one two three four five six seven eight nine ten".split()  # noqa: SIM905
RECORDS = [
    {
        "messages": [
            {"role": "user", "content": f"after {one}?"},
            {"role": "assistant", "content": other},
            *(
                [{"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes"}]
                * (at % 2)
            ),
        ]
    }
    for at, (one, other) in enumerate(itertools.pairwise(NUMBERS))
]

ANSWERS = [
    [f"{each['content']}|" for each in record["messages"] if each["role"] == "assistant"]
    for record in RECORDS
]

TestSft = conformance(
    "objective:sft", template=str(Path(__file__).with_name("short.jinja"))
).having(records=RECORDS, answers=ANSWERS, bad_record={"messages": RECORDS[0]["messages"][:1]})

PAIRS = [
    {"prompt": f"after {one}? ", "chosen": other, "rejected": wrong}
    for (one, other), wrong in zip(itertools.pairwise(NUMBERS), [*"abcdefghi"], strict=True)
]

TestDpo = conformance(
    "objective:dpo", template=str(Path(__file__).with_name("short.jinja")), beta=0.5
).having(records=PAIRS, bad_record=PAIRS[0] | {"rejected": PAIRS[0]["chosen"]})
