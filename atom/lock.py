import json


def lock(host, *, seed, device):
    return {"seed": seed, "device": device}


def write(path, lock):
    path.write_text(json.dumps(lock))
