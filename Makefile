# Tapewatch. `make` lists the targets.
.DEFAULT_GOAL := help
.SUFFIXES:

# The newest of the supported interpreters that is here: CPython 3.11, 3.12 or 3.13.
PYTHON ?= $(shell for v in 3.13 3.12 3.11; do p=$$(command -v python$$v) && $$p -c '' 2>/dev/null && echo $$p && break; done)
ifeq ($(PYTHON),)
PYTHON := $(shell command -v python3)
endif
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS := requirements/constraints.txt
GOBIN := $(abspath $(VENV))/go/bin
SERVERS := .cache/servers

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Tapewatch needs CPython 3.11, 3.12 or 3.13 on the PATH"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Tapewatch needs CPython 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	sh deploy/install.sh $(VENV) -e '.[yahoo]'
	@touch $@

$(VENV)/.dev: pyproject.toml clients/python/pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	sh deploy/install.sh $(VENV) -e '.[dev]' -e clients/python
	@touch $@ $(VENV)/.run

.PHONY: setup
setup: $(VENV)/.run ## Make the virtual environment that `make run` uses

.PHONY: run
run: $(VENV)/.run ## Replay thirteen years of real bars through the whole mesh on this machine
	@$(BIN)/tapewatch run

$(VENV)/.aws: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[yahoo,aws,lake]'
	@touch $@ $(VENV)/.run

LOCAL_ZIP := dist/dispatch-lambda-local.zip
HERE = $$($(BIN)/python -c 'import platform, sys; print("--python", "%d.%d" % sys.version_info[:2], \
	"--architecture", "x86_64" if platform.machine() == "x86_64" else "arm64")')

$(LOCAL_ZIP): deploy/lambda_zip.py $(CONSTRAINTS) $(shell find services gen/python -name '*.py') | $(BIN)/python
	$(BIN)/python deploy/lambda_zip.py $(HERE) --output $@

.PHONY: up-aws-local
up-aws-local: $(VENV)/.aws $(SERVERS)/ministack/.installed $(LOCAL_ZIP) ## Keep the mesh up on SQS, Lambda, DynamoDB, S3 and AppSync Events, all on this machine (ARGS="--source yahoo")
	@$(BIN)/tapewatch up-aws-local --ministack $(SERVERS)/ministack/bin/ministack --function $(LOCAL_ZIP) $(ARGS)

# Many tests wait more than they compute. A file's tests stay together: what they share is made once. 0 uses one process.
WORKERS ?= 2

.PHONY: test
test: $(VENV)/.dev tools ## Run all tests
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: check
check: $(VENV)/.dev ## Formatting, linting, strict types, import rules, protos
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/contracts.py check
	$(BIN)/hadolint deploy/Dockerfile deploy/collector/Dockerfile

.PHONY: proto
proto: $(VENV)/.dev ## Regenerate the code that is made from the protos
	$(BIN)/python proto/contracts.py generate

.PHONY: train
train: $(VENV)/.dev ## Train a model on DATA="daily.parquet minutes.parquet"; without DATA on the bundled tape
	$(BIN)/python -m services.training.train $(addprefix --data ,$(DATA)) $(if $(LABELS),--labels $(LABELS)) \
		$(if $(SECTORS),--sectors $(SECTORS))

.PHONY: evaluate
evaluate: $(VENV)/.dev ## Measure MODEL (the shipped one) on DATA and PUMPS and write CARD (docs/model-card.md)
	$(BIN)/python -m services.training.evaluate $(addprefix --data ,$(DATA)) $(if $(PUMPS),--pumps $(PUMPS)) \
		$(if $(SECTORS),--sectors $(SECTORS)) $(if $(MODEL),--model $(MODEL)) --output $(or $(CARD),docs/model-card.md)

.PHONY: lambda-zip
lambda-zip: $(VENV)/.dev ## Make the dispatch Lambda's zips, for arm64 and x86_64
	$(BIN)/python deploy/lambda_zip.py --architecture arm64
	$(BIN)/python deploy/lambda_zip.py --architecture x86_64

# Where to and how large: a settings file. The CDK command comes from npm; its version reads what aws-cdk-lib writes.
SETTINGS ?= deploy/settings.toml
CDK := npx --yes aws-cdk@2.1148.1 --app dist/cdk.out

