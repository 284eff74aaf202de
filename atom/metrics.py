import json, os, time
from dataclasses import dataclass, asdict
@dataclass(frozen=True)
class StepMetrics:
    step: int; loss: float; grad_norm: float; lr: float; tokens_seen: int; tokens_per_second: float; step_seconds: float; memory_gib: float; mfu: float | None = None
class MetricsWriter:
    def __init__(self, path): self.path=path; self.first=True
    def append(self, m):
        if self.first and self.path.exists():
            keep=[l for l in self.path.read_text().splitlines() if json.loads(l)["step"]<m.step]
            self.path.write_text("".join(l+"\n" for l in keep))
        self.first=False
        d=asdict(m)
        if d["mfu"] is None: del d["mfu"]
        with open(self.path,"a") as f: f.write(json.dumps(d)+"\n")
def read(path): return [StepMetrics(**json.loads(l)) for l in path.read_text().splitlines()] if path.exists() else []
def follow(path, stop, from_now=False):
    seen=len(read(path)) if from_now else 0
    while True:
        done=stop()
        rows=read(path)
        for r in rows[seen:]: yield r
        seen=len(rows)
        if done: return
        time.sleep(0.2)
