# What is done to this repository, by hand and by CI. `make` lists the targets. Needs Go, git and a plain sh.

LINT_VERSION := v2.15.0
LINT := .bin/golangci-lint-$(LINT_VERSION)

# Each go.mod is a module of its own; CONTRIBUTING.md says why. There is no go.work, so each is visited in turn.
MODULES := $(patsubst %/go.mod,%,$(wildcard ./go.mod examples/go.mod internal/*/go.mod))

# What users' programs may come to depend on by importing a package, and what our go.mod may ask for.
ALLOWED_DEPS := github.com/redispatterns/redispatterns github.com/redis/rueidis golang.org/x/sys
ALLOWED_REQUIRES := github.com/redis/rueidis github.com/stretchr/testify

# Go turns cgo, which the race detector needs, off where there is no C compiler.
RACE = $(if $(filter 1,$(shell go env CGO_ENABLED)),-race,$(warning no C compiler: tests run without the race detector))

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "%-12s %s\n", $$1, $$2}' Makefile

.PHONY: fmt
fmt: $(LINT) ## Format all Go files (gofumpt, gci)
	$(LINT) fmt

.PHONY: lint
lint: $(LINT) ## Lint all modules
	@bad=; for m in $(MODULES); do echo "lint $$m"; (cd $$m && "$(CURDIR)/$(LINT)" run --allow-parallel-runners) || bad=1; done; [ -z "$$bad" ]

.PHONY: test
test: redis ## All tests; installs redis-server if there is neither Docker nor Redis
	go test $(RACE) ./...
	go -C examples test $(RACE) ./...
	go -C internal/integration test $(RACE) -timeout 20m ./...

.PHONY: integration
integration: redis ## The tests that talk to servers
	go -C internal/integration test $(RACE) -timeout 20m ./...

.PHONY: soak
soak: redis ## The tests that talk to servers, with faults and random histories at full length
	SOAK=1 go -C internal/integration test $(RACE) -timeout 60m ./...

.PHONY: cover
cover: redis ## Statement coverage by all tests together, per package
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && mkdir "$$dir/unit" "$$dir/integration" && \
	pkgs=$$(go list ./... | paste -sd, -) && \
	go test -cover -coverpkg="$$pkgs" ./... -args -test.gocoverdir="$$dir/unit" && \
	go -C internal/integration test -timeout 20m -cover -coverpkg="$$pkgs" ./... -args -test.gocoverdir="$$dir/integration" && \
	go tool covdata textfmt -i="$$dir/unit,$$dir/integration" -o coverage.out && \
	echo && echo "By all tests together; see also: go tool cover -html=coverage.out" && \
	go tool covdata percent -i="$$dir/unit,$$dir/integration" && \
	go tool cover -func=coverage.out | awk 'END {print "\ttotal\t\tcoverage: " $$NF " of statements"}'

.PHONY: bench
bench: redis ## All benchmarks: us and the peers, in turn
	go -C internal/benchmarks run .

.PHONY: demo
demo: ## The quickstart; needs no Redis
	go -C examples run ./quickstart

.PHONY: tidy
tidy: ## Tidy all modules
	@for m in $(MODULES); do echo "tidy $$m"; go -C $$m mod tidy || exit 1; done

.PHONY: check
check: check-format check-vet lint check-tidy check-deps check-readme ## All that can be said without running the code

.PHONY: check-format
check-format: $(LINT)
	@echo "format"; $(LINT) fmt --diff

.PHONY: check-vet
check-vet:
	@bad=; for m in $(MODULES); do echo "vet $$m"; go -C $$m vet ./... || bad=1; done; [ -z "$$bad" ]

.PHONY: check-tidy
check-tidy:
	@bad=; for m in $(MODULES); do echo "tidy $$m"; go -C $$m mod tidy -diff || bad=1; done; [ -z "$$bad" ]

.PHONY: check-deps
check-deps:
	@echo "dependencies of the packages"; bad=; \
	deps=$$(go list -deps -f '{{with .Module}}{{.Path}}{{end}}' ./...) || exit 1; \
	for d in $$(echo "$$deps" | sort -u); do \
		case " $(ALLOWED_DEPS) " in *" $$d "*) ;; *) echo "a package imports $$d" >&2; bad=1 ;; esac; \
	done; \
	requires=$$(go list -m -f '{{if not (or .Main .Indirect)}}{{.Path}}{{end}}' all) || exit 1; \
	if [ "$$(echo $$requires)" != "$(ALLOWED_REQUIRES)" ]; then \
		echo "go.mod requires $$(echo $$requires), not $(ALLOWED_REQUIRES)" >&2; bad=1; \
	fi; \
	[ -z "$$bad" ]

# README's program is the file of one Example, as pkg.go.dev shows it too: as a main. And README's table has every package.
README_EXAMPLE := cache/example_readme_test.go

.PHONY: check-readme
check-readme:
	@echo "README"; bad=; \
	dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT || exit 1; \
	awk '/^```/ {on = ($$0 == "```go"); next} on' README.md >"$$dir/README.md"; \
	sed -e 's/^package cache_test$$/package main/' -e 's/^func Example() {$$/func main() {/' $(README_EXAMPLE) >"$$dir/example" || bad=1; \
	diff -u "$$dir/README.md" "$$dir/example" || { echo "README.md's program differs from $(README_EXAMPLE)" >&2; bad=1; }; \
	for name in $$(printf '%s\n' */*.go | cut -d / -f 1 | sort -u); do \
		grep -q "^| \[.$$name.\]($$name) .*(examples/$$name) |$$" README.md || { echo "README.md's table lacks $$name, or its example" >&2; bad=1; }; \
	done; \
	[ -z "$$bad" ]

# Compiled once per version, by itself, so that its dependencies are in none of our go.mod files.
$(LINT):
	GOBIN="$(CURDIR)/.bin" go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	mv .bin/golangci-lint $@

# Sees to it that the integration tests find servers: those of REDIS_URL, Docker's, or processes of a redis-server, which
# is installed if there is none. Where that fails, the tests do too, and say what to do.
.PHONY: redis
redis:
	@[ -z "$$REDIS_URL" ] || exit 0; \
	[ "$$REDISTEST_MODE" = process ] || ! docker info >/dev/null 2>&1 || exit 0; \
	! command -v redis-server >/dev/null || exit 0; \
	! command -v valkey-server >/dev/null || exit 0; \
	echo "Neither Docker nor Redis is there: installing redis-server."; \
	as_root=; [ "$$(id -u)" = 0 ] || as_root='sudo -n'; \
	if command -v apt-get; then \
		$$as_root apt-get update -q && \
		$$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends redis-server && \
		{ $$as_root service redis-server stop || :; }; \
	elif command -v dnf; then $$as_root dnf install -qy valkey || $$as_root dnf install -qy redis; \
	elif command -v apk; then $$as_root apk add redis || $$as_root apk add valkey; \
	elif command -v brew; then brew install redis; \
	fi >/dev/null || echo "That did not work." >&2
