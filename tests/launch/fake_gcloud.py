"""A fake gcloud: records its arguments, stores slices in a folder, and runs remote commands in a folder per worker.

The folder is $FAKE_GCLOUD: calls.jsonl, nodes/NAME.json, requests/NAME.json, workers/NAME-N/ (the home of worker N). `workers`
in it says how many a slice has. A remote command runs in bash as ssh would run it: with a fresh environment, in the home.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(os.environ["FAKE_GCLOUD"])


def main(argv):
    with open(ROOT / "calls.jsonl", "a") as file:
        file.write(json.dumps(argv) + "\n")
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for flag in (
        "zone",
        "project",
        "accelerator-type",
        "version",
        "runtime-version",
        "node-id",
        "worker",
        "command",
        "format",
    ):
        parser.add_argument(f"--{flag}")
    parser.add_argument("--ssh-flag", action="append")
    for flag in ("quiet", "spot", "recurse", "force"):
        parser.add_argument(f"--{flag}", action="store_true")
    parser.add_argument("words", nargs="*")
    flags = parser.parse_intermixed_args(argv)
    assert (flags.words[:2], flags.quiet, flags.zone) == (["compute", "tpus"], True, "us-west4-a"), argv
    group, verb, *rest = flags.words[2:]
    function = {"tpu-vm": VM, "queued-resources": QUEUED}[group][verb]
    return function(flags, *rest) or 0


def fail(text, code=1):
    print(f"ERROR: (gcloud) {text}", file=sys.stderr)
    sys.exit(code)


def read(kind, name):
    path = ROOT / kind / f"{name}.json"
    if not path.exists():
        fail(f"NOT_FOUND: Resource 'projects/p/locations/z/{kind}/{name}' was not found")
    return json.loads(path.read_text())


def write(kind, name, value):
    path = ROOT / kind / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(value))
    partial.rename(path)


def make_node(name, kind):
    count = int((ROOT / "workers").read_text())
    for index in range(count):
        (ROOT / "workers.d" / f"{name}-{index}").mkdir(parents=True)
    write("nodes", name, {"state": "READY", "acceleratorType": kind, "networkEndpoints": [{}] * count})


def refuse(verb):
    """Fail once with the text that a test has written."""
    words = ROOT / f"refuse.{verb}"
    if words.exists():
        text = words.read_text()
        words.unlink()
        fail(text)


def create(flags, name):
    refuse("create")
    if (ROOT / "nodes" / f"{name}.json").exists():
        fail(f"ALREADY_EXISTS: {name}")
    assert flags.version
    make_node(name, flags.accelerator_type)


def delete(flags, name):
    read("nodes", name)
    end_all(name)
    for home in (ROOT / "workers.d").glob(f"{name}-*"):
        shutil.rmtree(home)
    (ROOT / "nodes" / f"{name}.json").unlink()


def describe(flags, name):
    print(json.dumps(read("nodes", name)))


def homes(name, worker):
    node = read("nodes", name)
    if node["state"] != "READY":
        fail(f"TPU is in state {node['state']}")
    count = len(node["networkEndpoints"])
    return [
        ROOT / "workers.d" / f"{name}-{index}" for index in (range(count) if worker == "all" else [int(worker or 0)])
    ]


def ssh(flags, name):
    processes = []

    def end(*_):
        for process, _ in processes:
            os.killpg(process.pid, signal.SIGKILL)
        sys.exit(143)

    signal.signal(signal.SIGTERM, end)
    for home in homes(name, flags.worker):
        # Like ssh: gcloud splits the command at spaces and ssh joins it again into one string.
        text = " ".join(flags.command.split(" "))
        environment = {"HOME": str(home), "PATH": f"{ROOT / 'remote_bin'}:/usr/bin:/bin", "LANG": "C.UTF-8"}
        process = subprocess.Popen(["bash", "-c", text], cwd=home, env=environment, start_new_session=True)
        processes.append((process, home))
        (home / f"ssh.{process.pid}").touch()
    codes = []
    for process, home in processes:
        codes.append(process.wait())
        (home / f"ssh.{process.pid}").unlink(missing_ok=True)
    return next((code % 256 for code in codes if code), 0)


def scp(flags, *paths):
    refuse("scp")
    *sources, destination = paths
    if ":" in destination:
        name, _, place = destination.partition(":")
        for home in homes(name, flags.worker):
            for source in sources:
                shutil.copy(source, home / place)
        return
    name, _, place = sources[0].partition(":")
    (home,) = homes(name, flags.worker)
    subprocess.run(["cp", "-r", str(home / place), destination], check=True)


def end_all(name):
    """Kill all processes of the workers, as if their machines were lost."""
    for home in (ROOT / "workers.d").glob(f"{name}-*"):
        groups = [int(path.name.split(".")[1]) for path in home.glob("ssh.*")]
        pid = home / "vit_jax_launch" / "pid"
        groups += [int(pid.read_text())] if pid.exists() else []
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


def preempt(name):
    write("nodes", name, read("nodes", name) | {"state": "PREEMPTED"})
    if (ROOT / "requests" / f"{name}.json").exists():
        write("requests", name, {"state": {"state": "SUSPENDED"}})
    end_all(name)


def queue_create(flags, name):
    assert (flags.runtime_version, flags.node_id) == ("v2-alpha-tpuv5-lite", name)
    write("requests", name, {"state": {"state": "WAITING_FOR_RESOURCES"}, "asked": 0, "type": flags.accelerator_type})


def queue_describe(flags, name):
    request = read("requests", name)
    if request["state"]["state"] in ("WAITING_FOR_RESOURCES", "PROVISIONING"):
        request["asked"] += 1
        if request["asked"] == 2:
            request["state"]["state"] = "PROVISIONING"
        elif request["asked"] == 3:
            make_node(name, request["type"])
            request["state"]["state"] = "ACTIVE"
        write("requests", name, request)
    print(json.dumps(request) if flags.format == "json" else request["state"]["state"])


def queue_delete(flags, name):
    read("requests", name)
    if (ROOT / "nodes" / f"{name}.json").exists():
        if not flags.force:
            fail("FAILED_PRECONDITION: the queued resource has nodes")
        delete(flags, name)
    (ROOT / "requests" / f"{name}.json").unlink()


VM = {"create": create, "delete": delete, "describe": describe, "ssh": ssh, "scp": scp}
QUEUED = {"create": queue_create, "delete": queue_delete, "describe": queue_describe}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
