# Cairn. `make help` lists what there is.
SHELL := /bin/bash
GO ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
# Where `make run` keeps its store.
DATA ?= ./data
LISTEN ?= localhost:5000
# What else `make run` tells `cairn serve`, such as --new.
FLAGS ?=
# Pinned, so that a check means the same on every machine.
GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.6.2
FUZZTIME ?= 20s

.DEFAULT_GOAL := help
.PHONY: links mutants help build run test check race lint fuzz long bench image clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

build: ## bin/cairn, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/cairn ./cmd/cairn

# Through the environment: a shell would take apart a path with a quote or a space.
run: export RUN_DATA := $(DATA)
run: export RUN_LISTEN := $(LISTEN)
run: build ## serve a store in ./data at http://localhost:5000 (DATA=DIR LISTEN=HOST:PORT FLAGS=--new)
	./bin/cairn serve --data "$$RUN_DATA" --listen "$$RUN_LISTEN" $(FLAGS)

test: ## unit, property, simulation and integration tests; under 15 minutes on 2 cores
	$(GO) vet ./...
	$(GO) test -timeout 14m ./...

check: test race lint fuzz long links ## everything: test, race detector, linters, fuzzing, the long crash and fault runs

race: ## the tests under the race detector (needs a C compiler)
	$(GO) test -race -short -timeout 30m ./...

lint: ## gofmt, go vet and the linters of .golangci.yml
	@out=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$out" || { echo "not gofmt'ed:"; echo "$$out"; exit 1; }
	$(GO) vet ./...
	@if command -v golangci-lint >/dev/null; then golangci-lint run; else $(GO) run $(GOLANGCI) run; fi

fuzz: ## every fuzz target for FUZZTIME
	@GO=$(GO) .ci/fuzz $(FUZZTIME)

long: ## the long crash, loss and simulation runs
	CAIRN_LONG=1 $(GO) test -timeout 120m ./...

mutants: ## plant each known bug in a copy of the tree and see that a suite catches it
	CAIRN_MUTANTS=1 $(GO) test -v -timeout 60m -run TestMutantsAreCaught ./store/sim

# Not those in a bubble with a clock of its own, in which no connection is ever ready.
links: ## the store's own tests with all nodes behind links
	CAIRN_LINKS=1 $(GO) test -short -timeout 30m -skip "^($$(grep -l synctest store/*_test.go | xargs grep -h '^func Test' | sed 's/func \(Test[A-Za-z0-9]*\).*/\1/' | paste -sd'|'))\$$" ./store

bench: build ## the benchmarks: CPU seconds per GB of each stage, of put and get; small objects
	$(GO) run ./cmd/stages $(BENCHFLAGS)

image: build ## a container image around bin/cairn; no base image is pulled
	mkdir -p bin/volume
	docker build --build-arg RUNTIME=scratch --target prebuilt -t cairn:$(VERSION) -t cairn:latest .

clean: ## what was built
	rm -rf bin
