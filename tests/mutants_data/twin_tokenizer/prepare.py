import json
import os
from collections import Counter

from atom.plugin import PreparedTokenizer


def prepare(config, context):
    counts = Counter(c for d in context.documents() for c in d.text if ord(c) > 127)
    often = sorted(sorted(counts), key=counts.get)[-config.characters :]
    context.cache.mkdir(parents=True, exist_ok=True)
    file = context.cache / "characters.json"
    whole = file.with_suffix(f".{os.getpid()}")
    whole.write_text(json.dumps(often))
    whole.replace(file)
    return PreparedTokenizer(vocab_size=258 + config.characters, files={"characters.json": file})