.PHONY: synth
synth: lambda-zip
	$(BIN)/python -m deploy.app --settings $(SETTINGS) --output dist/cdk.out

.PHONY: deploy
deploy: synth ## Deploy everything to the AWS account of the credentials; needs Docker and Node.js
	$(CDK) deploy '*Network' '*Storage'
	$(BIN)/python -m deploy.certificates --settings $(SETTINGS)
	$(CDK) deploy --all

.PHONY: destroy
destroy: synth ## Take the deployment away; tables, buckets and secrets stay where keep_data is set
	$(CDK) destroy --all

.PHONY: compose-up
compose-up: $(VENV)/.dev ## The mesh in containers on this machine; needs Docker
	@test -f .tapewatch/compose/gateway.env || $(BIN)/python -m deploy.certificates --env-folder .tapewatch/compose
	docker compose --file deploy/compose.yaml up --build --detach --wait

.PHONY: iam-document
iam-document: $(VENV)/.dev ## Write docs/iam.md anew from the stacks' policies
	$(BIN)/python -m deploy.iam_document

.PHONY: deploy-check
deploy-check: $(VENV)/.dev tools ## Prove what can be proven of the deployment without an account
	TAPEWATCH_REQUIRE_ALL_TESTS=1 $(BIN)/python -m pytest -v -s -p no:cacheprovider tests/deploy

.PHONY: tools
tools: $(GOBIN)/grpcurl $(GOBIN)/versitygw $(addprefix $(SERVERS)/,ministack/.installed awslambdaric/.installed jaeger/.installed elasticmq/.installed dynamodb-local/.installed) ## Install the programs that the tests need and pip does not have

# Flags that all three builds share: Go compiles again what other flags made.
GO := CGO_ENABLED=0 go
GO_FLAGS := -trimpath -ldflags '-s -w'

# Where Go or Maven is not there, the tests that need what they install are skipped, and say so.
$(GOBIN)/grpcurl:
	@if command -v go >/dev/null; then GOBIN=$(GOBIN) $(GO) install $(GO_FLAGS) github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4; \
		else echo "no Go here: the tests that need grpcurl are skipped"; fi

$(GOBIN)/versitygw:
	@if command -v go >/dev/null; then GOBIN=$(GOBIN) $(GO) install $(GO_FLAGS) github.com/versity/versitygw/cmd/versitygw@v1.8.0; \
		else echo "no Go here: the tests that need versitygw are skipped"; fi

# Environments of their own: ministack pins an old botocore, and a Lambda function has nothing of ours but its zip.
$(SERVERS)/ministack/.installed $(SERVERS)/awslambdaric/.installed: $(SERVERS)/%/.installed: tests/servers/%.txt | $(BIN)/python
	rm -rf $(@D)
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# Jaeger's own parts without the databases of its all-in-one, which take longest to build; a module of its own pins them.
$(SERVERS)/jaeger/.installed: $(addprefix tests/servers/jaeger/,main.go go.mod go.sum)
	@if command -v go >/dev/null; then cd $(<D) && $(GO) build $(GO_FLAGS) -o $(CURDIR)/$(@D)/jaeger . && touch $(CURDIR)/$@; \
		else echo "no Go here: the test that needs Jaeger is skipped"; fi

$(SERVERS)/%/.installed: tests/servers/%.pom.xml
	@if command -v mvn >/dev/null; then rm -rf $(@D) && \
		mvn --batch-mode --quiet --file $< dependency:copy-dependencies -DoutputDirectory=$(CURDIR)/$(@D) && touch $@; \
		else echo "no Maven here: the tests that need $* are skipped"; fi

.PHONY: constraints
constraints: $(VENV)/.dev ## Pin anew what pip installs
	$(BIN)/pip-compile --quiet --all-extras --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header \
		--no-annotate --unsafe-package tapewatch --unsafe-package setuptools --upgrade --output-file $(CONSTRAINTS) pyproject.toml

.PHONY: clean
clean: ## Remove the virtual environment and what the embedded mesh wrote
	rm -rf $(VENV) .tapewatch
