"""Lines as documents."""

import hashlib
import random

from atom.errors import UserError
from atom.plugin import Contents, Document


def source(config):
    return Lines(config.path)


class Lines:
    def __init__(self, path):
        self.files = sorted(path.glob("*.txt"))

    def documents(self):
        documents = []
        for file in self.files:
            for number, line in enumerate(file.read_bytes().splitlines(), 1):
                try:
                    text = line.decode()
                except UnicodeDecodeError:
                    place = f"{file.name}:{number}"
                    raise UserError(f"{place} is no UTF-8", key="dataset.path") from None
                documents.append(Document(text, id=f"{file.name}:{number}"))
        return documents

    def check(self):
        self.documents()
        return hashlib.sha256(b"".join(f.read_bytes() for f in self.files)).hexdigest()

    def contents(self):
        return Contents(files=len(self.files), documents=len(self.documents()))

    def lane(self, lane, lanes, *, seed, epoch, start=0):
        documents = self.documents()
        random.Random(f"{seed} {epoch}").shuffle(documents)
        yield from documents[lane::lanes][start:]
