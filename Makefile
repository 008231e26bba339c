# The environment is made by `bash tools/setup_env.sh`; SCALENET_ENV names another one.
env ?= $(or $(SCALENET_ENV),.venv)
text = scalenet_mm tools tests configs docs README.md CONTRIBUTING.md CHANGELOG.md

.PHONY: check format test slow mutations matrix

check:  ## lint, format, spelling, types of the core
	"$(env)/bin/ruff" check .
	"$(env)/bin/ruff" format --check .
	"$(env)/bin/codespell" $(wildcard $(text))
	"$(env)/bin/mypy"

format:
	"$(env)/bin/ruff" check --fix .
	"$(env)/bin/ruff" format .

test:
	bash tools/run_tests.sh

slow:
	bash tools/run_tests.sh --slow

mutations:
	"$(env)/bin/python" tests/mutations.py --jobs 2

matrix:
	"$(env)/bin/python" tests/matrix.py
