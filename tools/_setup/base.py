"""What every step of the set-up uses: the environment, its pins, and running a command."""

import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UPSTREAM = (
    *('mmengine', 'mmengine-lite', 'mmcv', 'mmcv-full', 'mmcv-lite'),
    *('mmdet', 'mmsegmentation', 'mmpretrain'),
)
HEARTBEAT = 30  # seconds between two signs of life
TRANSITIVE = '# --- what those bring along'  # heads the second part of requirements.txt

# Settings of a user's pip that say where packages come from; the others change what is installed.
PIP_KEEPS = re.compile(
    'PIP_(INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|TRUSTED_HOST|CERT|CLIENT_CERT|PROXY|TIMEOUT'
    '|DEFAULT_TIMEOUT|RETRIES|CACHE_DIR|NO_CACHE_DIR|CONFIG_FILE|KEYRING_PROVIDER)'
)
PYTHON_DROPS = ('PYTHONPATH', 'PYTHONHOME', 'PYTHONUSERBASE', 'PYTHONSTARTUP', 'PYTHONPLATLIBDIR')

# What a failed command printed -> what to do about it.
REMEDIES = (
    (r'No space left on device', 'Free some disk space and run this again'),
    (
        r'Name or service not known|name resolution|Network is unreachable|timed out|SSLError|'
        r'ConnectionError|Connection refused|ProxyError',
        'The package index could not be reached: mend the network (or set PIP_INDEX_URL to a '
        'mirror) and run this again',
    ),
    (
        r'No matching distribution|Could not find a version',
        'The package index lacks a version that requirements.txt names: set PIP_INDEX_URL to a '
        'complete index (or correct --torch-index) and run this again',
    ),
    (
        r'Killed signal|cannot allocate memory|std::bad_alloc',
        'The memory did not suffice: run this again with MAX_JOBS=1',
    ),
    (
        r'ResolutionImpossible|conflicting dependencies',
        'What is in this environment excludes what is missing: use an environment of its own (leave --env out)',
    ),
    (r'Permission denied|Read-only file system', 'Make the environment writable for you and run this again'),
)


class SetupError(Exception):
    """A step cannot be done; the message is one plain sentence that says what to do."""


@dataclass
class Setup:
    """What is set up, where."""

    env: Path
    wheels: Path  # cache of compiled mmcv wheels
    torch_index: str | None
    pins: dict[str, str]  # normalised name -> version, all of requirements.txt
    direct: dict[str, str]  # those that the project itself uses
    lock: int = -1  # file descriptor, held by us and by the commands we run

    @property
    def python(self) -> Path:
        return self.env / 'bin' / 'python'

    @property
    def state(self) -> Path:
        return self.env / '.scalenet_mm'

    @property
    def log(self) -> Path:
        return self.state / 'setup.log'

    @property
    def managed(self) -> bool:
        """We made the environment, so its versions are ours to set."""
        return (self.state / 'managed').exists()

    def ask(self, code: str) -> object:
        """Runs Python code that prints JSON in the environment, and reads its last line.

        Raises:
            subprocess.CalledProcessError: the code failed.
        """
        command = [self.python, '-I', '-c', code]
        done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
        done.check_returncode()
        return json.loads(done.stdout.splitlines()[-1])

    def site(self) -> Path:
        """The site-packages folder of the environment."""
        return Path(self.ask('import json, sysconfig; print(json.dumps(sysconfig.get_path("platlib")))'))

    def installed(self) -> dict[str, str]:
        """Normalised name and version of every distribution, read from folder names."""
        found = {}
        for path in self.site().glob('*.dist-info'):
            name, _, version = path.name.removesuffix('.dist-info').partition('-')
            found[normalise(name)] = version
        return found

    def upstream(self) -> list[str]:
        """The upstream distributions of OpenMMLab that are installed."""
        there = self.installed()
        return [name for name in UPSTREAM if name in there]


