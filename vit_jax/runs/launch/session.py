"""What the workers of a TPU slice do, as scripts for their shells: set up a commit, start a run, tell of it, stop it.

The run is a session of its own, which a lost connection does not end. Everything lies in one folder of the home: the code,
`log`, `pid`, and `exit` with the exit code once the run has ended by itself. gcloud repeats a script whose connection was
lost, so each of them can be run twice.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Sequence

FOLDER = "vit_jax_launch"
BUNDLE, VARIABLES = "code.bundle", "env"
PYTHON = "3.11"  # of the versions in requirements.txt
MARK = b"\x01vit_jax_launch\n"  # begins what each connection tells of the log
SAID = re.compile(r"^vit_jax_launch (\S+) (\S+) (\S+)$", re.MULTILINE)
# gcloud may repeat a script whose connection was lost while the first one still works.
ALONE = "exec 9> lock && flock 9"
# After a restart of the machine another process may have the number.
ALIVE = (
    'alive() { [ -s pid ] && [ "$(cat boot)" = "$(cat /proc/sys/kernel/random/boot_id)" ] && '
    'kill -0 -- "-$(cat pid)" 2>/dev/null; }'
)


def identity(commit: str, command: Sequence[str]) -> str:
    """Names a run: the same commit and command have the same name."""
    return hashlib.sha256(json.dumps([commit, *command]).encode()).hexdigest()[:12]


def folder() -> str:
    """Makes the folder, which only its owner reads."""
    return f"mkdir -p -m 700 ~/{FOLDER} && rm -f ~/{FOLDER}/{VARIABLES}"


def set_up(commit: str, extras: Sequence[str]) -> str:
    """Unpacks the bundle and installs it with its pinned libraries. uv brings the Python that the image may lack."""
    return f"""set -eu
cd ~/{FOLDER}
{ALONE}
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


def start(run: str, command: Sequence[str]) -> str:
    """Starts the command in the folder of the code, in a session of its own, where it does not run already.

    A run that was told to end by SIGTERM leaves no exit code: the machine goes down, and the run says 0 for having saved.
    """
    return f"""set -eu
cd ~/{FOLDER}
{ALONE}
{ALIVE}
if alive; then
  [ "$(cat run)" != {run} ] || exit 0
  kill -KILL -- "-$(cat pid)"
fi
[ "$(cat run 2>/dev/null)" = {run} ] || rm -f log
rm -f exit stopped
cat > run.sh <<'END OF RUN'
trap 'terminated=yes' TERM
[ ! -f {VARIABLES} ] || {{ . ./{VARIABLES}; rm -f {VARIABLES}; }}
export PATH="$PWD/code/.venv/bin:$PATH" PYTHONUNBUFFERED=1
cd code
{shlex.join(command)}
code=$?
[ -n "${{terminated-}}" ] || echo $code > ../exit
END OF RUN
cat /proc/sys/kernel/random/boot_id > boot
echo {run} > run
setsid bash run.sh >> log 2>&1 < /dev/null 9>&- &
echo $! > pid"""


def tell() -> str:
    """Prints one line for `told`."""
    return f"""say() {{ echo "vit_jax_launch $(hostname) $1 $2"; }}
cd ~/{FOLDER} 2>/dev/null && [ -s run ] || {{ say none none; exit 0; }}
{ALIVE}
if [ -s exit ]; then state=$(cat exit)
elif alive; then state=running
elif [ -e stopped ]; then state=stopped
else state=lost; fi
say "$(cat run)" "$state\""""


def told(said: str) -> list[tuple[str, str, str]]:
    """(host, run, state) of every worker; a state is none, running, lost, stopped or an exit code."""
    return SAID.findall(said)


def log(position: int) -> str:
    """Prints the log from a position in bytes on until the run ends, after MARK."""
    return f"""cd ~/{FOLDER}
printf '\\001vit_jax_launch\\n'
exec tail -c +{position + 1} -F --pid="$(cat pid)" log"""


def last_lines(count: int) -> str:
    """Prints the end of the log, each line after the name of its worker."""
    return f'tail -n {count} ~/{FOLDER}/log | sed "s/^/$(hostname): /"'


def stop() -> str:
    """Ends the run by SIGTERM, at which it saves."""
    return f"""cd ~/{FOLDER}
{ALIVE}
! alive || {{ touch stopped; kill -TERM -- "-$(cat pid)"; }}"""
