"""Build gcloud commands for one TPU slice, as argument lists.

Flags follow `gcloud compute tpus tpu-vm|queued-resources ... --help` of Google Cloud SDK 528; software versions follow
cloud.google.com/tpu/docs/runtimes.
"""

import dataclasses
import re
from collections.abc import Sequence

from vit_jax.types import UserError

# Default software version of each generation, by its name in --type.
SOFTWARE_VERSIONS = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}


@dataclasses.dataclass(frozen=True)
class TpuSlice:
    """A TPU slice; `queued` requests it through a queued resource of the same name."""

    name: str
    zone: str
    type: str
    version: str = ""
    project: str | None = None
    spot: bool = False
    queued: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", self.name):
            raise UserError(
                f"--name={self.name}: expected at most 63 characters of a-z, 0-9 and -, starting with a letter and not "
                "ending with -."
            )
        if not re.fullmatch(r"[a-z]+(-[a-z]+)*-[a-z]+\d+-[a-z]", self.zone):
            raise UserError(f"--zone={self.zone}: expected a zone such as us-west4-a.")
        generation, _, size = self.type.rpartition("-")
        if generation not in SOFTWARE_VERSIONS or not re.fullmatch(r"[1-9]\d*", size):
            raise UserError(
                f"--type={self.type}: expected {', '.join(SOFTWARE_VERSIONS)} followed by a size, such as v5litepod-64 "
                "for a v5e."
            )
        if not self.version:
            object.__setattr__(self, "version", SOFTWARE_VERSIONS[generation])

    def create(self) -> list[str]:
        """Create the slice; unless queued, this blocks until it exists."""
        group, version = ("queued-resources", "--runtime-version") if self.queued else ("tpu-vm", "--version")
        flags = [f"--accelerator-type={self.type}", f"{version}={self.version}"]
        flags += ["--spot"] if self.spot else []
        flags += [f"--node-id={self.name}"] if self.queued else []
        return self._gcloud(group, "create", *flags)

    def describe(self, queue: bool = False) -> list[str]:
        """Print the state of the slice, or of its queued resource, as JSON."""
        return self._gcloud("queued-resources" if queue else "tpu-vm", "describe", "--format=json")

    def delete(self) -> list[str]:
        """Delete the slice together with its queued resource."""
        if self.queued:
            return self._gcloud("queued-resources", "delete", "--force")
        return self._gcloud("tpu-vm", "delete")

    def ssh(self, script: str, worker: str = "all") -> list[str]:
        """Run a script in the login shell of workers; gcloud repeats it if the connection breaks."""
        return self._gcloud(
            "tpu-vm", "ssh", f"--worker={worker}", "--ssh-flag=-oServerAliveInterval=30", f"--command={script}"
        )

    def upload(self, files: Sequence[str], folder: str) -> list[str]:
        """Copy files into a folder of every worker."""
        return [*self._scp(), "--worker=all", *files, f"{self.name}:{folder}/"]

    def download(self, remote: str, local: str) -> list[str]:
        """Copy a file or folder from worker 0."""
        return [*self._scp(), "--worker=0", "--recurse", f"{self.name}:{remote}", local]

    def _gcloud(self, group: str, verb: str, *flags: str) -> list[str]:
        return ["gcloud", "compute", "tpus", group, verb, self.name, *self._location(), *flags]

    def _scp(self) -> list[str]:
        return ["gcloud", "compute", "tpus", "tpu-vm", "scp", *self._location()]

    def _location(self) -> list[str]:
        return [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else []), "--quiet"]