def normalise(name: str) -> str:
    return re.sub(r'[-_.]+', '-', name).lower()


def read_pins(text: str, python: tuple[int, int]) -> dict[str, str]:
    """The `name==version` lines of a requirements file that apply to a version of Python."""
    pins = {}
    for line in text.splitlines():
        requirement, _, marker = line.partition('#')[0].partition(';')
        if not requirement.strip():
            continue
        if marker.strip():
            rule = re.fullmatch(r"python_version (>=|<) '3\.(\d+)'", marker.strip())
            assert rule, f'requirements.txt: {line!r} has a marker that the set-up cannot read'
            at_least = python >= (3, int(rule[2]))
            if at_least != (rule[1] == '>='):
                continue
        name, version = requirement.strip().split('==')
        pins[normalise(name)] = version
    return pins


def clean_environment() -> dict[str, str]:
    """The user's variables without those that would lead pip or Python elsewhere."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in PYTHON_DROPS and (not name.startswith('PIP_') or PIP_KEEPS.fullmatch(name))
    }
    return kept | {
        'PYTHONNOUSERSITE': '1',
        'PIP_USER': '0',
        'PIP_NO_INPUT': '1',
        'PIP_DISABLE_PIP_VERSION_CHECK': '1',
        'PIP_NO_WARN_SCRIPT_LOCATION': '1',
    }


def run(s: Setup, *command: object, env: dict[str, str] | None = None, otherwise: str) -> None:
    """Runs a command with its output in the log and a sign of life now and then.

    Raises:
        SetupError: it failed; the sentence fits what it printed, else it is `otherwise`.
    """
    words = [str(word) for word in command]
    with s.log.open('ab') as log:
        log.write(f'\n$ {" ".join(words)}\n'.encode())
        log.flush()
        begin = log.tell()
        child = subprocess.Popen(
            words,
            env=clean_environment() | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # The child holds the lock too: should we be killed, the next run waits for its end.
            pass_fds=[s.lock],
        )
        code = wait(child, s.log, begin)
    if code:
        output = read_from(s.log, begin)
        print('\n'.join('      | ' + line for line in output.splitlines()[-20:]), flush=True)
        known = [remedy for pattern, remedy in REMEDIES if re.search(pattern, output, re.I)]
        raise SetupError(known[0] if known else otherwise)


def wait(child: subprocess.Popen, log: Path, begin: int) -> int:
    """Waits for the command's end, telling now and then how far it is; returns its exit status."""
    start = time.monotonic()
    try:
        while True:
            try:
                return child.wait(HEARTBEAT)
            except subprocess.TimeoutExpired:
                counts = re.findall(r'^\s*\[(\d+)/(\d+)\] ', read_from(log, begin), re.M)
                files = f', {counts[-1][0]} of {counts[-1][1]} files' if counts else ''
                print(f'      ... {elapsed(start)}{files}', flush=True)
    except BaseException:  # interrupted: leave no child behind
        child.terminate()
        child.wait()
        raise


def read_from(log: Path, begin: int) -> str:
    return log.read_bytes()[begin:].decode(errors='replace')


def elapsed(start: float) -> str:
    seconds = round(time.monotonic() - start)
    return f'{seconds // 60} min {seconds % 60} s' if seconds >= 60 else f'{seconds} s'


def pip(
    s: Setup,
    command: str,
    *arguments: object,
    env: dict[str, str] | None = None,
    otherwise: str = 'Packages could not be installed: read the log and run this again',
) -> None:
    """Runs the environment's pip; `install` also looks into the torch index, if one was named."""
    # Builds with a local version such as 2.11.0+cpu, as such an index has them, win over PyPI's.
    index = ('--extra-index-url', s.torch_index) if s.torch_index and command == 'install' else ()
    run(s, s.python, '-I', '-m', 'pip', command, *index, *arguments, env=env, otherwise=otherwise)
