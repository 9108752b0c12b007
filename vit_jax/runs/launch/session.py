"""Build shell scripts for the workers of a TPU slice: install a commit, start a run, report its status, stop it.

The run has its own session, which survives a broken connection. Its files are in one folder of the home directory: the
code, `log`, `pid`, and `exit`, which contains the exit code once the run has ended by itself. gcloud repeats a script
when the connection breaks, so every script is idempotent.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Sequence

FOLDER = "vit_jax_launch"
BUNDLE, VARIABLES = "code.bundle", "env"
PYTHON = "3.11"  # the version that requirements.txt pins for
CONNECTED = b"\x01vit_jax_launch\n"  # printed first on every connection that reads the log
STATUS = re.compile(r"^vit_jax_launch (\S+) (\S+) (\S+)$", re.MULTILINE)
# gcloud may repeat a script while its first execution is still running.
LOCKED = "exec 9> lock && flock 9"
# After a reboot another process may have the same pid.
ALIVE = (
    'alive() { [ -s pid ] && [ "$(cat boot)" = "$(cat /proc/sys/kernel/random/boot_id)" ] && '
    'kill -0 -- "-$(cat pid)" 2>/dev/null; }'
)


def run_id(commit: str, command: Sequence[str]) -> str:
    """Return an id that depends only on the commit and the command."""
    return hashlib.sha256(json.dumps([commit, *command]).encode()).hexdigest()[:12]


def folder_script() -> str:
    """Create the folder, readable only by its owner."""
    return f"mkdir -p -m 700 ~/{FOLDER} && rm -f ~/{FOLDER}/{VARIABLES}"


def install_script(commit: str, extras: Sequence[str]) -> str:
    """Unpack the bundle and install it with pinned dependencies; uv provides the Python version."""
    return f"""set -eu
cd ~/{FOLDER}
{LOCKED}
[ "$(cat installed 2>/dev/null)" != {commit} ] || exit 0
rm -rf code installed
git clone --quiet {BUNDLE} code
git -C code checkout --quiet --detach {commit}
export PATH="$HOME/.local/bin:$PATH"
command -v uv >/dev/null || PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
uv venv --quiet --python {PYTHON} code/.venv
cd code
uv pip install --quiet --python .venv/bin/python -c requirements.txt -e '.[{",".join(extras)}]'
echo {commit} > ../installed"""


def start_script(run: str, command: Sequence[str]) -> str:
    """Start the command in the code folder, in a new session, unless it is already running.

    A run that receives SIGTERM leaves no exit code: the machine is shutting down, and the run exits with 0 after saving.
    """
    script = f"""trap 'terminated=yes' TERM
[ ! -f {VARIABLES} ] || {{ . ./{VARIABLES}; rm -f {VARIABLES}; }}
export PATH="$PWD/code/.venv/bin:$PATH" PYTHONUNBUFFERED=1
cd code
{shlex.join(command)}
code=$?
[ -n "${{terminated-}}" ] || echo $code > ../exit"""
    end = "END OF RUN"
    while end in script.splitlines():  # a command may contain any lines
        end += "."
    return f"""set -eu
cd ~/{FOLDER}
{LOCKED}
{ALIVE}
if alive; then
  [ "$(cat run)" != {run} ] || exit 0
  kill -KILL -- "-$(cat pid)"
fi
[ "$(cat run 2>/dev/null)" = {run} ] || rm -f log
rm -f exit stopped
cat > run.sh <<'{end}'
{script}
{end}
cat /proc/sys/kernel/random/boot_id > boot
echo {run} > run
setsid bash run.sh >> log 2>&1 < /dev/null 9>&- &
echo $! > pid"""


def status_script() -> str:
    """Print the worker's status on one line, for `parse_status`."""
    return f"""say() {{ echo "vit_jax_launch $(hostname) $1 $2"; }}
cd ~/{FOLDER} 2>/dev/null && [ -s run ] || {{ say none none; exit 0; }}
{ALIVE}
if [ -s exit ]; then state=$(cat exit)
elif alive; then state=running
elif [ -e stopped ]; then state=stopped
else state=lost; fi
say "$(cat run)" "$state\""""


def parse_status(output: str) -> list[tuple[str, str, str]]:
    """Return (host, run id, state) of every worker; a state is none, running, lost, stopped or an exit code."""
    return STATUS.findall(output)


def log_script(position: int) -> str:
    """Print CONNECTED, then the log from a byte position until the run ends."""
    return f"""cd ~/{FOLDER}
printf '\\001vit_jax_launch\\n'
exec tail -c +{position + 1} -F --pid="$(cat pid)" log"""


def last_lines_script(count: int) -> str:
    """Print the end of the log, each line prefixed with the worker's name."""
    return f'tail -n {count} ~/{FOLDER}/log | sed "s/^/$(hostname): /"'


def stop_script() -> str:
    """Send SIGTERM to the run, which then saves and exits."""
    return f"""cd ~/{FOLDER}
{ALIVE}
! alive || {{ touch stopped; kill -TERM -- "-$(cat pid)"; }}"""
