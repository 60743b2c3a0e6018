SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# Pinned, since a newer linter finds other things.
GOLANGCI_LINT_VERSION := v2.15.0
GOLANGCI_LINT := bin/tools/golangci-lint-$(GOLANGCI_LINT_VERSION)

# buf has a module of its own, because its dependencies do not get along with those of plusone.
BUF := $(GO) tool -modfile=tools/go.mod buf

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: run
run: ## Run plusone in embedded mode: one process, data in ./plusone.db.
	$(GO) run -ldflags "-X main.version=$(VERSION)" ./cmd/plusone serve

.PHONY: dev
dev: servers build ## Run plusone in sharded mode with a Redis and a PostgreSQL of its own, data in .dev/.
	tools/dev.sh

.PHONY: build
build: ## Build bin/plusone.
	$(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/plusone ./cmd/plusone

.PHONY: servers
servers: ## Install redis-server and PostgreSQL (Debian packages) if they are missing.
	tools/install-servers.sh

.PHONY: test
test: servers ## Run all tests, with the race detector, on real servers.
	$(GO) test -race -timeout=25m ./...
	$(GO) test -timeout=15m -run 'TestModelOnTwin|TestRouting.*Model' ./shard
	$(GO) test ./internal/rawconn # whose system calls are others with the race detector

# For each of the deployments that the suite has.
CHAOS_FAULTS ?= 150
CHAOS_OPS ?= 1500000
CHAOS_SEED ?= 0

.PHONY: chaos
chaos: servers ## Run the fault suite for an hour or so, as root for the full disks; CHAOS_FAULTS, CHAOS_OPS, CHAOS_SEED.
	mkdir -p bin/chaos
	$(GO) test ./internal/chaos -run 'TestChaos|TestPlantedBugs|TestLoss' -count=1 -timeout=3h -v -args -chaos.faults=$(CHAOS_FAULTS) \
		-chaos.ops=$(CHAOS_OPS) -chaos.seed=$(CHAOS_SEED) -chaos.skew -chaos.bugs -chaos.power -chaos.history=$(CURDIR)/bin/chaos

BENCH_RUNS ?= 5
BENCH_TIME ?= 3s
BENCH_OUTAGE ?= 1m

.PHONY: bench
bench: servers ## Measure plusone beside its yardsticks for a quarter of an hour; BENCH_RUNS, BENCH_TIME, BENCH_OUTAGE.
	$(GO) test ./internal/bench -count=1 -timeout=2h -v -args -bench.runs=$(BENCH_RUNS) -bench.time=$(BENCH_TIME) -bench.warm=1s \
		-bench.outage=$(BENCH_OUTAGE) -bench.scale=1

LOAD_ADDR ?= 127.0.0.1:50051
LOAD_HTTP ?= 127.0.0.1:8080
LOAD_FOR ?= 10s

.PHONY: load
load: ## Put ghz on a running server (counters below load/ change); LOAD_ADDR, LOAD_HTTP, LOAD_FOR.
	$(GO) run ./internal/load -addr $(LOAD_ADDR) -http $(LOAD_HTTP) -for $(LOAD_FOR)

FUZZTIME ?= 10s

# Go before 1.27 now and then takes the end of the time for a failure: go.dev/issue/75804.
.PHONY: fuzz
fuzz: servers ## Fuzz each target for FUZZTIME (10s), one after the other.
	@$(GO) test -list '^Fuzz' ./... | awk '/^Fuzz/ { t[n++] = $$1 } /^ok/ { while (n) print $$2, t[--n] }' | \
	while read -r package target; do \
		out=$$($(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s "$$package" \
			</dev/null 2>&1 | tee >(cat >&2)) || grep -qx ' *context deadline exceeded' <<<"$$out"; \
	done

.PHONY: lint
lint: $(GOLANGCI_LINT) ## Check code, formatting and protos.
	$(GOLANGCI_LINT) run ./...
	$(GOLANGCI_LINT) run --build-tags failpoint ./internal/failpoint/...
	$(BUF) lint

.PHONY: fmt
fmt: $(GOLANGCI_LINT) ## Format the code.
	$(GOLANGCI_LINT) fmt ./...

.PHONY: generate
generate: ## Generate code from the protos.
	$(BUF) generate

.PHONY: check-generated
check-generated: ## Check that the generated code is that of the protos.
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && \
	$(BUF) generate -o "$$fresh" && \
	diff -ru --exclude='*.proto' "$$fresh/api" api || { echo 'run "make generate"' >&2; exit 1; }

.PHONY: check-tidy
check-tidy: ## Check that go.mod and go.sum are tidy.
	$(GO) mod tidy -diff

.PHONY: breaking
breaking: ## Check that the protos break no client of the main branch.
	$(BUF) breaking --against '.git#branch=main'

.PHONY: ci
ci: test lint check-generated check-tidy ## Check all that must hold before a merge.

.PHONY: clean
clean: ## Remove what was built. Data (plusone.db, .dev/) stays.
	rm -rf bin

$(GOLANGCI_LINT):
	GOBIN=$(CURDIR)/bin/tools $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	mv bin/tools/golangci-lint $@
