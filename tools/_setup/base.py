"""What every step of the set-up uses: the environment, its pins, and running a command."""

import importlib.util
import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
HEARTBEAT = 30  # seconds between two signs of life
TRANSITIVE = '# --- what those bring along'  # heads the second part of requirements.txt

# Settings of a user's pip that say where packages come from; the others change what is installed.
PIP_KEEPS = re.compile(
    'PIP_(INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|TRUSTED_HOST|CERT|CLIENT_CERT|PROXY|TIMEOUT'
    '|DEFAULT_TIMEOUT|RETRIES|CACHE_DIR|NO_CACHE_DIR|CONFIG_FILE|KEYRING_PROVIDER)'
)
PYTHON_DROPS = ('PYTHONPATH', 'PYTHONHOME', 'PYTHONUSERBASE', 'PYTHONSTARTUP', 'PYTHONPLATLIBDIR')


def load_remedies() -> ModuleType:
    """scalenet_mm/commands/remedies.py, by its path: importing the package would import torch."""
    file = ROOT / 'scalenet_mm' / 'commands' / 'remedies.py'
    if not file.is_file():
        raise SystemExit(
            'The set-up needs a checkout, whose requirements.txt it reads: clone the repository, and there '
            'run bash tools/setup_env.sh.'
        )
    spec = importlib.util.spec_from_file_location('remedies', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


remedies = load_remedies()


class SetupError(Exception):
    """A step cannot be done; the message is one plain sentence that says what to do, `output` what was printed."""

    output = ''


@dataclass
class Setup:
    """What is set up, where."""

    env: Path
    wheels: Path  # cache of compiled mmcv wheels
    torch_index: str | None
    pins: dict[str, str]  # normalised name -> version, all of requirements.txt
    direct: dict[str, str]  # those that the project itself uses
    compile_mmcv: bool = False  # with its own operators, instead of torchvision's
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

    def stamp(self) -> dict:
        """What the last complete run wrote; empty before it."""
        try:
            return json.loads((self.state / 'stamp.json').read_text())
        except (OSError, ValueError):
            return {}

    def index_of_torch(self) -> str | None:
        """The index that torch came from, if one was named: later calls keep to it."""
        try:
            return (self.state / 'torch-index').read_text() or None
        except OSError:
            return self.stamp().get('torch_index')

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
            if re.match('[A-Za-z0-9]', name) and version:  # not what pip left of one that it was removing: ~umpy
                found[normalise(name)] = version
        return found

    def upstream(self) -> list[str]:
        """The upstream distributions of OpenMMLab that are installed."""
        there = self.installed()
        return [name for name in remedies.UPSTREAM if name in there]


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
        error = SetupError(remedies.remedy_for(output, otherwise, s.python))
        error.output = output
        raise error


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
